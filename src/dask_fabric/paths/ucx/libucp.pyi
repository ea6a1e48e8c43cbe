"""UCX's library libucp, opened at run time, and the conversion of its errors into ours."""

LIBRARIES = ("libucm", "libucs", "libuct")
SUFFIX = ".so.0"

def open_library(path: str) -> str:
    """Open libucp, and its lower libraries from the same folder. They are never closed.

    Parameters
    ----------
    path : str
        Full path.

    Returns
    -------
    str
        The file that was actually loaded.

    Raises
    ------
    UnavailableError
        It cannot be loaded, lacks a function, or is mixed with another UCX.
    """

def version() -> tuple[int, ...]:
    """Return the version of the open library.

    Returns
    -------
    tuple of int
        Three numbers.
    """
