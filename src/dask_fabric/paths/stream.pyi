"""The `stream` path: frames travel on the control stream, from their own memory into their own."""

def is_low_water_sound(release: str):
    """Whether a kernel wakes a reader that waits for much, also where memory is short.

    Before 5.12 it may never do so, with a message half received: small packets fill the receive
    buffer first (mended in 5.7 by 24adbc1676af), or the kernel's memory for TCP is used up
    (mended by "tcp: fix SO_RCVLOWAT related hangs under mem pressure").

    Parameters
    ----------
    release : str
        As `os.uname` gives it, such as ``5.14.0-503.el9.x86_64``. What is no version is not sound.
    """
