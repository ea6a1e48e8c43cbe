"""Frames that come in by UCX: each into the memory that was posted for it, kept, or refused.

All of this needs the worker's lock. Nothing that a peer claims is believed.
"""
