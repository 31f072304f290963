"""What a command does with a user's mistake: one clear message and exit code 2, never a traceback (layer 5)."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from distiller_ng.errors import DistillerError

__all__ = ["INTERRUPTED", "USER_ERROR", "run_guarded"]

logger = logging.getLogger(__name__)

#: Exit code of a command that was used wrongly; the same as argparse's.
USER_ERROR = 2
#: Exit code after Ctrl-C, as shells report it.
INTERRUPTED = 130


def run_guarded(command: Callable[[], object]) -> int:
    """Run ``command`` and return the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C.

    A mistake's message goes to standard error and, where a run has begun, into its log. Other exceptions are defects
    and keep their traceback.
    """
    try:
        command()
    except (DistillerError, OSError) as error:
        logger.debug("the run ended with an error", exc_info=True)
        print(f"error: {error}", file=sys.stderr)  # noqa: T201  a command's own output
        return USER_ERROR
    except KeyboardInterrupt:
        print("interrupted: continue with --resume-from and the run folder's checkpoint", file=sys.stderr)  # noqa: T201
        return INTERRUPTED
    return 0
