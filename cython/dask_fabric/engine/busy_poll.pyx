"""Busy polling: an event loop does not sleep while it expects a quick reply.

Waking a thread takes longer than a peer on the same host needs to reply. So for some microseconds
after a send the loop iterates without sleeping; sockets, timers and other tasks run as usual. It
measures continually, for each peer, whether that is quicker. It is not if both share a CPU, or if
the reply takes work.
"""

cimport cython

from dask_fabric.clock cimport now_ns

cdef enum:
    ASLEEP = 0
    AWAKE = 1
    TRIAL_INTERVAL = 16
    TRIAL_INTERVAL_LIMIT = 8192
    PATIENCE_FACTOR = 4         # times the average reply time


@cython.auto_pickle(False)
@cython.final
cdef class BusyPoll:
    """Keeps a loop awake for the replies of one peer.

    Parameters
    ----------
    loop : asyncio.AbstractEventLoop
    limit_seconds : float
        The longest wait for one reply; 0 turns busy polling off.
    """

    def __init__(self, loop, limit_seconds):
        self.loop = loop
        self.limit_ns = <int64_t> (limit_seconds * 1e9)
        self.times_ns[ASLEEP] = self.limit_ns
        self.times_ns[AWAKE] = self.limit_ns >> 1       # optimistic: late replies correct it soon
        self.trial_interval = self.until_trial = TRIAL_INTERVAL

    cpdef wait(self, awaited):
        """Keep the loop awake for a reply, if that is likely to be quicker.

        Parameters
        ----------
        awaited : asyncio.Future or Waiter
            Done when the reply is here.
        """
        if self.limit_ns == 0:
            return
        self.is_awake = self._decide()
        self.patience_ns = self.limit_ns
        if self.is_awake:
            # If replies are usually fast and this one is late, stop: the peer may need this CPU.
            self.patience_ns = min(self.limit_ns, PATIENCE_FACTOR * self.times_ns[AWAKE])
        self.begin_ns = now_ns()
        if self.is_awake:
            if self.awaited is None:
                self.loop.call_soon(self._round)
            self.awaited = awaited

    cpdef answered(self):
        """The reply is here: update the averages."""
        cdef int64_t taken_ns
        if self.begin_ns:
            taken_ns = min(now_ns() - self.begin_ns, self.patience_ns)
            self.times_ns[self.is_awake] += (taken_ns - self.times_ns[self.is_awake]) >> 2
            self.begin_ns = 0
            if (
                self.is_awake and self._is_quicker(taken_ns)
                and not self._is_quicker(self.times_ns[AWAKE])
            ):
                self.trial_interval = TRIAL_INTERVAL
                self.until_trial = 1    # better than the average: try once more, at once

    cdef bint _is_quicker(self, int64_t awake_ns) noexcept:
        return awake_ns * 9 < self.times_ns[ASLEEP] * 8

    cdef bint _decide(self) noexcept:
        """Choose the mode that was quicker; now and then try the other one."""
        cdef bint is_quicker = self._is_quicker(self.times_ns[AWAKE])
        self.until_trial -= 1
        if self.until_trial > 0:
            return is_quicker
        if is_quicker:
            self.trial_interval = TRIAL_INTERVAL
        else:
            self.trial_interval = min(2 * self.trial_interval, TRIAL_INTERVAL_LIMIT)
        self.until_trial = self.trial_interval
        return not is_quicker

    def _round(self):
        if not self.awaited.done():
            if now_ns() - self.begin_ns < self.patience_ns:
                self.loop.call_soon(self._round)
                return
            self.answered()         # too late: counts as a slow reply
        self.awaited = None
