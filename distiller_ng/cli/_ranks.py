"""Commands under ``torchrun``: every rank does its share, the first one prints and writes (layer 5)."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist

from distiller_ng.errors import ArgumentError

__all__ = ["check_one_process", "progress_of", "ranks", "tells_errors"]

_ASKING = timedelta(seconds=3)


@contextmanager
def ranks() -> Iterator[bool]:
    """A process group for the block where ``torchrun`` started this process; gives whether it is the first rank.

    Only Python objects are exchanged, so gloo serves on every machine. Raises :class:`ArgumentError` where the ranks do
    not find each other.
    """
    started = "RANK" in os.environ and "WORLD_SIZE" in os.environ
    if not started or not dist.is_available() or dist.is_initialized():
        yield True
        return
    try:
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise ArgumentError(f"RANK and WORLD_SIZE are set, but the ranks do not find each other: {first}") from error
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()


def check_one_process(command: str) -> None:
    """Raise :class:`ArgumentError` where ``torchrun`` started several processes: each would do, and write, the same."""
    world = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and world.isdecimal() and int(world) > 1:
        raise ArgumentError(
            f"{command} runs in one process, and torchrun started {world}: start it without. To train in several, "
            "write the loop yourself, with DistributedDataParallel; sensitivity and search share their work among ranks"
        )


@contextmanager
def progress_of(*names: str) -> Iterator[None]:
    """What loggers of these names say goes to standard error, that of the first rank."""
    handler = logging.StreamHandler()
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
    for logger in loggers if first else ():
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)


def tells_errors() -> bool:
    """Whether this process says what went wrong: of those of ``torchrun`` the one that asks first.

    All of them read the same input, so all of them find what is wrong with it.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or not dist.is_available():
        return True
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=_ASKING,
            wait_for_workers=False,
        )
        return int(store.add(f"distiller_ng/told/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1)) == 1
    except (KeyError, ValueError, RuntimeError):  # not of torchrun: each for itself
        return True
