"""Mistakes in a job of two processes: whichever rank finds one, it is said once, and the job ends."""

import json
import os
from pathlib import Path

import jobs
from mds_data import write_mds


def error_lines(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("error")]


def test_a_damaged_shard_is_named_whichever_rank_finds_it(tmp_path: Path) -> None:
    os.truncate(write_mds(tmp_path / "train", 40) / "shard.00001.mds", 100)  # the second process checks it
    printed = jobs.launch(jobs.write_job(tmp_path, tmp_path), "--training.seq_len=16", ranks=2, expect=1)
    assert len(error_lines(printed)) == 1, printed
    (line,) = error_lines(printed)
    assert "shard.00001.mds: has 100 bytes instead of" in line


def test_a_mistake_that_all_find_is_said_once(tmp_path: Path, prepared_data: Path) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data, jobs.JOB.replace('"AdamW"', '"AdmW"'))
    (line,) = error_lines(jobs.launch(arguments, ranks=2, expect=1))
    assert "Did you mean 'AdamW'?" in line


def test_a_wrong_flag_is_said_once_and_names_the_command(tmp_path: Path, prepared_data: Path) -> None:
    printed = jobs.launch(jobs.write_job(tmp_path, prepared_data), "--training.stepz=2", ranks=2, expect=1)
    (line,) = error_lines(printed)
    assert "--training.stepz: there is no such flag. Did you mean '--training.steps'? `-- --help` lists all." in line


def test_ranks_with_other_data_do_not_train(tmp_path: Path, prepared_data: Path) -> None:
    job = jobs.write_job(tmp_path, prepared_data)[:2]
    data = tmp_path / "data.yaml"
    dataset = {"local": str(prepared_data), "split": "train", "shuffle": True}
    dataset["shuffle_seed"] = "${oc.decode:${oc.env:RANK}}"
    data.write_text(json.dumps({"mosaic_dataloader": {"name": "text", "num_workers": 0, "dataset": dataset}}))
    printed = jobs.launch([*job, "--mosaic-config", str(data)], ranks=2, expect=1)
    assert len(error_lines(printed)) == 1, printed
    (line,) = error_lines(printed)
    assert "different data (rank 0 -> rank 1)" in line
    assert "shuffle_seed: 0 -> 1" in printed
