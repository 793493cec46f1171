"""TorchTitan 0.3: Llama 3 with the recipe, resumed in layouts; what the release lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import jobs
from layouts_jobs import Layout, entry, layout, run_plan
from mosaic_photon import register_llama3_mosaic
from mosaic_photon.checkpoints.find import complete_steps
from mosaic_photon.doctor.machine import check_versions
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.tables import ActivationCheckpoint, MosaicJobConfig
from mosaic_photon.models.model_args import check_flex_heads
from mosaic_photon.titan.v03.llama3 import Llama3Args
from mosaic_photon.train_spec import build_train_spec

JOB = (
    jobs.JOB.replace(
        'name = "AdamW"\nlr = 3e-3', 'name = "QHADOPT"\nlr = 3e-3\nweight_decay = 0.1\nno_decay = ["norm"]'
    )
    .replace("warmup_steps = 2\ntotal_steps = 1000", 'name = "constant_with_linear_cooldown_with_warmup"')
    .replace("[training]", '[lr_scheduler.kwargs]\nt_warmup = "2ba"\nt_cooldown = "2ba"\n[training]')
    + '[mup]\nenabled = true\nbase_width = 32\nbase_depth = 1\n[callbacks.optimizer_monitor]\ninterval = "1ba"\n'
)
"""muP, QHADOPT without decay on norms, a schedule by name, a callback that reduces over ranks."""
FLAGS = (
    "--training.steps=6", "--checkpoint.enable", "--checkpoint.interval=3", "--validation.enable",
    "--validation.steps=2", "--validation.freq=3",
)  # fmt: skip
BATCH_OF_4 = ("--training.local_batch_size=4", "--validation.local_batch_size=4")
TOLERANCE = {
    jobs.LOSS: 1e-4,
    "n_loss_tokens_seen": 0,
    "validation_metrics/loss": 1e-4,
    "grad_norm": 1e-3,
    "l2_norm/grad/global": 1e-3,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    """Six steps in one process, with a checkpoint in the middle."""
    folder = tmp_path_factory.mktemp("recipe")
    assert jobs.run_here(jobs.write_job(folder, prepared_data, JOB), *FLAGS) == 0
    return folder


def test_the_recipe_trains(recipe: Path) -> None:
    assert list(jobs.scalars(recipe)) == list(range(1, 7))
    assert jobs.scalars(recipe, "lr") == pytest.approx({1: 0, 2: 1.5e-3, 3: 3e-3, 4: 3e-3, 5: 3e-3, 6: 1.5e-3})
    assert jobs.scalars(recipe, "l2_norm/grad/global") == pytest.approx(jobs.scalars(recipe, "grad_norm"), rel=1e-3)


ASYNC = ("--checkpoint.async_mode=async", "--checkpoint.keep_latest_k=2", "--checkpoint.interval=1")
LAYOUTS: dict[str, tuple[Layout, tuple[str, ...]]] = {
    "FSDP2 ×2": (layout(2, 2, shard=2), ("--validation.steps=1", *ASYNC)),
    "TP ×2": (layout(2, 2, tp=2), ()),
    "PP ×2": (layout(2, 4, pp=2), (*BATCH_OF_4, "--validation.steps=1")),
}


@pytest.fixture(scope="module")
def resumed(recipe: Path, tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> dict[str, Path]:
    """The recipe's second half in each layout."""
    root = tmp_path_factory.mktemp("resumed")
    folders = {name: root / str(number) for number, name in enumerate(LAYOUTS)}
    for folder in folders.values():
        shutil.copytree(recipe / "out/checkpoint/step-3", folder / "out/checkpoint/step-3")
    plan = [entry(folders[name], name, how, JOB, prepared_data, *FLAGS, *more) for name, (how, more) in LAYOUTS.items()]
    run_plan(plan, root)
    return folders


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_checkpoint_goes_on_in_each_layout(name: str, recipe: Path, resumed: dict[str, Path]) -> None:
    for tag, tolerance in TOLERANCE.items():
        whole = {step: value for step, value in jobs.scalars(recipe, tag).items() if step > 3}
        assert jobs.scalars(resumed[name], tag) == pytest.approx(whole, rel=tolerance), tag


def test_checkpoints_written_beside_the_steps_are_whole(resumed: dict[str, Path]) -> None:
    assert [*complete_steps(str(resumed["FSDP2 ×2"] / "out/checkpoint"))] == [5, 6]


FSDP, TP, PP = (
    f"--parallelism.{kind}_degree=2" for kind in ("data_parallel_shard", "tensor_parallel", "pipeline_parallel")
)


def test_a_pipeline_does_not_part_one_weight(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data, jobs.of("qwen3")), PP, BATCH_OF_4[0]) == 1
    said = "error on rank 0: parallelism.pipeline_parallel_degree = 2: the head of qwen3_mosaic debugmodel is its"
    assert said in capsys.readouterr().err


OTHERS = {
    "qwen3": jobs.of("qwen3"),
    "qwen3 with experts": jobs.of("qwen3").replace("debugmodel", "debugmodel_moe"),
    "deepseek_v3": jobs.of("deepseek_v3"),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "flag"),
    [("qwen3", FSDP), ("qwen3", TP), ("qwen3 with experts", FSDP), ("qwen3 with experts", TP),
     ("qwen3 with experts", PP), ("deepseek_v3", FSDP), ("deepseek_v3", TP), ("deepseek_v3", PP)],
)  # fmt: skip
def test_other_models_train_in_each_layout(model: str, flag: str, prepared_data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = BATCH_OF_4[:1] if flag == PP else ()
    assert jobs.run_here(jobs.write_job(one, prepared_data, OTHERS[model])) == 0
    jobs.launch(jobs.write_job(two, prepared_data, OTHERS[model]), flag, *more, ranks=2)
    for tag in (jobs.LOSS, "grad_norm"):
        assert jobs.scalars(two, tag) == pytest.approx(jobs.scalars(one, tag), rel=TOLERANCE[tag]), tag


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--model.print_after_conversion", "model.print_after_conversion = True: TorchTitan 0.3.0 has no such"),
        ("--parallelism.disable_loss_parallel", "parallelism.disable_loss_parallel = True: TorchTitan 0.3.0 has no"),
    ],
)
def test_what_the_release_lacks_is_said(
    flag: str, said: str, tmp_path: Path, prepared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data), flag) == 1
    assert f"error: {said}" in capsys.readouterr().err


GRAPH_TABLES = {
    "plain": ("", None),
    "a callback of batches": ("[callbacks.optimizer_monitor]\n", None),
    "a callback of passes": ("[callbacks.activation_monitor]\n", "activation_monitor would miss events between"),
    "one that sees all": ('[callbacks."recording:Recorder"]\n', "recording:Recorder would miss events between"),
    "two": ("[callbacks.lr_monitor]\n[callbacks.nan_monitor]\n", "nan_monitor would miss events between"),
    "pipeline": ("[parallelism]\npipeline_parallel_degree = 2\n", "under pipeline parallelism"),
}


@pytest.mark.parametrize("case", GRAPH_TABLES)
def test_cuda_graphs_are_recorded_where_nothing_would_be_missed(
    case: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mosaic_photon.callbacks.host import CallbackHost
    from mosaic_photon.callbacks.registry import build_callbacks
    from mosaic_photon.job.load import load_job
    from mosaic_photon.titan.v03 import cuda_graphs

    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "callbacks")
    tables, says = GRAPH_TABLES[case]
    arguments = jobs.write_job(tmp_path, prepared_data, jobs.JOB + tables)
    job = load_job(arguments[1], arguments[3], [])
    wanted = CallbackHost(build_callbacks(job.callbacks)).wants_inside()
    why = cuda_graphs.why_not(job, None, True, wanted)
    assert why is None if says is None else says in str(why)


def test_other_reasons_against_cuda_graphs() -> None:
    from types import SimpleNamespace

    from mosaic_photon.job.tables import MosaicJobConfig
    from mosaic_photon.titan.v03 import cuda_graphs

    job = MosaicJobConfig()
    assert "lengths of documents" in str(cuda_graphs.why_not(job, SimpleNamespace(attn_type="varlen"), True, []))
    assert "each expert" in str(cuda_graphs.why_not(job, SimpleNamespace(moe_args=object()), True, []))
    assert "not TorchTitan's" in str(cuda_graphs.why_not(job, None, False, []))
    job.training.enable_cpu_offload = True
    assert "from the host" in str(cuda_graphs.why_not(job, None, True, []))


def test_a_recorded_job_trains_as_another_and_its_callbacks_see_each_batch(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a graph's place stands what hands out one tensor, written anew at each replay."""
    from torchtitan import trainer

    from mosaic_photon.titan.v03 import cuda_graphs
    from mosaic_photon.titan.v03.trainer import MosaicTrainer

    kept, rows = torch.zeros(()), torch.zeros(2)
    keep_rows = MosaicTrainer.keep_rows

    def replayed(passes):
        return lambda *given: kept.copy_(passes(*given).detach())

    job = jobs.JOB + '[mosaic]\nloss_per_stream = true\n[callbacks."test_v03_losses:Losses"]\n'
    (tmp_path / "test_v03_losses.py").write_text(LOSSES)
    monkeypatch.syspath_prepend(tmp_path)
    assert jobs.run_here(jobs.write_job(tmp_path / "eager", prepared_data, job)) == 0
    monkeypatch.setattr(cuda_graphs, "ON_CPU", False)
    monkeypatch.setattr(trainer, "wrap_with_cuda_graph", replayed)
    monkeypatch.setattr(MosaicTrainer, "keep_rows", lambda self, found: keep_rows(self, rows.copy_(found)))
    assert jobs.run_here(jobs.write_job(tmp_path / "recorded", prepared_data, job)) == 0
    assert kept != 0
    for tag in (jobs.LOSS, "grad_norm", "seen", "loss/data"):
        assert jobs.scalars(tmp_path / "recorded", tag) == jobs.scalars(tmp_path / "eager", tag), tag
    assert jobs.scalars(tmp_path / "recorded", "seen") == pytest.approx(jobs.scalars(tmp_path / "recorded"), rel=1e-6)
    assert jobs.scalars(tmp_path / "recorded", "loss/data") == pytest.approx(
        jobs.scalars(tmp_path / "recorded"), rel=1e-6
    )
    kept.zero_()
    assert jobs.run_here(jobs.write_job(tmp_path / "off", prepared_data, job), "--training.disable_cuda_graphs") == 0
    assert kept == 0


LOSSES = """
from composer.core import Callback


class Losses(Callback):
    def batch_end(self, state, logger):
        logger.log_metrics({"seen": state.loss})
"""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("llama4", "TorchTitan 0.3 has dropped it; it trains on TorchTitan 0.2.2"),
        ("gpt_oss", "this package does not have it on TorchTitan 0.3 yet; it trains on TorchTitan 0.2.2"),
        ("qwen3_5", "this package does not train it yet"),
    ],
)
def test_a_model_that_is_elsewhere(
    model: str, said: str, tmp_path: Path, prepared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data, jobs.JOB.replace("llama3", model))
    assert jobs.run_here(arguments) == 1
    error = capsys.readouterr().err
    assert f"error: model.name = '{model}_mosaic': {said}" in error
    assert "Here there are deepseek_v3_mosaic, llama3_mosaic, mpt_mup_mosaic, qwen3_mosaic." in error


def test_the_doctor_takes_the_versions_of_this_release() -> None:
    assert [finding.level for finding in check_versions()] == ["ok"]


@pytest.mark.parametrize(("model", "layer"), [("llama3", "attention.qkv_linear.wq"), ("deepseek_v3", "attention.wq")])
def test_layers_to_compute_again_are_found_by_a_job_s_names(model: str, layer: str) -> None:
    from mosaic_photon.titan.v03.config import activation_checkpoint

    given = ["attention.wq", "moe.router.gate", "output"]
    table = ActivationCheckpoint(mode="selective", per_op_sac_force_recompute_mm_shapes_by_fqns=given)
    policy = activation_checkpoint(table, build_train_spec(f"{model}_mosaic").names)
    assert policy.force_recompute_mm_shapes_by_fqns == [layer, "moe.router.gate", "lm_head"]


def test_small_heads_have_no_kernel_whatever_the_attention_is_called() -> None:
    facts: Any = SimpleNamespace(model_args=Llama3Args(dim=32, n_heads=4), on_cpu=False)
    with pytest.raises(ConfigError, match="has heads of 8 dimensions"):
        check_flex_heads(MosaicJobConfig(), facts)


def test_there_is_no_registry() -> None:
    with pytest.raises(
        ConfigError, match=r"has no registry that llama3_mosaic could be put into: train with python -m"
    ):
        register_llama3_mosaic()


def test_positions_begin_again_after_the_end_of_a_document() -> None:
    from mosaic_photon.titan.v03.trainer import positions_of

    tokens = torch.tensor([[5, 9, 6, 7, 9, 9, 4], [9, 5, 5, 5, 5, 5, 9]])
    assert positions_of(tokens, 9).tolist() == [[0, 1, 0, 1, 2, 0, 0], [0, 0, 1, 2, 3, 4, 5]]
    assert positions_of(tokens, bos_token_id=9).tolist() == [[0, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 0]]
    assert positions_of(tokens).tolist() == [list(range(7))] * 2
