"""Run a program as on a kernel without PAGEMAP_SCAN: a filter refuses the call."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS, FILTER = 22, 38, 2
IOCTL = {"x86_64": 16, "aarch64": 29}[platform.machine()]
PAGEMAP_SCAN = 0xC0606610
LOAD, IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # of linux/bpf_common.h
ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | errno.ENOTTY


def main() -> None:
    steps = [
        (LOAD, 0, 0, 0),  # the number of the call
        (IF_EQUAL, 0, 3, IOCTL),
        (LOAD, 0, 0, 24),  # its second argument
        (IF_EQUAL, 0, 1, PAGEMAP_SCAN),
        (RETURN, 0, 0, REFUSE),
        (RETURN, 0, 0, ALLOW),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((PR_SET_NO_NEW_PRIVS, 1, 0), (PR_SET_SECCOMP, FILTER, program)):
        if libc.prctl(*arguments, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl")
    os.execv(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
