"""torchrun's own restarts: a killed rank, and an agent that is lost and comes back, with exactly the samples due."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import jobs

pytestmark = [pytest.mark.launch, pytest.mark.timeout(900)]

PACE = '[callbacks."launch.pace:Pace"]\n'
JOB = jobs.JOB.replace("steps = 4\n", "steps = 1000000\n").replace(
    "[checkpoint]\n", "[checkpoint]\nenable = true\ninterval = 10\nkeep_latest_k = 0\n"
)


def agent(arguments: list[str], *torchrun: str, log: Path) -> subprocess.Popen[bytes]:
    """A torchrun agent that prints to `log`."""
    command = [sys.executable, "-m", "torch.distributed.run", *torchrun, "--rdzv_backend=c10d", "--rdzv_id=job"]
    command += ["-m", "mosaic_photon.train_with_mosaic", *arguments, "--", "--validation.no-enable"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    environment |= {"PYTHONPATH": f"{jobs.ROOT / 'src'}:{jobs.ROOT / 'tests'}"}
    environment |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}  # as docs/launch.md says
    with log.open("wb") as out:
        return subprocess.Popen(
            command, cwd=jobs.ROOT, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )


def wait_for(condition: Callable[[], bool], log: Path, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()[-5000:]
        time.sleep(0.5)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The agent's live training processes."""
    ranks = []
    for child in psutil.Process(process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie is one too
            if "mosaic_photon.train_with_mosaic" in " ".join(child.cmdline()):
                ranks.append(child)
    return ranks


def end(process: subprocess.Popen[bytes]) -> None:
    """The agent and its ranks, at once."""
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def last_step(folder: Path) -> int:
    return max(jobs.scalars(folder), default=0)


def assert_exact(folder: Path, data: Path, alone: Path, last: int) -> None:
    """All steps up to `last` are those of one undisturbed process; a killed rank may have taken some rows with it."""
    arguments = jobs.write_job(alone, data, JOB)
    flags = (f"--training.steps={last}", "--validation.no-enable", "--checkpoint.no-enable")
    assert jobs.run_here(arguments, *flags) == 0
    for tag, tolerance in ((jobs.LOSS, 1e-4), ("n_tokens_seen", 0)):
        found, expected = jobs.scalars(folder, tag), jobs.scalars(alone, tag)
        seen = {step: value for step, value in found.items() if step <= last}
        assert len(seen) > 0.9 * last
        assert seen == pytest.approx({step: expected[step] for step in seen}, rel=tolerance), tag


def test_a_killed_rank_is_started_again_and_goes_on_exactly(prepared_data: Path, tmp_path: Path) -> None:
    arguments = jobs.write_job(tmp_path / "job", prepared_data, JOB + PACE)
    log = tmp_path / "log"
    torchrun = ["--nnodes=1", "--nproc_per_node=2", f"--rdzv_endpoint=127.0.0.1:{jobs.free_port()}", "--max-restarts=2"]
    process = agent(arguments, *torchrun, log=log)
    try:
        wait_for(lambda: last_step(tmp_path / "job") >= 15, log)
        killed = ranks_of(process)
        killed[1].kill()
        wait_for(lambda: len(ranks_of(process)) == 2 and not {*ranks_of(process)} & {*killed}, log)
        at = last_step(tmp_path / "job")
        wait_for(lambda: last_step(tmp_path / "job") >= at + 15, log)
    finally:
        end(process)
    assert_exact(tmp_path / "job", prepared_data, tmp_path / "alone", at + 15)


def test_an_agent_is_lost_and_comes_back_with_exactly_the_samples_due(prepared_data: Path, tmp_path: Path) -> None:
    arguments = jobs.write_job(tmp_path / "job", prepared_data, JOB + PACE)
    port = jobs.free_port()
    torchrun = ["--nnodes=1:2", "--nproc_per_node=1", f"--rdzv_endpoint=127.0.0.1:{port}", "--max-restarts=5"]
    torchrun += ["--local_addr=127.0.0.1"]
    first_log, second_log = tmp_path / "first.log", tmp_path / "second.log"

    def start_second() -> subprocess.Popen[bytes]:
        return agent(arguments, *torchrun, "--rdzv_conf=is_host=false", log=second_log)

    def world_size(process: subprocess.Popen[bytes]) -> int:
        """Of the agent's rank; 0 while it has none."""
        try:
            (rank,) = ranks_of(process)
            return int(rank.environ()["WORLD_SIZE"])
        except (ValueError, psutil.Error):
            return 0

    first = agent(arguments, *torchrun, "--rdzv_conf=is_host=true,last_call_timeout=15", log=first_log)
    agents = [first, start_second()]
    try:
        wait_for(lambda: world_size(first) == 2 and last_step(tmp_path / "job") >= 15, first_log)
        end(agents.pop())
        wait_for(lambda: world_size(first) == 1, first_log)
        at = last_step(tmp_path / "job")
        wait_for(lambda: last_step(tmp_path / "job") >= at + 15, first_log)
        agents.append(start_second())
        wait_for(lambda: world_size(first) == 2, first_log)
        at = last_step(tmp_path / "job")
        wait_for(lambda: last_step(tmp_path / "job") >= at + 15, first_log)
        last = at + 15
        agents[-1].send_signal(signal.SIGTERM)
    finally:
        for process in agents:
            end(process)
    assert_exact(tmp_path / "job", prepared_data, tmp_path / "alone", last)
