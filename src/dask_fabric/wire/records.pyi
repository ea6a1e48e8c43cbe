"""The records of the stream: their layout, and packing them.

The format is documented in docs/wire-protocol.md. All integers are little-endian.
"""

from dask_fabric.errors import LimitError, ProtocolError

def close_record() -> bytes:
    """Make the record that announces a close. Only FRAMES records may follow it.

    Returns
    -------
    bytes
    """

def error_record(text: str) -> bytes:
    """Make the record that reports to the peer why the connection is about to be closed.

    Parameters
    ----------
    text : str
        Cut to 4096 bytes of UTF-8.

    Returns
    -------
    bytes
    """

def paths_record(content: bytes) -> bytes:
    """Make the record by which a client completes the negotiation of paths.

    Parameters
    ----------
    content : bytes
        From `dask_fabric.paths.negotiation.encode_found`.

    Returns
    -------
    bytes
    """

def violation(what: str) -> ProtocolError:
    """Make the error for a peer that breaks the protocol, with the ERROR record for that peer.

    Parameters
    ----------
    what : str

    Returns
    -------
    ProtocolError
    """

def excess(what: str, size: int, limit: int, key: str) -> LimitError:
    """Make the error for a size above a limit, as `violation`.

    Parameters
    ----------
    what : str
    size, limit : int
    key : str
        The limit's key in the configuration.

    Returns
    -------
    LimitError
    """
