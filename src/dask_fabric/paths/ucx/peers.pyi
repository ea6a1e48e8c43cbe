"""Peers of the `ucx` path, their connections, and the endpoints that share them.

Theory of operation
-------------------
All of this needs the worker's lock. A `Peer` is a worker of another process. It has at most one
connection, shared by its endpoints, one per comm. The progress thread makes the connection when an
endpoint has its first frame: most comms never need one.

Wiring up: UCX may hang if a large message is the first on a connection. So each endpoint first
*greets* its counterpart, by a small message. Offers are held until the counterpart has greeted or
answered. The states of an endpoint:

* WIRING: no greeting has arrived. The receiving side greets too, because the sender's greeting may
  have arrived before the receiver's endpoint existed, and was dropped.
* READY: the counterpart has greeted. Frames are sent at once.
* BROKEN: every operation fails, until the endpoint is closed or revived. The comm uses the stream.

A broken endpoint can be *revived*: it is WIRING again, and its greeting says so. That revives the
counterpart too, unless UCX still uses some of its memory. No frame is at risk meanwhile.
The messages of before are not confused with later ones, which have higher numbers.

Serial numbers: UCX pairs the n-th connection that one side makes to a worker with the n-th of the
other side. If one side closes its connection alone and makes a new one, the two sides get out of
step. So each side counts (`serial`), and a greeting carries its sender's number. A side that is
behind breaks its connection, and makes new ones until it has caught up. A side that is ahead greets
again, which shows the peer its number. So both ends always use the same connection, and closing it
ends receives as well as sends.

A peer record is never freed, because UCX never resets its own count. A connection without endpoints
is closed after `IDLE_MS`. A peer that does not greet is not tried again for `BACKOFF_MS`.

The progress thread runs `_attend` between two rounds of progress: it handles the peers that are due
(`is_due`), sends greetings and held frames, then reports ended operations.
"""
