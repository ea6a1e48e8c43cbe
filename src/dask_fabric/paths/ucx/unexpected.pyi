"""Messages that came before their receive was posted, within bounds.

All of this needs the worker's lock. A rendezvous costs the receiver a descriptor; its data stay at
the sender. Other messages lie in UCX's memory until they are wanted.
"""
