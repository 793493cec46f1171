"""The README's commands with the shipped configs, from a folder that looks like the repository's root."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jobs


@pytest.mark.parametrize(("job", "flags"), [("mosaic_job", []), ("mpt_mup_job", ["--metrics.enable_tensorboard=true"])])
def test_shipped_configs(job: str, flags: list[str], tmp_path: Path, prepared_data: Path) -> None:
    """Short and with short sequences; `make train` runs them whole."""
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(jobs.ROOT / name)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "stdlib").symlink_to(prepared_data)
    configs = "examples/mosaic_photon/configs"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", "--standalone"]
    command += ["-m", "examples.mosaic_photon.train_with_mosaic", "--config", f"{configs}/{job}.toml"]
    command += ["--mosaic-config", f"{configs}/mosaic_dataloader.toml", "--", "--training.steps=16", *flags]
    command += ["--training.seq_len=64", "--validation.seq_len=64", "--validation.steps=1", "--metrics.log_freq=1"]
    command += ["--training.local_batch_size=1", "--validation.local_batch_size=1"]
    env = {k: v for k, v in os.environ.items() if not k.startswith("MASTER_")}
    run = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    printed = run.stdout + run.stderr
    assert run.returncode == 0, printed
    assert re.search(r"step: 16 .*loss", printed), printed
    assert ("validate step:" in printed) == (job == "mosaic_job")
    assert bool(list((tmp_path / "outputs").rglob("events.*"))) == bool(flags)
