"""The JSON Schemas that editors read: made from the tables, true of every sample config, and strict about names."""

from __future__ import annotations

import copy
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

import jobs
from mosaic_photon.job.data_config import LOADERS
from mosaic_photon.job.flags import names_of
from mosaic_photon.job.schema import FROM_ELSEWHERE, SCHEMAS, shipped
from mosaic_photon.job.stages import STAGES
from mosaic_photon.job.tables import MosaicJobConfig

SAMPLES = sorted(jobs.ROOT.glob("examples/**/*.toml"))
PAGES = [jobs.ROOT / "README.md", *sorted(jobs.ROOT.glob("docs/*.md"))]


def schema(name: str) -> Any:
    return json.loads((SCHEMAS / f"{name}.json").read_text())


def kind_of(config: dict[str, Any]) -> str:
    return "data" if set(config) <= {*LOADERS, STAGES} else "job"


def faults(config: dict[str, Any], kind: str) -> list[str]:
    return [f"{list(error.path)}: {error.message}" for error in Draft7Validator(schema(kind)).iter_errors(config)]


def samples() -> Iterator[tuple[str, dict[str, Any]]]:
    """Config files, and what stands in the documents as one."""
    for path in SAMPLES:
        yield path.name, tomllib.loads(path.read_text())
    for page in PAGES:
        for number, block in enumerate(re.findall(r"^```toml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)):
            yield f"{page.name}, block {number}", tomllib.loads(block)


def test_shipped_schemas_are_what_the_tables_give() -> None:
    for path, content in shipped().items():
        assert path.read_bytes() == content, f"{path.name}: run `python -m mosaic_photon.job.schema`"
        Draft7Validator.check_schema(json.loads(content))


@pytest.mark.parametrize(("name", "config"), samples(), ids=[name for name, _ in samples()])
def test_sample_is_valid_and_a_misspelt_key_is_not(name: str, config: dict[str, Any]) -> None:
    kind = kind_of(config)
    assert faults(config, kind) == []
    table = next(iter(config))
    wrong: Any = copy.deepcopy(config)
    wrong[f"{table}z"] = wrong.pop(table)
    assert faults(wrong, kind)
    if table in ("callbacks", "mosaic_eval_dataloaders"):  # whose keys are names
        return
    wrong = copy.deepcopy(config)
    (wrong[table][0] if isinstance(wrong[table], list) else wrong[table])["sede"] = 1
    assert any("'sede' was unexpected" in fault for fault in faults(wrong, kind))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample_names_its_schema_as_taplo_reads_it(path: Path) -> None:
    """In the first line, relative to the file, beginning with a dot."""
    directive, place = path.read_text().splitlines()[0].split()
    kind = kind_of(tomllib.loads(path.read_text()))
    assert directive == "#:schema" and place.startswith(".")
    assert (path.parent / place).resolve() == SCHEMAS / f"{kind}.json"


def test_all_fields_are_there_and_free_tables_stay_free() -> None:
    def fields(table: dict[str, Any], prefix: str = "") -> Iterator[str]:
        for name, one in table["properties"].items():
            yield from fields(one, f"{prefix}{name}.") if "properties" in one else [prefix + name]

    assert set(fields(schema("job"))) == set(names_of(MosaicJobConfig)) - FROM_ELSEWHERE
    free = {
        "optimizer": {"name": "any_of_llm_foundry's", "kwargs": {"what": [1]}},
        "lr_scheduler": {"kwargs": {"t_warmup": "10ba"}},
        "callbacks": {"my.module:Class": {"every": 3}},
        "model": {"overrides": {"dim": 64}},
    }
    assert faults(free, "job") == []


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("job", {"training": {"steps": "four"}}),
        ("job", {"training": {"dtype": "float16"}}),
        ("job", {"checkpoint": {"enable": "true"}}),
        ("job", {"model": {"converters": [1]}}),
        ("job", {"callbacks": {"lr_monitor": 1}}),
        ("job", {"mosaic": {"config": "data.toml"}}),
        ("data", {"mosaic_dataloader": {"name": "text"}}),
        ("data", {"mosaic_dataloader": {"name": "txt", "dataset": {}}}),
        ("data", {"train_loader": {"name": "text", "dataset": {"shuffle_algo": "py1"}}}),
        ("data", {"train_loader": {"name": "text", "dataset": {"streams": {"a": {"remot": "s3://b"}}}}}),
        ("data", {"train_loader": {"name": "text", "dataset": {"predownload": 0}}}),
        ("data", {"eval_loader": [{"name": "text", "dataset": {}}, {"name": "text", "dataset": {}}]}),
    ],
)
def test_wrong_values_are_marked(kind: str, config: dict[str, Any]) -> None:
    assert faults(config, kind)
