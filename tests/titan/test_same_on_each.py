"""The same two files on each TorchTitan: the same numbers, under the same names. `make test-current` runs it again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import jobs
import mds_data
from layouts_jobs import entry, layout, run_plan
from mosaic_photon.checkpoints.contents import read_shapes
from mosaic_photon.cli import main as cli
from mosaic_photon.models.resized import build
from mosaic_photon.train_spec import build_train_spec, load_job_model

FLAGS = (
    "--training.steps=10", "--validation.enable", "--validation.steps=2", "--validation.freq=5", "--checkpoint.enable",
    "--checkpoint.interval=5", "--training.seq_len=16", "--validation.seq_len=16",
)  # fmt: skip
MUP = "[mup]\nenabled = true\nbase_width = 32\n"
JOBS = {
    "llama3": jobs.JOB,
    "llama3 with muP": jobs.JOB + MUP + "base_depth = 1\nattention_scale = true\ninput_multiplier = 2.0\n",
    "mpt_mup": jobs.JOB.replace('"llama3_mosaic"', '"mpt_mup_mosaic"').replace("dim = 64", "d_model = 64") + MUP,
    "qwen3": jobs.of("qwen3"),
    "qwen3 with experts": jobs.of("qwen3").replace("debugmodel", "debugmodel_moe"),
    "deepseek_v3": jobs.of("deepseek_v3"),
}
LOSSES = {
    "llama3": [8.12446, 8.10303, 8.04776, 7.93646, 8.06476, 7.88222, 8.07592, 7.81965, 7.93270, 7.85529],
    "llama3 with muP": [7.87742, 7.86279, 7.82856, 7.75595, 7.86875, 7.75312, 7.89266, 7.70678, 7.79773, 7.76245],
    "mpt_mup": [7.62713, 7.62267, 7.63546, 7.62811, 7.58732, 7.58536, 7.58843, 7.59790, 7.58319, 7.55829],
    "qwen3": [8.75857, 8.57169, 8.68084, 8.50029, 8.40269, 8.16139, 8.23007, 8.30023, 7.94488, 7.98861],
    "qwen3 with experts": [8.12428, 8.09949, 8.04663, 7.93602, 8.06387, 7.88692, 8.08127, 7.81992, 7.93878, 7.85985],
    "deepseek_v3": [8.12637, 8.10151, 8.04775, 7.93675, 8.06601, 7.88649, 8.08429, 7.82094, 7.93454, 7.86307],
}
VALIDATION = {
    "llama3": [8.1253, 8.0689, 8.0237],
    "llama3 with muP": [7.8810, 7.8633, 7.8445],
    "mpt_mup": [7.6174, 7.6386, 7.6173],
    "qwen3": [8.5304, 8.3319, 8.2095],
    "qwen3 with experts": [8.1243, 8.0695, 8.0235],
    "deepseek_v3": [8.1258, 8.0718, 8.0247],
}
"""As TorchTitan 0.2.2 has reported them on torch 2.11: at each step, and at 1, 5 and 10."""
TOLERANCE = {"qwen3 with experts": 1e-4, "deepseek_v3": 1e-4}
"""Where experts are chosen, a last bit may choose another one."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples whose tokens are a formula's."""
    folder = tmp_path_factory.mktemp("formula")
    for split, first in (("train", 0), ("val", 500)):
        mds_data.write_mds(folder / split, 64, start=first)
    return folder


@pytest.fixture(scope="module", params=JOBS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[str, Path]:
    """Ten steps of a model: which, and where."""
    folder = tmp_path_factory.mktemp("run")
    assert jobs.run_here(jobs.write_job(folder, data, JOBS[request.param]), *FLAGS) == 0
    return request.param, folder


def test_losses(run: tuple[str, Path]) -> None:
    model, folder = run
    tolerance = TOLERANCE.get(model, 1e-5)
    assert list(jobs.scalars(folder).values()) == pytest.approx(LOSSES[model], rel=tolerance)
    validated = list(jobs.scalars(folder, "validation_metrics/loss").values())
    assert validated == pytest.approx(VALIDATION[model], rel=tolerance)


@pytest.mark.parametrize("run", ["llama3"], indirect=True)
def test_names_in_a_checkpoint(run: tuple[str, Path]) -> None:
    shapes = read_shapes(str(run[1] / "out/checkpoint/step-5"))
    layer = {
        "attention.wq.weight": (64, 64), "attention.wk.weight": (64, 64), "attention.wv.weight": (64, 64),
        "attention.wo.weight": (64, 64), "attention_norm.weight": (64,), "ffn_norm.weight": (64,),
        "feed_forward.w1.weight": (256, 64), "feed_forward.w2.weight": (64, 256), "feed_forward.w3.weight": (256, 64),
    }  # fmt: skip
    model = {f"layers.{number}.{name}": shape for number in (0, 1) for name, shape in layer.items()}
    model |= {"tok_embeddings.weight": (2048, 64), "norm.weight": (64,), "output.weight": (2048, 64)}
    assert {name: shape for name, shape in shapes.items() if name in model} == model
    kept = {name for name in shapes if name.startswith("optimizer.state.")}
    assert kept == {f"optimizer.state.{name}.{key}" for name in model for key in ("exp_avg", "exp_avg_sq", "step")}
    rest = {name for name in shapes if not name.startswith(("optimizer.", "generators.")) and name not in model}
    assert rest == {
        "train_state.step", "train_state.ntokens_seen", "lr_scheduler.last_epoch", "dataloader.mosaic_dataloader",
        "callbacks.composer_callbacks",
    }  # fmt: skip


MEASURED = {
    "embedding": [[0.80324, 0.80612, 0.80337], [0.79020, 0.80310, 0.80367]],
    "attention": [[0.00397, 0.00417, 0.00445], [0.00469, 0.00489, 0.00473]],
    "feed-forward": [[0.00324, 0.00326, 0.00330], [0.00352, 0.00351, 0.00354]],
    "block": [[0.80334, 0.80621, 0.80340], [0.79043, 0.80327, 0.80370]],
    "logits": [[0.78981, 0.55614, 0.39306], [0.77977, 0.55058, 0.39062]],
}
"""Mean |activation| on 0.2.2, before and after a step, at three widths."""


def test_coordinate_check(tmp_path: Path, data: Path) -> None:
    mup = "[mup]\nenabled = true\nbase_width = 64\nbase_depth = 2\nattention_scale = true\n"
    words = [
        jobs.write_job(tmp_path, data, jobs.JOB + mup)[1],
        "--widths",
        "64",
        "128",
        "256",
        "--seeds=2",
        "--steps=1",
    ]
    assert cli(["coord-check", *words, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "coord_check_width.json").read_text())
    for kind, measured in zip(report["kinds"], report["activations"], strict=True):
        assert measured == [pytest.approx(row, abs=1e-5) for row in MEASURED[kind]], kind


EXPERTS = {"moe.experts.w1", "moe.experts.w2", "moe.experts.w3", "moe.router.gate.weight", "moe.expert_bias"}
SHARED = {f"moe.shared_experts.{name}.weight" for name in ("w1", "w2", "w3")}
NORMS = {"attention_norm.weight", "ffn_norm.weight"}
LATENT = {f"attention.{name}.weight" for name in ("wq", "wkv_a", "kv_norm", "wkv_b", "wo")}
DENSE = {f"feed_forward.{name}.weight" for name in ("w1", "w2", "w3")}
QUERIES = {f"attention.{name}.weight" for name in ("wq", "wk", "wv", "wo", "q_norm", "k_norm")}
LAYERS = {
    "qwen3 with experts": [NORMS | QUERIES | EXPERTS] * 2,
    "deepseek_v3": [NORMS | LATENT | DENSE, NORMS | LATENT | EXPERTS | SHARED],
}


@pytest.mark.parametrize("run", LAYERS, indirect=True)
def test_names_of_layers_with_experts(run: tuple[str, Path]) -> None:
    shapes = read_shapes(str(run[1] / "out/checkpoint/step-5"))
    model = {f"layers.{number}.{name}" for number, names in enumerate(LAYERS[run[0]]) for name in names}
    model |= {"tok_embeddings.weight", "norm.weight", "output.weight"}
    others = ("optimizer.", "generators.", "train_state.", "lr_scheduler.", "dataloader.", "callbacks.")
    assert {name for name in shapes if not name.startswith(others)} == model
    kept = {name.removesuffix(".exp_avg") for name in shapes if name.endswith(".exp_avg")}
    assert kept == {f"optimizer.state.{name}" for name in model if not name.endswith("expert_bias")}


HUGGING_FACE = {
    "llama3": "model.layers.1.self_attn.k_proj.weight",
    "qwen3": "model.layers.1.self_attn.q_norm.weight",
    "qwen3 with experts": "model.layers.1.mlp.experts.63.down_proj.weight",
    "deepseek_v3": "model.layers.1.mlp.gate.e_score_correction_bias",
}


@pytest.mark.parametrize("run", HUGGING_FACE, indirect=True)
def test_to_hugging_face_and_back(run: tuple[str, Path]) -> None:
    job, args = load_job_model(str(run[1] / "job.toml"))
    args.update_from_config(job)
    spec = build_train_spec(job.model.name)
    state, adapter = build(spec.model_cls, args, seed=3).state_dict(), spec.state_dict_adapter(args, None)
    there = adapter.to_hf(dict(state))
    assert HUGGING_FACE[run[0]] in there
    assert ("lm_head.weight" in there) == (run[0] != "qwen3")  # whose head is its embedding
    back = adapter.from_hf(there)
    dropped = {name for name in state if name.endswith("expert_bias")} if run[0].startswith("qwen3") else set()
    assert set(back) == set(state) - dropped
    assert all(torch.equal(back[name], state[name]) for name in back)


FLAVORS = json.loads((jobs.ROOT / "tests" / "assets" / "flavors_022.json").read_text())
"""Fields of 0.2.2's model args, by model and flavor."""


@pytest.mark.parametrize("model", ["llama3", "qwen3", "deepseek_v3"])
def test_flavors(model: str) -> None:
    args = build_train_spec(f"{model}_mosaic").model_args
    fields = {f"{model}/{flavor}": dataclasses.asdict(flavor_args) for flavor, flavor_args in args.items()}
    for of_flavor in fields.values():
        of_flavor.pop("_enforced", None)
        of_flavor.get("moe_args", {}).pop("_debug_force_load_balance", None)
    assert fields == {name: known for name, known in FLAVORS.items() if name.startswith(f"{model}/")}


TO_SPLIT = {
    "llama3": (jobs.JOB, LOSSES["llama3"]),
    "mpt_mup": (
        JOBS["mpt_mup"].replace(
            "d_model = 64", "d_model = 64\ntie_word_embeddings = false\nattn_config.fused_qkv = false"
        ),
        [7.61850, 7.62710, 7.63226, 7.64357, 7.58979, 7.56537, 7.61076, 7.59717, 7.60129, 7.58546],
    ),
}
"""Models that can be laid out in each way, and 0.2.2's losses in one process."""
LAYOUTS = {
    "one process": layout(1, 2),
    "FSDP2 ×2": layout(2, 2, shard=2),
    "TP ×2": layout(2, 2, tp=2),
    "PP ×2": layout(2, 2, pp=2),
    "FSDP2 ×2, PP ×2": layout(4, 2, shard=2, pp=2),
}


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """Ten steps of each in all layouts, in folders by their names."""
    root, flags = tmp_path_factory.mktemp("layouts"), ("--training.steps=10", "--training.seq_len=16")
    plan = [
        entry(root / model / name, f"{model}, {name}", layout, job, data, *flags)
        for model, (job, _) in TO_SPLIT.items()
        for name, layout in LAYOUTS.items()
    ]
    run_plan(plan, root)
    return root


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("model", TO_SPLIT)
def test_losses_in_layouts(model: str, name: str, laid_out: Path) -> None:
    assert list(jobs.scalars(laid_out / model / name).values()) == pytest.approx(TO_SPLIT[model][1], rel=1e-5)
