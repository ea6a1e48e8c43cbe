"""Frames on their way through UCX: one job for all that one message sends or receives so.

UCX ends each frame by itself, in its own thread; the last one ends the job.
"""

import logging

from dask_fabric.jobs.completions import Job

logger = logging.getLogger(__name__)

class FrameJob(Job):
    """Frames of one message that are sent or received by one endpoint."""
