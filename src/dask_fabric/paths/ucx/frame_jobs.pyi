"""Jobs of the `ucx` path: one for all frames that one message sends, or one transfer receives.

Each frame is one operation, which ends by itself in UCX's progress thread. The last one to end
completes the job.
"""

import logging
from typing import TypedDict

from dask_fabric.jobs.completions import Job
from dask_fabric.jobs.mailbox import CompletionNode, Mailbox
from dask_fabric.linux import pthread_mutex_t

logger = logging.getLogger(__name__)

class FrameJob(Job):
    """Sends or receives frames of one message by one endpoint."""

class NativeJob(TypedDict):
    name: int
    tag: int
    operations: int
    operation_count: int
    left_count: int
    error: int
    moved_bytes: int
    mailbox: Mailbox
    node: CompletionNode
    next: NativeJob

class Engine(TypedDict):
    mutex: pthread_mutex_t
    first: NativeJob
    job_count: int
