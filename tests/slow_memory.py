"""Memory whose pages are slow to read, to test that nothing waits for them."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct

import numpy as np
import pytest

_USERFAULTFD, _UFFDIO_API, _UFFDIO_REGISTER = 323, 0xC018AA3F, 0xC020AA00
if os.uname().machine == "aarch64":
    _USERFAULTFD = 282


class SlowMemory:
    """Memory whose pages arrive with a call of `arrive`, like a file on a hung server."""

    def __init__(self, nbytes: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.nbytes = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self.map = mmap.mmap(-1, self.nbytes)
        self.view = np.frombuffer(self.map, "u1")
        self.address = self.view.ctypes.data
        self.fd = libc.syscall(_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK)
        if self.fd < 0:
            pytest.skip(f"userfaultfd: {os.strerror(ctypes.get_errno())}")
        fcntl.ioctl(self.fd, _UFFDIO_API, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))
        register = struct.pack("QQQQ", self.address, self.nbytes, 1, 0)
        fcntl.ioctl(self.fd, _UFFDIO_REGISTER, bytearray(register))

    def is_awaited(self) -> bool:
        """Whether a thread waits for a page."""
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return poll.poll(0) == [(self.fd, select.POLLIN)]

    def arrive(self) -> None:
        """Provide all pages, as zeros."""
        fd, self.fd = self.fd, -1  # a timer and the end of the test may both call this
        if fd >= 0:
            os.close(fd)
