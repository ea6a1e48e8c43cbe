"""Unexpected messages: those that arrive before their receive is posted. They are bounded.

All of this needs the worker's lock. A rendezvous costs the receiver only a descriptor; its data
stay at the sender. Other messages stay in UCX's memory until their receive is posted.
"""
