"""Jobs of the `ucx` path: one for all frames that one message sends, or one transfer receives.

Each frame is one operation, which ends by itself in UCX's progress thread. The last one to end
completes the job.
"""

import logging

from dask_fabric.jobs.completions import Job

logger = logging.getLogger(__name__)

class FrameJob(Job):
    """Sends or receives frames of one message by one endpoint."""
