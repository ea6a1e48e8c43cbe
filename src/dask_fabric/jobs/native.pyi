"""Native threads: starting them, and how many there shall be."""

def configure(thread_count: int):
    """Set the number of native threads of each kind; threads that run already stay.

    Parameters
    ----------
    thread_count : int
        From 1 to 64.
    """
