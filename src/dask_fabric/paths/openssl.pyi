"""TLS without the GIL, by the OpenSSL that Python's ssl module uses.

Theory of operation
-------------------
An `ssl.SSLSocket` takes the GIL for each record of 16 KiB, so beside a busy thread it moves 200
records a second. Here OpenSSL's ``SSL_read`` and ``SSL_write`` are called directly, on the session
that Python has made and authenticated. Native threads can then move the bytes of large messages.

The functions come from the library that Python's ``_ssl`` is linked to. The session is a field of
``_ssl._SSLSocket``, behind the socket and before the context, in CPython 3.10 to 3.14. All of that
is checked; where it differs, or ``_ssl`` is part of the interpreter, `new_session` gives NULL, and
Python's own methods are used.

OpenSSL lets one thread at a time use a session, while a connection may send and receive at once.
So each call holds a mutex for one record. Two rules keep the event loop from waiting for long:

- Memory that is slow to read (swap, a file on a network) is never read under the mutex:
  `session_write` copies a record's bytes first.
- No thread waits for the mutex while it holds the GIL, or for the GIL while it holds the mutex: a
  task may hold the GIL for seconds, and native threads must go on. Where the mutex is taken, the
  loop gives up the GIL for the whole call (`loop_read`). Only callbacks of Python's need both.
"""

import ssl

from _typeshed import Incomplete

is_available: Incomplete = ...

def refuse_other_names(context: ssl.SSLContext):
    """Have a server's context refuse clients that ask for a name (SNI) which is not ASCII.

    Where a context has an ``sni_callback``, Python itself prints a traceback for each of them.
    Nothing is done where OpenSSL cannot be called.

    Parameters
    ----------
    context : ssl.SSLContext
    """
