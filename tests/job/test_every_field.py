"""Each field of a job's tables: with a value other than its default it is applied, refused, or said to do nothing.

A field that has no row fails. Fields that are applied are set together in a few jobs, each run once in this process;
a row says where its effect is seen. The file is long because it is the one table of them.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchtitan.distributed import utils as dist_utils

import jobs
from doctor_calls import say_all
from mosaic_photon.compat import cpu_pg_timeouts
from mosaic_photon.errors import ConfigError
from mosaic_photon.job.load import load_job
from mosaic_photon.job.remarks import remarks_on
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.job.value_checks import fields_in
from mosaic_photon.optimizers.catalog import choose
from mosaic_photon.schedulers.builder import multiplier_of
from mosaic_photon.titan.checkpointer import Checkpointer
from mosaic_photon.titan.v02.trainer import MosaicTrainer
from mosaic_photon.titan.validator import MosaicValidator
from mosaic_photon.train_spec import check_job, facts_of, known_models, spec_of_job


@dataclass(frozen=True)
class Refused:
    """One message before the first step."""

    value: str
    says: str
    beside: tuple[str, ...] = ()
    processes: int = 1


@dataclass(frozen=True)
class Remarked:
    """One line, of job and doctor, that says what it does not do."""

    value: str
    says: str = "does nothing"
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Read:
    """Applied, which is seen in the checked job and its model's description."""

    value: str
    seen: Callable[[MosaicJobConfig, Any], Any]
    beside: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """Applied, which is seen in a job of `JOBS`."""

    job: str
    value: str
    seen: Callable[[Ran], Any]


@dataclass(frozen=True)
class Elsewhere:
    """Applied, as a test of the part that the field is about shows."""

    test: str


@dataclass
class Ran:
    """A job that was run."""

    out: Path
    trainer: Any
    printed: str = ""
    calls: dict[str, list[SimpleNamespace]] = field(default_factory=lambda: defaultdict(list))
    after: dict[str, Any] = field(default_factory=dict)
    """What the process looked like after the job."""

    @property
    def model(self) -> Any:
        return self.trainer.model_parts[0]

    def of(self, name: str, argument: str) -> set[Any]:
        """The values of an argument over all calls of an upstream function."""
        return {call.given[argument] for call in self.calls[name]}

    def steps(self, tag: str = jobs.LOSS) -> list[int]:
        """The steps for which TensorBoard has this."""
        found = [EventAccumulator(str(path)).Reload() for path in self.out.rglob("events.*")]
        return sorted(event.step for one in found if tag in one.Tags()["scalars"] for event in one.Scalars(tag))


def files(value: Any) -> set[str]:
    return {path.name for path in value.iterdir()}


def names_in(checkpoint: Path) -> set[str]:
    return {*dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata}


def group(ran: Ran) -> dict[str, Any]:
    return ran.trainer.optimizers.optimizers[0].param_groups[0]


def factor(job: MosaicJobConfig, step: int) -> float:
    return round(multiplier_of(job.lr_scheduler, RunLength(10))(step), 6)


def safetensors_dtype(folder: Path) -> str:
    with safe_open(next(folder.glob("*.safetensors")), "pt") as file:
        return str(file.get_tensor("model.embed_tokens.weight").dtype)


def nonlocals(function: Any) -> Any:
    return inspect.getclosurevars(function).nonlocals


def recomputed_shapes(ran: Ran) -> set[Any]:
    policy = nonlocals(ran.model.layers["0"].checkpoint_fn.keywords["context_fn"])["_get_custom_policy"]
    return {tuple(shape) for shape in nonlocals(policy)["mm_recompute_shapes"]}


def trace_steps(ran: Ran) -> int:
    trace = json.loads((ran.out / "traces/iteration_4/rank0_trace.json").read_text())
    return len({event["name"] for event in trace["traceEvents"] if event.get("name", "").startswith("ProfilerStep")})


DATA = "the data config (--mosaic-config) says what"
QHADOPT = ("--optimizer.name=QHADOPT",)
NAMED = ("--lr_scheduler.warmup_steps=None",)
SCHEDULE = (*NAMED, "--lr_scheduler.name=ConstantScheduler")
MUP = ("--mup.enabled", "--mup.base_width=32", "--mup.base_depth=1")


def mup(job: MosaicJobConfig, spec: Any) -> Any:
    args = spec.model_args[job.model.flavor]
    args.update_from_config(job)
    return args.parametrization


def loader_rows(table: str) -> dict[str, Any]:
    values = {"num_workers": "3", "persistent_workers": "true", "pin_memory": "true", "prefetch_factor": "4"}
    return {f"{table}.dataloader.{name}": Remarked(value, DATA) for name, value in values.items()}


ROWS: dict[str, Any] = {
    "job.config_file": Refused("other.toml", "give the job config as --config"),
    "job.dump_folder": Run("plain", "{folder}/elsewhere", lambda ran: ran.out.name == "elsewhere" and ran.out.is_dir()),
    "job.description": Run("plain", "a title", lambda ran: "Starting job: a title" in ran.printed),
    "job.print_config": Run("plain", "true", lambda ran: "Running with configs: {" in ran.printed),
    "job.save_config_file": Run(
        "plain", "config.json", lambda ran: json.loads((ran.out / "config.json").read_text())["debug"]["seed"] == 7
    ),
    "job.custom_config_module": Read("torchtitan.models.flux.job_config", lambda job, _: job.encoder.t5_encoder),
    "profiling.enable_profiling": Run("plain", "true", lambda ran: any(ran.out.rglob("rank0_trace.json"))),
    "profiling.save_traces_folder": Run("plain", "traces", lambda ran: (ran.out / "traces").is_dir()),
    "profiling.profile_freq": Run("plain", "4", lambda ran: files(ran.out / "traces") == {"iteration_4"}),
    "profiling.profiler_active": Run("plain", "2", lambda ran: trace_steps(ran) == 2),
    "profiling.profiler_warmup": Run("plain", "1", lambda ran: ran.of("torch.profiler.schedule", "warmup") == {1}),
    "profiling.enable_memory_snapshot": Refused("true", "needs an accelerator"),
    "profiling.save_memory_snapshot_folder": Refused(
        "snapshots", "enable_memory_snapshot = True needs an", ("--profiling.enable_memory_snapshot",)
    ),
    "metrics.log_freq": Run("plain", "2", lambda ran: ran.steps() == [1, 2, 4]),
    "metrics.enable_tensorboard": Run("plain", "true", lambda ran: any(ran.out.rglob("events.*"))),
    "metrics.disable_color_printing": Run("plain", "true", lambda ran: "\x1b[" not in ran.printed),
    "metrics.save_tb_folder": Run("plain", "board", lambda ran: any((ran.out / "board").rglob("events.*"))),
    "metrics.save_for_all_ranks": Run("plain", "true", lambda ran: any(ran.out.rglob("rank_0/events.*"))),
    "metrics.enable_wandb": Run("hf", "true", lambda ran: any(ran.out.rglob("wandb/offline-run-*"))),
    "model.name": Run("experts", "qwen3_mosaic", lambda ran: type(ran.model).__name__ == "Qwen3Model"),
    "model.flavor": Run("experts", "debugmodel_moe", lambda ran: ran.trainer.model_args.moe_enabled),
    "model.hf_assets_path": Run(
        "plain", "{folder}/assets", lambda ran: ran.trainer.tokenizer.tokenizer_path.endswith("/assets")
    ),
    "model.tokenizer_path": Remarked("tests/assets/tokenizer", "is the old name of model.hf_assets_path"),
    "model.converters": Refused("quantize.linear.float8", "needs an accelerator"),
    "model.print_after_conversion": Run("plain", "true", lambda ran: "Model definion after conversion" in ran.printed),
    "model.overrides": Run("plain", "{dim = 64, n_layers = 3, n_heads = 4}", lambda ran: len(ran.model.layers) == 3),
    "optimizer.name": Run("plain", "Adam", lambda ran: type(ran.trainer.optimizers.optimizers[0]) is torch.optim.Adam),
    "optimizer.lr": Run("plain", "1e-3", lambda ran: group(ran)["initial_lr"] == 1e-3),
    "optimizer.beta1": Run("plain", "0.8", lambda ran: group(ran)["betas"][0] == 0.8),
    "optimizer.beta2": Run("plain", "0.9", lambda ran: group(ran)["betas"][1] == 0.9),
    "optimizer.eps": Run("plain", "1e-6", lambda ran: group(ran)["eps"] == 1e-6),
    "optimizer.weight_decay": Run("plain", "0.2", lambda ran: group(ran)["weight_decay"] == 0.2),
    "optimizer.v1": Read("0.9", lambda job, _: choose(job.optimizer).kwargs["v1"] == 0.9, QHADOPT),
    "optimizer.decouple": Read("true", lambda job, _: choose(job.optimizer).kwargs["decouple"], QHADOPT),
    "optimizer.implementation": Run("plain", "foreach", lambda ran: group(ran)["foreach"] and not group(ran)["fused"]),
    "optimizer.early_step_in_backward": Run(
        "early", "true", lambda ran: type(ran.trainer.optimizers).__name__ == "OptimizersInBackwardContainer"
    ),
    "optimizer.no_decay": Run(
        "plain",
        "norm",
        lambda ran: {g["weight_decay"] for g in ran.trainer.optimizers.optimizers[0].param_groups} == {0, 0.2},
    ),
    "optimizer.kwargs": Run("plain", "{amsgrad = true}", lambda ran: group(ran)["amsgrad"] is True),
    "lr_scheduler.name": Read("ConstantScheduler", lambda job, _: factor(job, 9) == 1, NAMED),
    "lr_scheduler.kwargs": Read("{alpha = 0.5}", lambda job, _: factor(job, 9) == 0.5, SCHEDULE),
    "lr_scheduler.warmup_steps": Read("4", lambda job, _: factor(job, 0) == 0.25),
    "lr_scheduler.total_steps": Read("20", lambda job, _: factor(job, 10) == 0.555556),
    "lr_scheduler.decay_ratio": Read("0.5", lambda job, _: factor(job, 5) == 1 > factor(job, 7)),
    "lr_scheduler.decay_type": Read("cosine", lambda job, _: factor(job, 4) == 0.853553),
    "lr_scheduler.min_lr_factor": Read("0.1", lambda job, _: factor(job, 10) == 0.1),
    "training.dataset": Remarked("c4", DATA),
    "training.dataset_path": Remarked("/data", DATA),
    "training.local_batch_size": Run("plain", "4", lambda ran: "(micro-batches of 4, 2 accumulated)" in ran.printed),
    "training.global_batch_size": Run("plain", "8", lambda ran: ran.trainer.gradient_accumulation_steps == 2),
    "training.seq_len": Run("plain", "32", lambda ran: "8 × 32 = 256 tokens a step" in ran.printed),
    "training.max_norm": Run("plain", "0.5", lambda ran: ran.of("clip", "max_norm") == {0.5}),
    "training.steps": Run("plain", "5", lambda ran: ran.trainer.step == 5),
    "training.enable_cpu_offload": Refused("true", "needs an accelerator"),
    "training.dtype": Run("plain", "bfloat16", lambda ran: ran.model.output.weight.dtype is torch.bfloat16),
    "training.mixed_precision_param": Run(
        "early", "bfloat16", lambda ran: ran.trainer.maybe_enable_amp.fast_dtype is torch.bfloat16
    ),
    "training.mixed_precision_reduce": Refused("bfloat16", "should be one of 'float32'"),
    "training.gc_freq": Run("plain", "3", lambda ran: ran.trainer.gc_handler.gc_freq == 3),
    "training.gc_debug": Refused("true", "needs an accelerator"),
    **loader_rows("training"),
    "parallelism.data_parallel_replicate_degree": Run(
        "hsdp", "2", lambda ran: ran.trainer.parallel_dims.dp_replicate == 2
    ),
    "parallelism.data_parallel_shard_degree": Run("hsdp", "2", lambda ran: ran.trainer.parallel_dims.dp_shard == 2),
    "parallelism.fsdp_reshard_after_forward": Run(
        "hsdp",
        "never",
        lambda ran: ran.model.layers["0"]._get_fsdp_state()._fsdp_param_group.post_forward_mesh_info is None,
    ),
    "parallelism.tensor_parallel_degree": Run(
        "tp", "2", lambda ran: ran.model.layers["0"].attention.wq.weight.to_local().shape == (32, 64)
    ),
    "parallelism.disable_loss_parallel": Run(
        "tp", "true", lambda ran: ran.of("context", "enable_loss_parallel") == {False}
    ),
    "parallelism.enable_async_tensor_parallel": Refused("true", "needs an accelerator"),
    "parallelism.pipeline_parallel_degree": Run("pp", "2", lambda ran: ran.trainer.parallel_dims.pp == 2),
    "parallelism.module_fqns_per_model_part": Run(
        "pp by name",
        '[["tok_embeddings"], ["layers.0", "layers.1", "layers.2", "layers.3", "norm", "output"]]',
        lambda ran: len(ran.model.layers) == 0,
    ),
    "parallelism.pipeline_parallel_first_stage_less_layers": Run(
        "pp less", "0", lambda ran: [*ran.model.layers] == ["0", "1", "2"]
    ),
    "parallelism.pipeline_parallel_last_stage_less_layers": Run("pp less", "2", lambda ran: len(ran.model.layers) == 3),
    "parallelism.pipeline_parallel_layers_per_stage": Run(
        "pp", "2", lambda ran: [[*part.layers] for part in ran.trainer.model_parts] == [["0"], ["3", "4"]]
    ),
    "parallelism.pipeline_parallel_schedule": Run(
        "pp", "Interleaved1F1B", lambda ran: type(ran.trainer.pp_schedule).__name__ == "ScheduleInterleaved1F1B"
    ),
    "parallelism.pipeline_parallel_schedule_csv": Run(
        "pp by name",
        "{folder}/schedule.csv",
        lambda ran: [str(action) for action in ran.trainer.pp_schedule.pipeline_order[0]] == CSV[0].split(","),
    ),
    "parallelism.pipeline_parallel_microbatch_size": Run(
        "pp", "2", lambda ran: ran.trainer.pp_schedule._n_microbatches == 4
    ),
    "parallelism.pipeline_parallel_expert_parallel_overlap": Remarked("false"),
    "parallelism.context_parallel_degree": Refused("2", "needs an accelerator", processes=2),
    "parallelism.context_parallel_load_balancer": Remarked("ptrr"),
    "parallelism.context_parallel_rotate_method": Remarked("alltoall"),
    "parallelism.expert_parallel_degree": Refused("2", "has no experts"),
    "parallelism.expert_tensor_parallel_degree": Refused("2", "must be 1 or tensor_parallel_degree"),
    "parallelism.expert_parallel_comm_backend": Refused("deepep", "needs expert_parallel_degree above 1"),
    "checkpoint.enable": Run("plain", "true", lambda ran: (ran.out / "kept/step-5/.metadata").is_file()),
    "checkpoint.enable_ft_dataloader_checkpoints": Remarked("false"),
    "checkpoint.folder": Run("plain", "kept", lambda ran: (ran.out / "kept").is_dir()),
    "checkpoint.interval": Run("plain", "1", lambda ran: "step-4" in files(ran.out / "kept")),
    "checkpoint.initial_load_path": Run(
        "begun", "{plain}/kept/step-4", lambda ran: "(checkpoint.initial_load_path): the job has no" in ran.printed
    ),
    "checkpoint.initial_load_model_only": Run("begun", "false", lambda ran: "Training starts at step 5" in ran.printed),
    "checkpoint.initial_load_in_hf": Run("from hf", "true", lambda ran: "Begins from " in ran.printed),
    "checkpoint.initial_load_in_hf_quantized": Refused("true", "needs initial_load_in_hf = true"),
    "checkpoint.last_save_model_only": Run(
        "plain", "false", lambda ran: any(name.startswith("optimizer.") for name in names_in(ran.out / "kept/step-5"))
    ),
    "checkpoint.last_save_in_hf": Run("hf", "true", lambda ran: any(ran.out.rglob("step-2/*.safetensors"))),
    "checkpoint.export_dtype": Run(
        "hf", "bfloat16", lambda ran: safetensors_dtype(ran.out / "checkpoint/step-2") == "torch.bfloat16"
    ),
    "checkpoint.async_mode": Run("begun", "async", lambda ran: ran.trainer.checkpointer.async_mode == "async"),
    "checkpoint.keep_latest_k": Run("plain", "2", lambda ran: files(ran.out / "kept") == {"step-4", "step-5"}),
    "checkpoint.load_step": Run("again", "4", lambda ran: "Training starts at step 5" in ran.printed),
    "checkpoint.exclude_from_loading": Run(
        "again", "lr_scheduler, optimizer", lambda ran: not {"lr_scheduler", "optimizer"} & {*loaded(ran)}
    ),
    "checkpoint.enable_first_step_checkpoint": Run("hf", "true", lambda ran: (ran.out / "checkpoint/step-1").is_dir()),
    "checkpoint.create_seed_checkpoint": Run(
        "seed", "true", lambda ran: ran.trainer.step == 0 and (ran.out / "checkpoint/step-0/.metadata").is_file()
    ),
    "checkpoint.load_only": Run("again", "true", lambda ran: files(ran.out / "kept") == {"step-4", "step-5"}),
    "activation_checkpoint.mode": Run("plain", "full", lambda ran: hasattr(ran.model.layers["0"], "checkpoint_fn")),
    "activation_checkpoint.selective_ac_option": Run("operations", "op", lambda ran: recomputed_shapes(ran)),
    "activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns": Run(
        "operations", "feed_forward.w2", lambda ran: recomputed_shapes(ran) == {(256, 64)}
    ),
    "activation_checkpoint.early_stop": Run("plain", "true", lambda ran: wrapped(ran)["early_stop"] is True),
    "activation_checkpoint.memory_budget": Run("compiled", "0.25", lambda ran: ran.after["budget"] == 0.25),
    "activation_checkpoint.visualize_memory_budget_pareto": Run(
        "compiled", "true", lambda ran: (ran.out / "memory_budget_pareto").is_dir()
    ),
    "activation_checkpoint.preserve_rng_state": Run(
        "plain", "false", lambda ran: wrapped(ran)["preserve_rng_state"] is False
    ),
    "activation_checkpoint.determinism_check": Run(
        "plain", "none", lambda ran: wrapped(ran)["determinism_check"] == "none"
    ),
    "activation_checkpoint.debug": Run("debug", "true", lambda ran: wrapped(ran)["debug"] is True),
    "compile.enable": Run("compiled", "true", lambda ran: len(ran.calls["compile"])),
    "compile.components": Run("compiled", "model", lambda ran: len(ran.calls["compile"]) == 2),  # a layer each, no loss
    "compile.backend": Run("compiled", "aot_eager", lambda ran: ran.of("compile", "backend") == {"aot_eager"}),
    "quantize.linear.float8.enable_fsdp_float8_all_gather": Remarked("true", "model.converters lacks"),
    "quantize.linear.float8.precompute_float8_dynamic_scale_for_fsdp": Remarked("true", "model.converters lacks"),
    "quantize.linear.float8.recipe_name": Remarked("rowwise", "model.converters lacks"),
    "quantize.linear.float8.filter_fqns": Remarked("output", "model.converters lacks"),
    "quantize.linear.float8.emulate": Remarked("true", "model.converters lacks"),
    "quantize.linear.mx.mxfp8_dim1_cast_kernel_choice": Remarked("cuda", "model.converters lacks"),
    "quantize.linear.mx.recipe_name": Remarked("mxfp8_emulated", "model.converters lacks"),
    "quantize.linear.mx.filter_fqns": Remarked("wq", "model.converters lacks"),
    "quantize.grouped_mm.float8.fqns": Remarked("experts", "model.converters lacks"),
    "quantize.grouped_mm.mx.recipe_name": Refused("mxfp4", "should be one of 'mxfp8'"),
    "quantize.grouped_mm.mx.fqns": Remarked("experts", "model.converters lacks"),
    "comm.init_timeout_seconds": Run("plain", "77", lambda ran: seconds(ran, "init") == {77}),
    "comm.train_timeout_seconds": Run("plain", "88", lambda ran: seconds(ran, "timeout") == {88}),
    "comm.trace_buf_size": Remarked("100"),
    "comm.save_traces_folder": Remarked("there"),
    "comm.save_traces_file_prefix": Remarked("r"),
    "comm.mode": Remarked("fake_backend", "pretends the other processes"),
    "memory_estimation.enable": Refused("true", "TorchTitan 0.2.2 has the setting and no estimator"),
    "memory_estimation.disable_fake_mode": Remarked("true"),
    "fault_tolerance.enable": Refused("true", "by a trainer of its own"),
    "fault_tolerance.process_group": Remarked("nccl"),
    "fault_tolerance.process_group_timeout_ms": Remarked("5"),
    "fault_tolerance.replica_id": Remarked("1"),
    "fault_tolerance.group_size": Remarked("2"),
    "fault_tolerance.min_replica_size": Remarked("2"),
    "fault_tolerance.semi_sync_method": Remarked("diloco"),
    "experimental.custom_import": Elsewhere(
        "tests/job/test_every_field.py::test_a_model_that_a_custom_import_registers"
    ),
    "experimental.custom_args_module": Refused("json", "job.custom_config_module is right"),
    "validation.enable": Run("plain", "true", lambda ran: "validate step: " in ran.printed),
    "validation.dataset": Remarked("c4", DATA),
    "validation.dataset_path": Remarked("/data", DATA),
    "validation.local_batch_size": Run("plain", "4", lambda ran: batch(ran).shape[0] == 4),
    "validation.seq_len": Run("plain", "32", lambda ran: batch(ran).shape[1] == 32),
    "validation.freq": Run("plain", "3", lambda ran: ran.steps("validation_metrics/loss") == [1, 3]),
    "validation.steps": Run("plain", "1", lambda ran: len(ran.calls["batch"]) == 2),
    **loader_rows("validation"),
    "debug.seed": Run("plain", "7", lambda ran: ran.after["PYTHONHASHSEED"] == "7"),
    "debug.deterministic": Run("plain", "true", lambda ran: ran.after["deterministic"]),
    "debug.deterministic_warn_only": Run("plain", "true", lambda ran: ran.after["warn_only"]),
    "debug.moe_force_load_balance": Run(
        "experts", "true", lambda ran: ran.trainer.model_args.moe_args._debug_force_load_balance
    ),
    "mup.enabled": Read("true", lambda job, spec: mup(job, spec).enabled, MUP),
    "mup.base_width": Read("16", lambda job, spec: mup(job, spec).m_n == 4, MUP),
    "mup.base_depth": Read("2", lambda job, spec: mup(job, spec).m_l == 1, MUP),
    "training.disable_cuda_graphs": Refused("true", "TorchTitan 0.2.2 has no such setting"),
    "mup.depth_alpha": Read("0.5", lambda job, spec: mup(job, spec).depth_alpha == 0.5, MUP),
    "mup.attention_scale": Read("true", lambda job, spec: mup(job, spec).attention_scale, MUP),
    "mup.input_multiplier": Read("2.0", lambda job, spec: mup(job, spec).input_multiplier == 2, MUP),
    "mup.output_multiplier": Read("2.0", lambda job, spec: mup(job, spec).output_multiplier == 2, MUP),
    "mosaic.config": Refused("x", "comes from the data config"),
    "mosaic.dataloader": Refused("{}", "comes from the data config"),
    "mosaic.eval_dataloaders": Refused("{}", "comes from the data config"),
    "mosaic.stages": Refused("[]", "comes from the data config"),
    "mosaic.allow_data_change": Elsewhere("tests/schedulers/test_batch_change.py"),
    "mosaic.allow_partial_load": Elsewhere("tests/checkpoints/test_identity.py"),
    "mosaic.allow_model_change": Elsewhere("tests/checkpoints/test_identity.py"),
    "mosaic.console": Elsewhere("tests/report/test_console.py"),
    "mosaic.nonfinite": Elsewhere("tests/train/test_finite.py"),
    "mosaic.loss_per_stream": Elsewhere("tests/train/test_streams.py"),
    "mosaic.skip_batches": Elsewhere("tests/train/test_spikes.py"),
    "mosaic.separate_documents": Elsewhere("tests/titan/test_documents.py"),
    "mosaic.adopt_cache": Elsewhere("tests/dataloader/test_faults.py"),
    "mosaic.node_folder": Elsewhere("tests/dataloader/order/test_orders.py"),
    "mosaic.download_patience_seconds": Elsewhere("tests/dataloader/test_outage_job.py"),
    "mosaic.verify_cache": Elsewhere("tests/dataloader/test_faults.py"),
    "callbacks": Elsewhere("tests/callbacks/test_host.py"),
}
BARE = ("--lr_scheduler.total_steps=None", "--training.steps=10")
"""TorchTitan's schedule, as long as the run; a scheduler by name takes none of its fields."""
CSV = ("0F0,0F1,0B0,0B1", "1F0,1B0,1F1,1B1")
FAKE = ("--comm.mode=fake_backend",)
FOUR = ("--model.overrides.n_layers=4",)
PIPELINED = (*FAKE, *FOUR, "--training.local_batch_size=8", "--training.global_batch_size=-1")
JOBS: dict[str, tuple[str, bool, tuple[str, ...]]] = {
    # name: pretended processes or "", whether it trains, flags beside those of its rows
    "plain": ("", True, ("--lr_scheduler.total_steps=5",)),
    "begun": ("", True, ("{plain flags}", "--job.dump_folder={folder}/begun")),
    "again": ("", True, ("{plain flags}", "--job.dump_folder={folder}/again")),
    "hf": ("", True, ("--checkpoint.enable", "--checkpoint.last_save_model_only", "--training.steps=2")),
    "from hf": ("", True, ("--checkpoint.enable", "--checkpoint.initial_load_path={hf}/checkpoint/step-2")),
    "seed": ("", True, ("--checkpoint.enable",)),
    "early": ("", True, ("--training.local_batch_size=4",)),
    "debug": ("", False, ("--activation_checkpoint.mode=full",)),
    "operations": ("", True, ("--activation_checkpoint.mode=selective",)),
    "compiled": ("", False, ("--activation_checkpoint.mode=memory_budget",)),
    "experts": (
        "",
        False,
        (
            "--model.overrides={dim = 64, head_dim = 16, n_layers = 2, n_heads = 4, n_kv_heads = 2, hidden_dim = 96, "
            "moe_inter_dim = 48, vocab_size = 2048, moe_args = {num_experts = 4, top_k = 2}}",
        ),
    ),
    "hsdp": ("4", False, (*FAKE, "--training.global_batch_size=-1")),
    "tp": ("2", True, FAKE),
    "pp": ("2", False, (*PIPELINED, "--model.overrides.n_layers=6")),
    "pp by name": (
        "2",
        False,
        (*FAKE, *FOUR, "--training.local_batch_size=2", "--parallelism.pipeline_parallel_degree=2"),
    ),
    "pp less": ("2", False, (*PIPELINED, "--parallelism.pipeline_parallel_degree=2")),
}
SPIES: dict[str, tuple[Any, str]] = {
    "torch.profiler.schedule": (torch.profiler, "schedule"),
    "clip": (torch.nn.utils, "clip_grads_with_norm_"),
    "context": (dist_utils, "get_train_context"),
    "compile": (torch, "compile"),
    "init": (torch.distributed, "init_process_group"),
    "timeout": (cpu_pg_timeouts, "_set_pg_timeout"),
    "batch": (MosaicValidator, "_loss_sum_and_labels"),
    "load": (Checkpointer, "dcp_load"),
}
"""Upstream's functions whose arguments are an effect."""
BUDGET = {
    "activation_memory_budget": 1.0,
    "visualize_memory_budget_pareto": False,
    "memory_budget_pareto_dir": None,
}


def wrapped(ran: Ran) -> dict[str, Any]:
    """What the first layer's activations are checkpointed with."""
    return ran.model.layers["0"].checkpoint_fn.keywords


def loaded(ran: Ran) -> set[str]:
    return {name.partition(".")[0] for call in ran.calls["load"] for name in call.given["state_dict"]}


def seconds(ran: Ran, name: str) -> set[int]:
    return {int(timeout.total_seconds()) for timeout in ran.of(name, "timeout")}


def batch(ran: Ran) -> torch.Tensor:
    """The first batch that was validated on."""
    return ran.calls["batch"][0].given["input_dict"]["input"]


def spy(ran: Ran, patch: pytest.MonkeyPatch, name: str) -> None:
    owner, attribute = SPIES[name]
    function = getattr(owner, attribute)
    signature = inspect.signature(function)

    def told(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        ran.calls[name].append(SimpleNamespace(given=given | given.get("kwargs", {})))
        return function(*args, **kwargs)

    patch.setattr(owner, attribute, told)


def flags_of(name: str, folder: Path, outs: dict[str, Path]) -> list[str]:
    """The flags of a job, those of its rows last; the values of other jobs' rows where it begins from them."""
    rows = [f"--{field}={row.value}" for field, row in ROWS.items() if isinstance(row, Run) and row.job == name]
    flags = []
    for flag in (*JOBS[name][2], *rows):
        flags += flags_of("plain", folder, outs) if flag == "{plain flags}" else [flag]
    for mark, path in {"folder": folder, **outs}.items():
        flags = [flag.replace(f"{{{mark}}}", str(path)) for flag in flags]
    return flags


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Callable[[str], Ran]:
    """Runs a job of JOBS, once, and those that it begins from."""
    folder = tmp_path_factory.mktemp("jobs")
    shutil.copytree(jobs.TOKENIZER, folder / "assets")
    (folder / "schedule.csv").write_text("\n".join(CSV))

    @cache
    def once(name: str) -> Ran:
        pretended, trains, _ = JOBS[name]
        outs = {other: once(other).out for other in JOBS if f"{{{other}" in " ".join(flags_of(name, folder, {}))}
        if name == "again":
            shutil.copytree(once("plain").out, folder / "again")
        arguments = jobs.write_job(folder / name, prepared_data)
        ran = Ran(folder / name / "out", None)
        text = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, torch._functorch.config.patch(BUDGET):
            for key in ("PYTHONHASHSEED", "CUBLAS_WORKSPACE_CONFIG"):
                patch.setenv(key, os.environ.get(key, ""))
            patch.setenv("NGPU", pretended)
            patch.setenv("WANDB_MODE", "offline")
            for one in SPIES:
                spy(ran, patch, one)
            patch.setattr(MosaicTrainer, "_attach", lambda self, attach=MosaicTrainer._attach: keep(ran, self, attach))
            if not trains:
                patch.setattr(MosaicTrainer, "train", lambda self: None)
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                code = jobs.run_here(arguments, *flags_of(name, folder, outs))
            ran.printed = text.getvalue()
            assert code == 0, ran.printed
            ran.out = Path(ran.trainer.job_config.job.dump_folder)
            ran.after = {
                "PYTHONHASHSEED": os.environ["PYTHONHASHSEED"],
                "deterministic": torch.are_deterministic_algorithms_enabled(),
                "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
                "budget": torch._functorch.config.activation_memory_budget,
            }
        torch.use_deterministic_algorithms(False)
        return ran

    return once


def keep(ran: Ran, trainer: MosaicTrainer, attach: Callable[[MosaicTrainer], None]) -> None:
    ran.trainer = trainer
    attach(trainer)


def checked(
    folder: Path, data: Path, flags: list[str], patch: pytest.MonkeyPatch, processes: int = 1
) -> tuple[MosaicJobConfig, Any, list[str]]:
    """The job that all checks let pass, its model's description, and what is said of it."""
    patch.setenv("WORLD_SIZE", str(processes))
    patch.setenv("NGPU", "1")
    _, config, _, data_config = jobs.write_job(folder, data)
    job = load_job(config, data_config, flags)
    spec = spec_of_job(job)
    check_job(job, spec)
    return job, spec, remarks_on(job, facts_of(job, spec))


def test_each_field_has_a_row() -> None:
    job = MosaicJobConfig()
    fields = {name for table in vars(job) for name in fields_in(job, table)}
    assert fields - ROWS.keys() == set() and ROWS.keys() - fields == set()


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, Refused)])
def test_refused(name: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[name]
    with pytest.raises(ConfigError) as error:
        checked(tmp_path, prepared_data, [*row.beside, f"--{name}={row.value}"], monkeypatch, row.processes)
    assert row.says in str(error.value)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, Remarked)])
def test_said_to_do_nothing(name: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[name]
    assert checked(tmp_path, prepared_data, [], monkeypatch)[2] == []
    _, _, remarks = checked(tmp_path, prepared_data, [*row.beside, f"--{name}={row.value}"], monkeypatch)
    (line,) = remarks
    assert line.startswith(f"{name} = ") and row.says in line


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, Read)])
def test_read(name: str, tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = ROWS[name]
    job, spec, _ = checked(tmp_path, prepared_data, [*BARE, *row.beside, f"--{name}={row.value}"], monkeypatch)
    assert row.seen(job, spec)


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, Run)])
def test_applied(name: str, run: Callable[[str], Ran]) -> None:
    row = ROWS[name]
    ran = run(row.job)
    assert row.seen(ran), ran.printed


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if isinstance(row, Elsewhere)])
def test_shown_elsewhere(name: str) -> None:
    path, _, test = ROWS[name].test.partition("::")
    text = (jobs.ROOT / path).read_text()
    assert name.rpartition(".")[2] in text and f"def {test}" in text


def test_job_and_doctor_say_the_same_lines(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = jobs.write_job(tmp_path, prepared_data)
    flags = ["--training.dataset=c4", "--comm.trace_buf_size=7", "--training.steps=1"]
    assert jobs.run_here(arguments, *flags) == 0
    lines = [line for line in "".join(capfd.readouterr()).splitlines() if " does nothing: " in line]
    assert [line.partition("WARNING - ")[2].partition(" = ")[0] for line in lines] == [
        "training.dataset",
        "comm.trace_buf_size",
    ]
    code, said = say_all(arguments, flags, 1, monkeypatch, capfd)
    assert code == 0
    for line in lines:
        assert f"warn  settings: {line.partition('WARNING - ')[2]}" in said


def test_a_model_that_a_custom_import_registers(
    tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is imported before the model is looked for, by the job and by commands that need the model alone."""
    (tmp_path / "own_model.py").write_text(OWN_MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = ["--experimental.custom_import=own_model", "--model.name=own_mosaic", "--model.flavor=small"]
    _, spec, _ = checked(tmp_path, prepared_data, flags, monkeypatch)
    assert spec.model_args["small"].n_layers == 2 and "own_mosaic" in known_models()
    rows = "--mosaic.loss_per_stream"
    assert checked(tmp_path, prepared_data, [*flags, rows], monkeypatch)
    with pytest.raises(ConfigError, match="odd_mosaic has a loss of its own, and only of TorchTitan's cross-entropy"):
        checked(tmp_path, prepared_data, [*flags, rows, "--model.name=odd_mosaic"], monkeypatch)
    with pytest.raises(ConfigError, match=r"there is no model 'own'\. Known: .*, own_mosaic, "):
        checked(tmp_path, prepared_data, ["--model.name=own"], monkeypatch)


@pytest.mark.slow
def test_steps_in_the_backward_pass_are_the_same_in_shards(tmp_path: Path, prepared_data: Path) -> None:
    """Where they are allowed: a gradient arrives there as the whole step's."""
    layouts = {
        "one process": (1, ("--training.local_batch_size=4",)),
        "FSDP2": (2, ("--parallelism.data_parallel_shard_degree=2",)),
        "TP": (2, ("--parallelism.tensor_parallel_degree=2", "--training.local_batch_size=4")),
    }
    losses = {}
    for name, (ranks, flags) in layouts.items():
        arguments = jobs.write_job(tmp_path / name, prepared_data)
        jobs.launch(arguments, "--optimizer.early_step_in_backward", *flags, ranks=ranks)
        losses[name] = list(jobs.scalars(tmp_path / name).values())
    assert losses["FSDP2"] == pytest.approx(losses["one process"], rel=1e-4)
    assert losses["TP"] == pytest.approx(losses["one process"], rel=1e-4)


OWN_MODEL = """
import dataclasses
from torchtitan.protocols.train_spec import get_train_spec, register_train_spec

llama = get_train_spec("llama3")
own = dataclasses.replace(llama, model_args={"small": llama.model_args["debugmodel"]})
register_train_spec("own", own)
register_train_spec("odd", dataclasses.replace(own, build_loss_fn=lambda job_config, **_: None))
"""
