"""Addresses and sockets: names, binding, failed attempts to connect, and errors of strangers."""
