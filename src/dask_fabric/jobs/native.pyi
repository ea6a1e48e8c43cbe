"""Native threads: starting them, and how many to start."""

def configure(thread_count: int):
    """Set the number of native threads of each kind; running threads are not stopped.

    Parameters
    ----------
    thread_count : int
        From 1 to 64.
    """
