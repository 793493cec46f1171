"""A job that is killed by SIGKILL again and again, and started by the same command on other numbers of ranks.

It trains on every sample once, has the losses of a job that was never disturbed, and leaves its data as it was.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jobs
import mds_data
from mosaic_photon.report.record import read_run

BATCH = 4
SHARD_SAMPLES = 16
JOB = f"""
[job]
dump_folder = "{{out}}"
[model]
name = "llama3_mosaic"
flavor = "debugmodel"
hf_assets_path = "{{tokenizer}}"
[model.overrides]
dim = 64
n_layers = 2
n_heads = 4
[optimizer]
lr = 3e-3
[lr_scheduler]
warmup_steps = 2
[training]
local_batch_size = 1
global_batch_size = {BATCH}
seq_len = {mds_data.SEQ_LEN}
mixed_precision_param = "float32"
[activation_checkpoint]
mode = "none"
[metrics]
log_freq = 1
[checkpoint]
enable = true
interval = 2
keep_latest_k = 3
last_save_model_only = false
[debug]
seed = 3
[callbacks."handed_out:HandedOut"]
folder = "{{out}}/handed-out"
"""
DATA = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset]
remote = "{data}"
local = "CACHE"
shuffle = true
shuffle_seed = 5
num_canonical_nodes = 2
cache_limit = "9kb"
predownload = 16
"""
MOMENTS = ("in a save", "in a fetch", "at any time", "at the start", "in a step")
STEP_BYTES = 80
"""About what a step adds to the records."""


class Machine:
    """One process that has everything imported, and the jobs that it forks."""

    def __init__(self) -> None:
        paths = [str(Path(__file__).parent), str(jobs.ROOT / "tests"), str(jobs.ROOT / "src")]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "forking.py")],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, ranks: int, argv: list[str], log: Path) -> list[int]:
        """Start a job; returns its ranks' process ids."""
        assert self.process.stdin is not None
        print(json.dumps({"ranks": ranks, "argv": argv, "log": str(log)}), file=self.process.stdin, flush=True)
        return self._answer()

    def wait(self) -> list[int]:
        """Wait for the job that was started last; returns its ranks' exit codes."""
        return self._answer()

    def run(self, ranks: int, argv: list[str], log: Path) -> None:
        self.start(ranks, argv, log)
        assert self.wait() == [0] * ranks, log.read_text()[-4000:]

    def _answer(self) -> list[int]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.process.stdin.close()
    assert machine.process.wait(timeout=60) == 0


def command(folder: Path, remote: Path, steps: int, *flags: str) -> list[str]:
    """The job's command line; its records, checkpoints and cache are under `folder`."""
    arguments = jobs.write_job(folder, remote, JOB, DATA.replace("CACHE", str(folder / "cache")))
    (folder / "out/handed-out").mkdir(parents=True, exist_ok=True)
    return [*arguments, "--", f"--training.steps={steps}", *flags]


def records(folder: Path, what: str) -> dict[int, set[float]]:
    """Step -> all values that any process wrote down for it; a line that a kill cut off is left out."""
    found = defaultdict(set)
    for path in (folder / "out/handed-out").iterdir():
        for line in path.read_text().splitlines(keepends=True):
            if line.startswith(what) and line.endswith("\n"):
                _, step, value = line.split()
                found[int(step)].add(float(value))
    return dict(sorted(found.items()))


def listing(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Path -> size, time and hash of each file."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns, hashlib.sha1(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def moment(name: str, folder: Path, chance: random.Random, usual_s: float) -> Callable[[], bool]:
    """Whether the moment has come that a kill waits for; asked every millisecond. At the latest after a few steps."""
    begin, checkpoints = time.monotonic(), folder / "out/checkpoint"
    said, few, most = size(folder / "out/handed-out"), chance.randrange(4) * STEP_BYTES, 6 * STEP_BYTES
    old, cached = set(half_written(checkpoints)), set((folder / "cache").rglob("*.mds"))
    delay = chance.random() * usual_s

    def wrote() -> int:
        return size(folder / "out/handed-out") - said

    come = {
        "at any time": lambda: time.monotonic() - begin > delay,
        "at the start": lambda: time.monotonic() - begin > delay / 4,
        "in a save": lambda: wrote() > few and not half_written(checkpoints) <= old,
        "in a fetch": lambda: wrote() >= few and set((folder / "cache").rglob("*.mds")) != cached,
        "in a step": lambda: wrote() > few,
    }
    if name in come:
        return lambda: come[name]() or wrote() > most
    last = name.rpartition(" ")[2]
    return (checkpoints / last).exists if chance.random() < 0.5 else (checkpoints / last / ".metadata").exists


def half_written(checkpoints: Path) -> set[Path]:
    """Folders of checkpoints without the file that is written last."""
    return {path for path in checkpoints.glob("step-*") if not (path / ".metadata").exists()}


def size(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def kill_at(come: Callable[[], bool], pids: list[int], machine: Machine) -> bool:
    """Kill all ranks when the moment has come; False for a job that was over before."""
    for _ in range(300_000):
        if come() or not any(alive(pid) for pid in pids):
            break
        time.sleep(0.001)
    for pid in pids:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)  # these processes only
    return -signal.SIGKILL in machine.wait()


def alive(pid: int) -> bool:
    """Whether the process runs; its parent reaps it in turn, so that its number is not another's yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def killed_again_and_again(machine: Machine, tmp_path: Path, kills: int, steps: int, layouts: list[int]) -> Any:
    chance = random.Random(11)
    samples = -(-steps * BATCH // SHARD_SAMPLES) * SHARD_SAMPLES
    remote = mds_data.write_mds(tmp_path / "remote", samples, shard_samples=SHARD_SAMPLES)
    before = listing(remote)
    machine.run(1, command(tmp_path / "pretrained", remote, 2), tmp_path / "log")
    begin = f"--checkpoint.initial_load_path={tmp_path}/pretrained/out/checkpoint/step-2"
    started = time.monotonic()
    machine.run(1, command(tmp_path / "undisturbed", remote, steps, begin), tmp_path / "log")
    usual_s = time.monotonic() - started

    folder = tmp_path / "killed"
    same_command = command(folder, remote, steps, begin)
    killed = []
    for number in range(kills):
        ranks, name = layouts[number % len(layouts)], MOMENTS[number % len(MOMENTS)]
        if number >= kills * 7 // 8:
            name = f"at the end, step-{steps}"
        come = moment(name, folder, chance, usual_s)
        log = tmp_path / f"log-{number}"
        log.touch()  # a kill may come before the rank has opened it
        pids = machine.start(ranks, same_command, log)
        killed += [name] if kill_at(come, pids, machine) else []
        assert "Traceback" not in log.read_text(), log.read_text()[-4000:]
    machine.run(layouts[-1], same_command, tmp_path / "log-last")

    expected, found = records(tmp_path / "undisturbed", "sample"), records(folder, "sample")
    assert found == expected
    everything = mds_data.flat(expected.values())
    assert len(everything) == len(set(everything)) == steps * BATCH
    losses, undisturbed = records(folder, "loss"), records(tmp_path / "undisturbed", "loss")
    for step, values in undisturbed.items():
        (value,) = values
        assert list(losses[step]) == pytest.approx([value] * len(losses[step]), rel=1e-4), step
    assert listing(remote) == before
    same_record(folder / "out", tmp_path / "undisturbed/out", steps)
    return killed


def same_record(killed: Path, undisturbed: Path, steps: int) -> None:
    """What counts in the killed run's record is what the other's has; nothing in it is cut."""
    run, other = read_run(killed), read_run(undisturbed)
    assert run.notes == other.notes == []
    assert [attempt.attempt for attempt in run.attempts] == list(range(1, len(run.attempts) + 1))
    assert run.series.keys() == other.series.keys()
    for name in (jobs.LOSS, "lr", "grad_norm", "n_tokens_seen"):
        one, two = run.series[name], other.series[name]
        assert one.steps == two.steps == list(range(1, steps + 1)), name
        assert one.tokens == two.tokens
        assert one.values == pytest.approx(two.values, rel=1e-4)


def test_killed_four_times(machine: Machine, tmp_path: Path) -> None:
    assert killed_again_and_again(machine, tmp_path, kills=4, steps=16, layouts=[1, 2])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_forty_moments(machine: Machine, tmp_path: Path) -> None:
    killed = killed_again_and_again(machine, tmp_path, kills=40, steps=80, layouts=[1, 2, 4])
    assert len(killed) >= 35, killed
    assert {*killed} >= {*MOMENTS}
