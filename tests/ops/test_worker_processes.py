"""Workers of a pool do not outlive the process that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from distiller_ng.ops import worker_processes

CODE = """\
import os, sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

sys.path.append(sys.argv[1])  # the module alone: importing the package would cost seconds in each process
from worker_processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()  # no worker: nothing happens
    with ProcessPoolExecutor(1, get_context("spawn"), end_with_parent) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(tmp_path, number):
    script = tmp_path / "pool.py"
    script.write_text(CODE)
    main = subprocess.Popen(
        [sys.executable, str(script), os.path.dirname(worker_processes.__file__)], stdout=subprocess.PIPE, text=True
    )
    worker = int(main.stdout.readline())
    main.send_signal(number)
    # The worker holds the other end: the pipe is at its end when it is gone.
    began = time.monotonic()
    assert main.stdout.read() == "" and time.monotonic() - began < 30
    main.wait()
    with pytest.raises(ProcessLookupError):
        for _ in range(100):
            os.kill(worker, 0)
            time.sleep(0.05)
