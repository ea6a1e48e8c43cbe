"""Starting a library once, in a thread, while event loops go on."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any


class Start:
    """One attempt to find and start a library, in progress in a thread or done.

    Attributes
    ----------
    future : concurrent.futures.Future
        Holds what was found.
    retry_at : float
        When a failed start may be tried again; infinity for never.
    """

    def __init__(self) -> None:
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()  # so that no waiter can cancel it
        self.retry_at = math.inf

    def is_outdated(self) -> bool:
        return self.future.done() and time.monotonic() >= self.retry_at


class Starts:
    """The starts of one library in this process, by the settings that they depend on.

    Parameters
    ----------
    name : str
        Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._starts: dict[Hashable, Start] = {}
        os.register_at_fork(after_in_child=self._forked)

    def begin(self, key: Hashable, run: Callable[[Start], Any]) -> Start:
        """Give the start of this *key*; if there is none yet, have a thread call *run*.

        *run* returns what was found, and does not raise.
        """
        known = self._starts.get(key)
        if known is not None and not known.is_outdated():
            return known
        new = self._starts[key] = Start()
        # Not an executor's thread: the process would wait for it at exit.
        threading.Thread(
            target=lambda: new.future.set_result(run(new)), name=self._name, daemon=True
        ).start()
        return new

    def _forked(self) -> None:
        """Drop starts in progress: a forked child does not have their threads."""
        self._starts = {key: one for key, one in self._starts.items() if one.future.done()}
