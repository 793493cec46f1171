"""What `trace` lists is what each process of a job in two dimensions trained on; replayed, steps are the run's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import jobs
from layouts_jobs import layout
from mds_data import flat, write_mds
from mosaic_photon.cli import main
from reads_callback import trained_by

LAYOUTS = {"TP": layout(4, 2, shard=2, tp=2), "PP": layout(4, 2, shard=2, pp=2)}
STEPS = 4


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_s_samples_and_a_step_once_more_in_it(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four processes on two nodes, two micro-batches a step; one thread each."""
    write_mds(tmp_path / "train", 100)
    write_mds(tmp_path / "val", 20)
    reads = f"\n[callbacks.'reads_callback:Reads']\nfolder = '{tmp_path}'\nranks_of_node = 2\n"
    job = jobs.JOB.replace("seq_len = 64", "seq_len = 16").replace("global_batch_size = 4", "global_batch_size = 8")
    arguments = jobs.write_job(tmp_path, tmp_path, job + reads)
    flags = [*LAYOUTS[name].flags, "--checkpoint.enable", "--checkpoint.interval=2", "--debug.deterministic"]
    jobs.launch(arguments, *flags, ranks=4)

    files = [str(tmp_path / "job.toml"), str(tmp_path / "data.toml")]
    words = ["trace", *files, f"--step=1-{STEPS}", "--nnodes=2", "--nproc-per-node=2", "--json", "--", *flags]
    assert main(words) == 0
    steps = json.loads(capsys.readouterr().out)
    for process in range(4):
        dp_rank = process // 2 if name == "TP" else process % 2
        own = [sample for step in steps for sample in step["samples"] if sample["rank"] == dp_rank]
        assert [sample["sample"] for sample in own] == flat(trained_by(tmp_path, process))
        assert [sample["micro_batch"] for sample in own] == [0, 0, 1, 1] * STEPS

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    command = [*torchrun, "-m", "mosaic_photon.cli", "trace", *files, "--step=3-4", "--replay", "--json", "--", *flags]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True)
    losses, norms = jobs.scalars(tmp_path), jobs.scalars(tmp_path, "grad_norm")
    assert json.loads(done.stdout) == [
        {"step": step, "loss": losses[step], "grad_norm": norms[step]} for step in (3, 4)
    ]
