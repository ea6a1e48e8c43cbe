"""An endpoint of the `ucx` path in Python: for tests, benchmarks and `doctor`."""

from typing import Final

class UCXEndpoint:
    """One end of a connection for frames. Use it in one thread at a time.

    Parameters
    ----------
    address : bytes
        Of the peer's worker.
    own_token, peer_token : int
        64 random bits each; each side makes its own and announces it to the other.
    """

    own_token: Final[int]

    def __init__(self, address: bytes, own_token: int, peer_token: int): ...
    def fileno(self):
        """Return a file descriptor that is readable once an operation has ended."""
    @property
    def is_wired(self): ...
    @property
    def error(self):
        """The errno of a broken endpoint, or 0."""
    def offer(self, data, sequence: int = 0, index: int = 0, kind: int = ...) -> int:
        """Send a frame.

        Parameters
        ----------
        data : bytes-like
        sequence, index : int
            The peer posts its receive with the same numbers.
        kind : int
            The kind of memory, in UCX's numbering.

        Returns
        -------
        int
            The operation's name, for :meth:`wait`.
        """
    def post(self, memory, sequence: int = 0, index: int = 0, kind: int = ...):
        """Receive a frame into *memory*, of exactly that length; otherwise as :meth:`offer`."""
    def wait(self, name, timeout_seconds=30.0) -> int:
        """Wait for the end of an operation.

        Returns
        -------
        int
            The number of bytes moved.

        Raises
        ------
        TimeoutError
            It has not ended in time, and continues.
        OSError
            It has failed.
        """
    def cancel(self, name: int):
        """Cancel an operation; False if it has ended already."""
    def fail(self):
        """Fail all operations, and break the connection to the peer."""
    def revive(self):
        """Let a broken endpoint and its counterpart begin anew; False if it is not possible now."""
    def break_again(self):
        """Give up to revive it."""
    def close(self):
        """Cancel all operations."""
