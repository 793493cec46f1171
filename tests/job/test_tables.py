"""A job's tables are TorchTitan's, field by field, and ours; a job file written for TorchTitan means the same."""

from __future__ import annotations

import dataclasses
from typing import Any

from torchtitan.config import ConfigManager, JobConfig

from mosaic_photon.job import tables
from mosaic_photon.job.help import sentences_of
from mosaic_photon.job.kinds import is_table, types_of

OURS = {
    "model.name": "names one of this project's models",
    "optimizer": "takes any optimizer's fields: what is not set is left to the optimizer, which has other defaults",
    "lr_scheduler": "takes any schedule by name: what is not set is told from what is set beside a name",
}
"""What differs from TorchTitan's, and why."""

OUR_FIELDS = ("model.overrides", "training.disable_cuda_graphs")  # the latter is of TorchTitan 0.3


def fields_of(table: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted name -> type and default, of all fields."""
    found = {}
    for name, kind in types_of(type(table)).items():
        value = getattr(table, name)
        found |= fields_of(value, f"{prefix}{name}.") if is_table(kind) else {prefix + name: (kind, value)}
    return found


def test_names_types_and_defaults_are_torchtitan_s() -> None:
    theirs, ours = fields_of(JobConfig()), fields_of(tables.MosaicJobConfig())
    assert len(theirs) == 149
    assert theirs.keys() - ours.keys() == set()
    differ = {name for name, field in theirs.items() if ours[name] != field}
    assert {name for name in differ if name not in OURS and name.split(".")[0] not in OURS} == set()
    assert {name.split(".")[0] for name in differ} == {"model", "optimizer", "lr_scheduler"}  # each is still needed
    added = {name.split(".")[0] for name in ours.keys() - theirs.keys() if name not in OUR_FIELDS}
    assert added == {"optimizer", "lr_scheduler", "mup", "mosaic", "callbacks"}


def test_the_order_of_tables_is_torchtitan_s() -> None:
    theirs = [field.name for field in dataclasses.fields(JobConfig)]
    assert [field.name for field in dataclasses.fields(tables.MosaicJobConfig)][: len(theirs)] == theirs


def test_each_field_has_a_sentence() -> None:
    for table in vars(tables).values():
        if is_table(table):
            kinds, said = types_of(table), sentences_of(table)
            assert {name for name, kind in kinds.items() if not is_table(kind)} <= said.keys(), table
            assert all(text.endswith(".") for text in said.values()), table
            assert table.__doc__ and not table.__doc__.startswith(f"{table.__name__}("), table


def test_a_config_and_flags_are_read_as_torchtitan_reads_them(tmp_path, monkeypatch) -> None:
    """The tables whose fields are the same, from one file and the same flags."""
    from mosaic_photon.job.load import read_job

    config = tmp_path / "job.toml"
    config.write_text(
        "[training]\nsteps = 7\nmax_norm = 2\n[training.dataloader]\nnum_workers = 3\n"
        '[parallelism]\nmodule_fqns_per_model_part = [["a"], ["b", "c"]]\n'
        '[quantize.linear.float8]\nfilter_fqns = ["output"]\nrecipe_name = "rowwise"\n'
        f'[model]\nhf_assets_path = "{tmp_path}"\nconverters = ["x"]\n'
    )
    flags = [
        "--training.seq-len", "64", "--training.max_norm=0.5", "--checkpoint.enable",
        "--checkpoint.no-initial-load-model-only", "--compile.components=model,loss", "--job.description", "two words",
        "--checkpoint.initial_load_path", "None", "--training.global_batch_size", "-1", "--metrics.save_tb_folder=a=b",
        "--checkpoint.exclude_from_loading", "optimizer,dataloader", "--debug.seed=5",
        "--quantize.grouped_mm.mx.fqns=experts", "--activation_checkpoint.mode", "full",
    ]  # fmt: skip
    theirs = ConfigManager(JobConfig).parse_args([f"--job.config_file={config}", *flags])
    ours = read_job(str(config), flags).to_dict()
    ours["model"].pop("overrides"), ours["training"].pop("disable_cuda_graphs")
    for name, table in theirs.to_dict().items():
        if name not in ("optimizer", "lr_scheduler"):
            table.pop("name", None), ours[name].pop("name", None)
            assert ours[name] == table, name
