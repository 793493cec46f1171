"""A signal whose Python handler cannot run, because the main thread waits in native code for a rank that is gone."""

import subprocess
import sys
import time

STUCK = """
import ctypes, sys
from mosaic_photon import graceful_stop
graceful_stop.STUCK_AFTER_S = 1.0
graceful_stop.GracefulStop().activate()
print("ready", flush=True)
libc, mutex = ctypes.CDLL("libc.so.6"), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # waits for itself for ever; no signal interrupts it
"""


def test_a_stuck_process_ends_by_itself() -> None:
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=30) == 143
