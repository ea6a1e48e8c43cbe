"""The records of the stream: their layout, and packing them.

The format is documented in docs/wire-protocol.md. All integers are little-endian.
"""

from typing import TypedDict

class Prefix(TypedDict):
    kind: int
    flags: int
    reserved: int
    frame_count: int
    header_bytes: int
    sequence: int

class Entry(TypedDict):
    nbytes: int
    path: int
    memory: int
    flags: int
    descriptor_bytes: int

def close_record():
    """Make the record that announces a close. Only FRAMES records may follow it.

    Returns
    -------
    bytes
    """

def error_record(text):
    """Make the record that reports to the peer why the connection is about to be closed.

    Parameters
    ----------
    text : str
        Cut to 4096 bytes of UTF-8.

    Returns
    -------
    bytes
    """

def paths_record(content):
    """Make the record by which a client completes the negotiation of paths.

    Parameters
    ----------
    content : bytes
        From `dask_fabric.paths.negotiation.encode_found`.

    Returns
    -------
    bytes
    """

def violation(what):
    """Make the error for a peer that breaks the protocol, with the ERROR record for that peer.

    Parameters
    ----------
    what : str

    Returns
    -------
    ProtocolError
    """

def excess(what, size, limit, key):
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
