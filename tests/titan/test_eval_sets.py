"""Several validation sets: what llm-foundry's own evaluation of them gives, in every layout, on each TorchTitan."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import composer_jobs
import jobs
import mds_data
from layouts_jobs import ON_03, Layout, layout, run_plan
from mosaic_photon.train_spec import load_job_model

SETS = {"text": "text", "formula/ragged": "formula"}
"""Label -> folder. Neither fills its last batch."""
DATA = jobs.DATA.replace('split = "train"', 'split = "train"\nmax_seq_len = 64').partition("[mosaic_eval_dataloader]")[
    0
]
ONE = "one process"
LAYOUTS = {ONE: layout(1, 8), "FSDP2 ×2, PP ×2": layout(4, 4, shard=2, pp=2)}
SLOW = {"DDP ×2": layout(2, 4, replicate=2, shard=1), "TP ×2": layout(2, 8, tp=2)}
pytestmark = pytest.mark.timeout(600)
METRICS = ("loss", "perplexity", "bits_per_byte")


def loaders(data: Path) -> list[dict[str, Any]]:
    """llm-foundry's list."""
    common: dict[str, Any] = {"name": "text", "drop_last": False, "num_workers": 0, "pin_memory": False}
    return [
        {
            "label": label,
            **common,
            "dataset": {"local": str(data / folder), "split": "val", "shuffle": False, "max_seq_len": 64},
        }
        for label, folder in SETS.items()
    ]


def write(folder: Path, data: Path, steps: int = 1) -> list[str]:
    """A job that validates on the sets after its first step, by their tables."""
    tables = "".join(
        f'[mosaic_eval_dataloaders."{label}"]\nname = "text"\n[mosaic_eval_dataloaders."{label}".dataset]\n'
        f'local = "{data / name}"\nsplit = "val"\nmax_seq_len = 64\n'
        for label, name in SETS.items()
    )
    job = composer_jobs.job(steps, "").replace("global_batch_size = 4", "global_batch_size = 8")
    job = job.replace("rope = true", "fused_qkv = false").replace("[validation]\n", "[validation]\nenable = true\n")
    return jobs.write_job(folder, data / "text", job, DATA + tables)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    folder = tmp_path_factory.mktemp("sets")
    (folder / "text").symlink_to(prepared_data)
    mds_data.write_mds(folder / "formula" / "val", 27, encoding="ndarray:int32:65")
    return folder


@pytest.fixture(scope="module")
def validated(tmp_path_factory: pytest.TempPathFactory, data: Path, request: Any) -> dict[str, Path]:
    """A job in each layout that a test of this session is about, all in one driver."""
    root = tmp_path_factory.mktemp("layouts")
    asked = {one.callspec.params["name"] for one in request.session.items if "name" in getattr(one, "fixturenames", ())
             and one.path == request.path}  # fmt: skip
    wanted: dict[str, Layout] = {name: how for name, how in (LAYOUTS | SLOW).items() if name == ONE or name in asked}
    plan = []
    for name, how in wanted.items():
        rows = next(flag for flag in how.flags if "local_batch_size" in flag).replace("training", "validation")
        arguments = [*write(root / name, data), "--", *how.flags, rows, "--checkpoint.enable"]
        plan.append({"name": name, "ranks": how.ranks, "arguments": arguments, "log": str(root / name / "log")})
    run_plan(plan, root)
    return {name: root / name for name in wanted}


def numbers(folder: Path) -> dict[str, float]:
    """What each set came to after the first step."""
    names = [f"{label}/{metric}" for label in SETS for metric in METRICS]
    return {name: jobs.scalars(folder, f"validation_metrics/{name}")[1] for name in names}


def foundrys_own(folder: Path, data: Path) -> dict[str, float]:
    """llm-foundry's evaluators in Composer's Trainer, with the weights of the job's checkpoint."""
    from composer import Trainer
    from llmfoundry.utils.builders import add_metrics_to_eval_loaders, build_composer_model, build_eval_loaders
    from transformers import AutoTokenizer

    from mosaic_photon.models.mpt_mup.state_dict_adapter import to_foundry_name

    args = load_job_model(str(folder / "job.toml"))[1]
    weights = {name: one for name, one in jobs.whole_state(folder, 1).items() if not name.startswith("optimizer")}
    model = build_composer_model(name="mpt_mup_causal_lm", cfg=args.foundry_config(), tokenizer=None)
    model.model.load_state_dict({to_foundry_name(name): one for name, one in weights.items() if torch.is_tensor(one)})
    configs = [config | {"prefetch_factor": None, "persistent_workers": False} for config in loaders(data)]
    evaluators = build_eval_loaders(copy.deepcopy(configs), AutoTokenizer.from_pretrained(jobs.TOKENIZER), 8)
    metrics = ["LanguageCrossEntropy", "LanguagePerplexity"]
    trainer = Trainer(model=model, device="cpu", progress_bar=False)
    trainer.eval(add_metrics_to_eval_loaders(evaluators, metrics))
    found = trainer.state.eval_metrics
    trainer.close()
    names = dict(zip(metrics, METRICS, strict=False))
    return {
        f"{label}/{ours}": float(found[f"eval/{label}"][theirs].compute())
        for label in SETS
        for theirs, ours in names.items()
    }


@pytest.mark.filterwarnings("ignore")
def test_the_numbers_are_llm_foundrys_own(validated: dict[str, Path], data: Path) -> None:
    ours, theirs = numbers(validated[ONE]), foundrys_own(validated[ONE], data)
    assert len(theirs) == 4 and theirs == pytest.approx({name: ours[name] for name in theirs}, rel=1e-5)
    assert ours["text/loss"] != pytest.approx(ours["formula/ragged/loss"], rel=1e-4)  # so that it would be seen
    assert jobs.scalars(validated[ONE], "validation_metrics/loss") == {}


@pytest.mark.parametrize("name", [*list(LAYOUTS)[1:], *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_they_are_the_same_in_a_layout(validated: dict[str, Path], name: str) -> None:
    one, here = numbers(validated[ONE]), numbers(validated[name])
    assert here == pytest.approx(one, rel=1e-5)
    for label in SETS:  # of the same bytes to the last one: they are whole numbers
        ratios = [found[f"{label}/bits_per_byte"] / found[f"{label}/loss"] * math.log(2) for found in (one, here)]
        assert ratios[0] == pytest.approx(ratios[1], rel=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not ON_03, reason="0.2.2 has no context parallelism on a CPU")
def test_they_are_the_same_in_context_parallelism(tmp_path: Path) -> None:
    """Ranks that share a sequence have its bytes once."""
    for split, first in (("train", 0), ("val", 500)):
        mds_data.write_mds(tmp_path / split, 30, start=first, encoding="ndarray:int32:257")
    job = jobs.JOB.replace("seq_len = 64", "seq_len = 256").replace("[validation]\n", "[validation]\nenable = true\n")
    data = jobs.DATA.replace("[mosaic_eval_dataloader", "[mosaic_eval_dataloaders.web")
    plan = []
    for name, how in (("one", layout(1, 2)), ("cp", layout(2, 2, cp=2))):
        arguments = [*jobs.write_job(tmp_path / name, tmp_path, job, data), "--", *how.flags, "--training.steps=1"]
        plan.append({"name": name, "ranks": how.ranks, "arguments": arguments, "log": str(tmp_path / name / "log")})
    run_plan(plan, tmp_path)
    one, here = (
        {metric: jobs.scalars(tmp_path / name, f"validation_metrics/web/{metric}")[1] for metric in METRICS}
        for name in ("one", "cp")
    )
    assert here == pytest.approx(one, rel=1e-5)
