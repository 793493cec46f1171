"""Two machines, as two torchrun agents with caches of their own; then one of them is lost."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import jobs
from mds_data import write_mds

SEQ_LEN = 16
JOB = jobs.JOB.replace("seq_len = 64", f"seq_len = {SEQ_LEN}").replace("global_batch_size = 4", "global_batch_size = 8")
DATA = """
[mosaic_dataloader]
name = "text"
num_workers = 0
drop_last = true
[mosaic_dataloader.dataset]
remote = "{remote}"
local = "{cache}"
split = "train"
shuffle = true
shuffle_seed = 5
num_canonical_nodes = {nodes}
validate_hash = "xxh64"
"""
FLAGS = ("--checkpoint.enable", "--checkpoint.interval=1", "--checkpoint.keep_latest_k=0")


def data_config(folder: Path, remote: str, machine: str, nodes: int = 4) -> list[str]:
    """This machine's command line: the shared job config, and a data config with the machine's own cache."""
    path = folder / f"data-{machine}.toml"
    path.write_text(DATA.format(remote=remote, cache=folder / f"cache-{machine}", nodes=nodes))
    return ["--config", str(folder / "job.toml"), "--mosaic-config", str(path)]


def agent(
    arguments: list[str], *flags: str, port: int, host: bool, log: Path | None = None, ranks: int = 1
) -> subprocess.Popen[str]:
    """torchrun on one of two machines, `ranks` processes each; `host` keeps the rendezvous' store. Prints to `log`.

    Left to themselves the agents race for the store, and with the one that has it the other would be lost as well.
    """
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes=2",
        f"--nproc_per_node={ranks}",
        "--rdzv_id=job",
    ]
    command += ["--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1"]
    command += [f"--rdzv_conf=is_host={str(host).lower()}"]
    command += ["-m", "examples.mosaic_photon.train_with_mosaic", *arguments, "--", *flags]
    return subprocess.Popen(
        command,
        cwd=jobs.ROOT,
        stdout=log.open("w") if log else subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def shards(cache: Path) -> list[Path]:
    return list((cache / "train").glob("shard.*.mds"))


def last_complete_checkpoint(folder: Path) -> int:
    return max(int(path.parent.name.removeprefix("step-")) for path in (folder / "out").rglob("step-*/.metadata"))


@pytest.mark.timeout(900)
def test_one_of_two_machines_is_lost_and_the_job_goes_on_exactly_on_the_other(
    tmp_path: Path,
    s3: Any,
) -> None:
    source = write_mds(tmp_path / "source" / "train", 640)
    remote = s3.upload(source.parent, "two-machines")
    together, alone = tmp_path / "together", tmp_path / "alone"
    for folder in (together, alone):
        jobs.write_job(folder, tmp_path, JOB, "")

    port = jobs.free_port()
    endless = (*FLAGS, "--training.steps=1000", "--parallelism.data_parallel_shard_degree=2")
    left = agent(data_config(together, remote, "a"), *endless, port=port, host=True)
    lost = agent(data_config(together, remote, "b"), *endless, port=port, host=False, log=tmp_path / "lost.log")
    watchdog = threading.Timer(240, left.kill)  # ends the wait below
    watchdog.daemon = True
    watchdog.start()
    jobs.read_until_step(left, 4)
    watchdog.cancel()
    jobs.kill(lost)
    left.communicate(timeout=240)
    assert left.returncode != 0
    assert jobs.processes_mentioning(together) == []
    for cache in ("cache-a", "cache-b"):  # each machine has fetched what it needs itself
        assert 0 < len(shards(together / cache)) <= len(shards(source.parent))

    stopped_at = last_complete_checkpoint(together)
    last = stopped_at + 4
    printed = jobs.launch(data_config(together, remote, "a"), *FLAGS, f"--training.steps={last}")
    assert f"step-{stopped_at}" in printed

    assert jobs.run_here(data_config(alone, remote, "c"), f"--training.steps={last}") == 0
    for tag, tolerance in ((jobs.LOSS, 1e-4), ("grad_norm", 1e-3), ("n_tokens_seen", 0)):
        found, expected = jobs.scalars(together, tag), jobs.scalars(alone, tag)
        assert set(range(stopped_at + 1, last + 1)) <= set(found)  # the killed rank may have taken some with it
        assert found == pytest.approx({step: expected[step] for step in found}, rel=tolerance), tag


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_of_two_machines_fetches_half_of_the_shards(tmp_path: Path, s3: Any) -> None:
    """One epoch of a job of two ranks on each, which are told apart once the process group is there."""
    source = write_mds(tmp_path / "source" / "train", 324)
    remote, folder, port = s3.upload(source.parent, "two-by-two"), tmp_path / "job", jobs.free_port()
    jobs.write_job(folder, tmp_path, JOB, "")
    flags = ("--training.steps=40", "--parallelism.data_parallel_shard_degree=4")
    agents = [
        agent(data_config(folder, remote, machine, 2), *flags, port=port, host=machine == "a", ranks=2)
        for machine in ("a", "b")
    ]
    printed = [process.communicate(timeout=600)[0] for process in agents]
    assert [process.returncode for process in agents] == [0, 0], printed
    for cache in ("cache-a", "cache-b"):
        assert abs(len(shards(folder / cache)) - len(shards(source.parent)) / 2) <= 1
