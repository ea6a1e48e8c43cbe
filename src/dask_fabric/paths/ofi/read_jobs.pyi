"""The job of a transfer: its completion, cancellation and quarantine."""

from dask_fabric.jobs.completions import Job

class FetchJob(Job):
    """Reads the frames of one transfer out of a peer's memory."""
