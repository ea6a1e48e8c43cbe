"""Records as they stand on the stream: their layout, and packing them.

The format is written down in docs/wire-protocol.md. All integers are little-endian.
"""

from dask_fabric.errors import LimitError, ProtocolError

def close_record() -> bytes:
    """The record after which a side sends nothing more but answers about offered frames.

    Returns
    -------
    bytes
    """

def error_record(text: str) -> bytes:
    """The record that tells the peer why the connection is about to be closed.

    Parameters
    ----------
    text : str
        Cut to 4096 bytes of UTF-8.

    Returns
    -------
    bytes
    """

def paths_record(content: bytes) -> bytes:
    """The record by which a client completes the negotiation of paths.

    Parameters
    ----------
    content : bytes
        As `dask_fabric.wire.negotiation.encode_refusals` makes it.

    Returns
    -------
    bytes
    """

def violation(what: str) -> ProtocolError:
    """Make the error about a peer that breaks the protocol, with the record that tells it so.

    Parameters
    ----------
    what : str

    Returns
    -------
    ProtocolError
    """

def excess(what: str, size: int, limit: int, key: str) -> LimitError:
    """Make the error about a claim above a limit, as `violation`.

    Parameters
    ----------
    what : str
    size, limit : int
    key : str
        Of the limit in the configuration.

    Returns
    -------
    LimitError
    """
