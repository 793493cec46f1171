"""A signal whose Python handler cannot run, because the main thread waits in native code for a rank that is gone."""

import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

STUCK = """
import ctypes, sys
import torch.distributed as dist
from mosaic_photon.train import stop as graceful_stop
graceful_stop.STUCK_AFTER_S = graceful_stop.REPEAT_AFTER_S = 1.0
where, rank = sys.argv[2], int(sys.argv[3])
ranks = 2 if where == "agree" else 1
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=ranks)
if rank == 1:  # the one that does not answer
    sys.stdin.read()
    sys.exit()
stop = graceful_stop.GracefulStop()
if where != "start":
    stop.activate()
    stop.begin_step()
if where == "agree":
    stop.end_step()
    print("ready", flush=True)
    stop.agreed()
print("ready", flush=True)
libc, mutex = ctypes.CDLL("libc.so.6"), ctypes.create_string_buffer(64)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_lock(mutex)  # waits for itself for ever; no signal interrupts it
"""


@pytest.mark.parametrize("where", ["start", "step", "agree"])
def test_a_stuck_process_ends_by_itself(tmp_path: Path, where: str) -> None:
    command = [sys.executable, "-c", STUCK, str(tmp_path / "store"), where]
    with ExitStack() as cleanup:
        processes = [
            cleanup.enter_context(subprocess.Popen([*command, rank], stdin=PIPE, stdout=PIPE, text=True))
            for rank in (["0", "1"] if where == "agree" else ["0"])
        ]
        for process in processes:
            cleanup.callback(process.kill)
        assert processes[0].stdout is not None and processes[0].stdout.readline() == "ready\n"
        time.sleep(0.5)
        processes[0].terminate()
        assert processes[0].wait(timeout=60) == 143


SAVING = """
import ctypes, os, signal, sys, threading, time
import torch.distributed as dist
from mosaic_photon.train import stop as graceful_stop
graceful_stop.STUCK_AFTER_S = 0.2
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
stop = graceful_stop.GracefulStop()
stop.activate()
stop.begin_step()
stop.end_step()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
libc, mutex = ctypes.CDLL("libc.so.6"), ctypes.create_string_buffer(64)
until = (ctypes.c_long * 2)(int(time.time()) + 3)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_timedlock(mutex, until)  # two seconds or more that no signal interrupts, as in a collective
print("saved", stop.agreed(), flush=True)
"""


def test_what_follows_a_step_may_take_its_time(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVING, str(tmp_path / "store")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    assert printed == "saved True\n"


OTHERS = """
import ctypes, os, signal, subprocess, sys, threading, time
import torch.distributed as dist
from mosaic_photon.train import stop as graceful_stop
graceful_stop.STUCK_AFTER_S = 0.2
dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
stop = graceful_stop.GracefulStop()
stop.activate()
for number in (signal.SIGCHLD, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)  # as torch does for SIGCHLD where a DataLoader has workers
stop.begin_step()
child = subprocess.Popen(["sleep", "0.1"])
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR1)).start()
libc, mutex = ctypes.CDLL("libc.so.6"), ctypes.create_string_buffer(64)
until = (ctypes.c_long * 2)(int(time.time()) + 3)
libc.pthread_mutex_lock(mutex)
libc.pthread_mutex_timedlock(mutex, until)  # one long native call, as when a step is compiled
print("alive", stop.agreed(), flush=True)
"""


def test_no_other_signal_is_taken_for_a_request_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OTHERS, str(tmp_path / "store")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240).stdout
    assert printed == "alive False\n"


FORKED = """
import os, signal, sys, time
from mosaic_photon.train import stop as graceful_stop
stop = graceful_stop.GracefulStop()
stop.activate()
said = []
graceful_stop.logger.info = graceful_stop.logger.error = lambda text: os.write(1, (text + "\\n").encode())
def forked(number):
    pid = os.fork()
    if pid == 0:
        os.kill(os.getpid(), number)
        time.sleep(0.2)  # here a handler would run
        os._exit(7)
    return os.waitpid(pid, 0)[1]
print(os.WEXITSTATUS(forked(signal.SIGINT)), os.WTERMSIG(forked(signal.SIGTERM)), flush=True)
stop.restore()
print(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, os.WTERMSIG(forked(signal.SIGTERM)), flush=True)
"""


def test_a_forked_process_leaves_stopping_to_its_parent() -> None:
    """Ctrl-C does not end a worker, whose parent needs it for the step under way; SIGTERM does; neither says a word."""
    printed = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=True, timeout=240)
    assert printed.stdout.splitlines() == ["7 15", "True 15"]


IMPORTING = """
import signal
from mosaic_photon.signals import Stopped, stop_signals
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
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=240).stdout
    assert printed.split() == ["imported", "stopped"]
