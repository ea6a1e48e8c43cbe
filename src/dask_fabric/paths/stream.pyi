"""The `stream` path: frames move on the control stream, from and to their final memory."""

def is_low_water_sound(release: str):
    """Whether a kernel's SO_RCVLOWAT is reliable.

    Before 5.12 a reader may never be woken, in the middle of a message: small packets fill the
    receive buffer first (fixed in 5.7 by 24adbc1676af), or the kernel's memory for TCP is used up
    (fixed by "tcp: fix SO_RCVLOWAT related hangs under mem pressure").

    Parameters
    ----------
    release : str
        As from `os.uname`, such as ``5.14.0-503.el9.x86_64``. False if it is not a version.
    """
