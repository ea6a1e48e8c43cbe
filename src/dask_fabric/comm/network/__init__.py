"""Addresses and sockets: names, binding, connecting's attempts, and what strangers send."""
