"""A signal whose Python handler cannot run, because the main thread waits in native code for a rank that is gone."""

import subprocess
import sys
import time
from pathlib import Path

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


IMPORTING = """
import signal
from mosaic_photon.prepare.pool import Stopped, stop_signals
try:
    with stop_signals():
        import asks_to_stop_while_it_is_imported
        signal.pause()
except Stopped:
    print("stopped")
"""
ASKS = "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nprint('imported')\n"


def test_a_signal_waits_for_the_end_of_an_import(tmp_path: Path) -> None:
    (tmp_path / "asks_to_stop_while_it_is_imported.py").write_text(ASKS)
    command = [sys.executable, "-c", IMPORTING]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout
    assert printed.split() == ["imported", "stopped"]
