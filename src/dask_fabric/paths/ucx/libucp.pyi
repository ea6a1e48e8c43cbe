"""UCX's library libucp, opened at run time, and the one place that turns its errors into ours."""

LIBRARIES = ("libucm", "libucs", "libuct")
SUFFIX = ".so.0"

def open_library(path: str) -> str:
    """Open libucp, and the libraries under it from the same folder. They stay open for ever.

    Parameters
    ----------
    path : str
        Full path.

    Returns
    -------
    str
        The file that the system says it has loaded.

    Raises
    ------
    UnavailableError
        It cannot be loaded, lacks a function, or is mixed with another UCX.
    """

def version() -> tuple[int, ...]:
    """Give the version of the open library.

    Returns
    -------
    tuple of int
        Three numbers.
    """
