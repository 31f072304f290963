"""Processes that compute for another one (layer 1)."""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """End this process as soon as the one that started it is gone; called in the worker, it returns at once.

    A pool's workers wait for tasks on a pipe that they hold open themselves: when the main process is killed (SIGTERM,
    SIGKILL, out of memory), they would wait for ever, with the model in memory. Without a parent nothing happens.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_watch, args=(parent.sentinel,), name="end_with_parent", daemon=True).start()


def _watch(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)  # nothing is left to hand a result to
