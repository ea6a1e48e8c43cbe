"""Channels made and opened: the socket or TLS below, and the negotiation of paths."""
