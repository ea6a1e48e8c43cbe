"""Outgoing frames. All of this needs the worker's lock."""
