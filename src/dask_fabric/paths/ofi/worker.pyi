"""libfabric in this process: one endpoint, its peers, and the thread that makes it progress.

Theory of operation
-------------------
A frame stays in its sender's memory, registered (`regions`). The receiver reads it (``fi_read``) in
chunks, several at a time: a network card does that without the sender's CPU, and other providers
have the sender's thread serve it. All that one transfer fetches is a `ReadJob`; the jobs of a
process take turns. A job ends when none of its chunks is in flight, and it has no work left or an
error. Its completion goes to the mailbox of its event loop (`jobs.completions`).

One native thread, which never takes the GIL, posts all reads and collects all completions. It
sleeps until the completion queue's descriptor or `wake_fd` is readable. Where a provider has no
such descriptor, the thread polls the queue while this process reads, or has frames on offer.

Before the first frame is read from a peer, its *nonce* is: 16 random bytes whose place and value
are in its hello. That proves that name, key and network are right, and connects the two. Until the
connection stands, libfabric answers EAGAIN: the read is tried again. After the last frame of a
transfer a nonce of the comm is read, which the sender overwrites at the end of the comm (`nonces`).

Libfabric cannot cancel a read. So a cancelled job posts no more chunks, and waits for those in
flight for some milliseconds. Then it is *abandoned*: its memory goes to quarantine until libfabric
ends them, maybe never. A peer that is stopped answers nothing, and no error is reported; whoever
waits must have a limit.

At the end of the process the thread is stopped and the endpoint closed, so that providers remove
their files. A forked child has neither: its parent's memory and thread are not touched any more.
"""

from typing import Any

def start(
    library: str,
    provider: str,
    variables: dict[str, str],
    node: str = "",
    domain: str | None = None,
) -> dict[str, Any]:
    """Start libfabric in this process; no effect if it runs already, with the same provider.

    Parameters
    ----------
    library : str
        The file to load.
    provider : str
        Its full name.
    variables : dict of str to str
        For the environment, while it starts: libfabric reads them once.
    node : str
        The local address to use; "" leaves it to the provider.
    domain : str, optional
        The network card to use; by default one that is near, see `domains.pick`.

    Returns
    -------
    dict
        What a peer must know; see `facts`.

    Raises
    ------
    ForkedError
        This is a forked child, where it cannot be used.
    UnavailableError
        Another library or provider runs already, or the process is exiting.
    OSError
        The library cannot be loaded, or does not start.
    """

def facts() -> dict[str, Any]:
    """Say what a peer must know of this process.

    Returns
    -------
    dict
        ``protocol``, ``protocol_version`` and ``addr_format`` (int) as libfabric numbers them;
        ``name`` (bytes): the address of the endpoint; ``nonce`` (bytes), and its ``address`` and
        ``key`` (int). The same again with ``connection_`` before the name, for a connection that
        has no nonce of its own.
    """

def domain():
    """Give the network card or interface in use, as libfabric calls it; "" if it does not run."""

def is_running():
    """Whether it runs, and belongs to this process (not to the parent of a fork)."""

def statistics() -> dict[str, Any]:
    """Count what goes on.

    Returns
    -------
    dict
        ``peer_count`` (processes that frames were read from), ``offered_count`` (frames that others
        may be reading), ``in_flight_count`` (reads), ``abandoned_count`` (transfers that were given
        up, but not by libfabric), ``read_bytes``, ``region_count`` and ``region_bytes``
        (registered memory), ``registration_count`` (so far).
    """
