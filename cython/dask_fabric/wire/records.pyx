"""The records of the stream: their layout, and packing them.

The format is documented in docs/wire-protocol.md. All integers are little-endian.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from dask_fabric.errors import LimitError, ProtocolError

cdef void pack_prefix(
    char *out, RecordKind kind, uint32_t frame_count, uint64_t header_bytes, uint64_t sequence
) noexcept nogil:
    # Copied, because the destination is not aligned.
    cdef Prefix prefix = Prefix(kind, 0, 0, frame_count, header_bytes, sequence)
    memcpy(out, &prefix, PREFIX_BYTES)


cdef void pack_entry(
    char *out, uint64_t nbytes, int path, int memory, uint32_t descriptor_bytes
) noexcept nogil:
    cdef Entry entry = Entry(nbytes, path, memory, 0, descriptor_bytes)
    memcpy(out, &entry, ENTRY_BYTES)


cdef bytes plain_record(RecordKind kind, uint64_t sequence):
    """A record that consists of its prefix only."""
    cdef char out[PREFIX_BYTES]
    pack_prefix(out, kind, 0, 0, sequence)
    return PyBytes_FromStringAndSize(out, PREFIX_BYTES)


def close_record():
    """Make the record that announces a close. Only FRAMES records may follow it.

    Returns
    -------
    bytes
    """
    return plain_record(CLOSE, 0)


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
    return _text_record(ERROR, text.encode("utf-8", "replace")[:TEXT_BYTES])


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
    if len(content) > TEXT_BYTES:
        raise ValueError(f"{len(content)} bytes of refusals; at most {TEXT_BYTES} are allowed")
    return _text_record(PATHS, content)


cdef bytes _text_record(RecordKind kind, bytes content):
    cdef char out[PREFIX_BYTES]
    pack_prefix(out, kind, 0, len(content), 0)
    return PyBytes_FromStringAndSize(out, PREFIX_BYTES) + content


def violation(what):
    """Make the error for a peer that breaks the protocol, with the ERROR record for that peer.

    Parameters
    ----------
    what : str

    Returns
    -------
    ProtocolError
    """
    text = f"protocol violation: {what}"
    return ProtocolError(text, error_record(text))


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
    text = (
        f"a {what} of {size} is above the limit of {limit} "
        f"(fabric.limits.{key} in the configuration of the receiver)"
    )
    return LimitError(text, error_record(text))
