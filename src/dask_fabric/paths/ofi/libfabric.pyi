"""libfabric, opened at run time: what it offers here, and its errors as ours.

The program that probes a library (`paths/ofi/probe.py`) loads this module alone, without the
package. So it imports only the standard library.
"""

from contextlib import contextmanager
from typing import Any

QUIET = {"IPATH_NO_BACKTRACE": "1", "HFI_NO_BACKTRACE": "1"}
SYMBOLS = (
    b"fi_getinfo",
    b"fi_dupinfo",
    b"fi_freeinfo",
    b"fi_fabric",
    b"fi_version",
    b"fi_strerror",
)

class Actions:
    """The actions of all signals when it was made."""
    def __init__(self): ...

def survey(path: str) -> dict[str, Any]:
    """Open the library and say what it offers on this host. For a process of its own.

    Parameters
    ----------
    path : str
        A file, or the soname.

    Returns
    -------
    dict
        ``path``: the file that was loaded; ``version``: its two or three numbers; ``domains``: what
        can read remote memory here, in the library's order: provider, name, and PCI address or "".

    Raises
    ------
    OSError
        It cannot be loaded or used.
    """

def open_library(path: str) -> str:
    """Open a library, which is never closed.

    Parameters
    ----------
    path : str

    Returns
    -------
    str
        The file that was actually loaded.

    Raises
    ------
    OSError
        It cannot be loaded, is too old, or lacks a function.
    """

def version():
    """Return the version of the open library, two numbers."""

@contextmanager
def kept_signals():
    """Undo changes of the process's signal actions: some providers take over signals."""
