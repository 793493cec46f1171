"""W&B, offline: its own file has what TensorBoard and the record have, by the same names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2
from wandb.sdk.internal.datastore import DataStore

import jobs
from mosaic_photon.report.record import read_run


def logged(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Name -> step -> value of what W&B has written below a folder, and the config that it was told."""
    (path,) = folder.rglob("run-*.wandb")
    store, values, config = DataStore(), dict[str, dict[int, float]](), dict[str, Any]()
    store.open_for_scan(str(path))
    while data := store.scan_data():
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        config |= {item.key: json.loads(item.value_json) for item in record.run.config.update if item.key}
        row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        for name, value in row.items():
            values.setdefault(name, {})[row["_step"]] = value
    return {name: steps for name, steps in values.items() if not name.startswith("_")}, config


def test_wandb_offline_has_what_the_record_has(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    arguments = jobs.write_job(tmp_path, prepared_data)
    assert jobs.run_here(arguments, "--metrics.enable_wandb", "--validation.enable") == 0
    wandb.teardown()  # its service writes the file, after the run has told it that it ends
    values, config = logged(tmp_path / "out")
    series = read_run(tmp_path / "out").series
    assert values.keys() == series.keys()
    for name, one in series.items():
        assert values[name] == pytest.approx(dict(zip(one.steps, one.values, strict=True))), name
    assert config["training"]["steps"] == 4
    assert jobs.scalars(tmp_path) == pytest.approx(values[jobs.LOSS], rel=1e-6)
