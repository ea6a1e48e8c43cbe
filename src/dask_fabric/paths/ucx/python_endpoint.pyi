"""An endpoint of the `ucx` path for Python: for tests, benchmarks and the report of `doctor`."""

from typing import Final

class UCXEndpoint:
    """One end of a connection for frames; to be used by one thread at a time.

    Parameters
    ----------
    address : bytes
        Of the peer's worker.
    own_token, peer_token : int
        64 random bits: what each side has made, and told to the other.
    """

    own_token: Final[int]

    def __init__(self, address: bytes, own_token: int, peer_token: int): ...
    def fileno(self):
        """Give a descriptor that is readable when something has ended."""
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
            What the peer posts it by.
        kind : int
            Of the memory, as UCX numbers them.

        Returns
        -------
        int
            For :meth:`wait`.
        """
    def post(self, memory, sequence: int = 0, index: int = 0, kind: int = ...):
        """Receive a frame of exactly the length of *memory* into it; the rest as :meth:`offer`."""
    def wait(self, name, timeout_seconds=30.0) -> int:
        """Wait for the end of an operation.

        Returns
        -------
        int
            The bytes that have moved.

        Raises
        ------
        TimeoutError
            It has not ended in time, and goes on.
        OSError
            It has failed.
        """
    def cancel(self, name: int):
        """End an operation without an answer; False where it is over already."""
    def fail(self):
        """End all operations with errors, and with them the connection to the peer."""
    def close(self):
        """End all operations without an answer."""
