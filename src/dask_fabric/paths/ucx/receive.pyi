"""Incoming frames: each is received into its posted memory, kept as unexpected, or refused.

All of this needs the worker's lock. Everything that a peer sends is checked.
"""
