"""Callbacks of Composer and llm-foundry that cannot work inside TorchTitan, or not in some jobs, and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mosaic_photon.errors import nearest
from mosaic_photon.job.layout_checks import compiles_model
from mosaic_photon.names import clean_name

if TYPE_CHECKING:
    from mosaic_photon.job.facts import Facts
    from mosaic_photon.job.tables import MosaicJobConfig

REFUSED = {
    "composer.CheckpointSaver": "it saves through Composer's Trainer; use TorchTitan's [checkpoint] table",
    "composer.LoadCheckpoint": "it loads Composer checkpoints; use TorchTitan's checkpoint.initial_load_path",
    "composer.ExportForInferenceCallback": "it exports through Composer's Trainer; `mosaic-photon export` does it",
    "composer.Generate": "it needs a Hugging Face model's generate(); `mosaic-photon generate` takes a checkpoint",
    "composer.ImageVisualizer": "it shows batches of images; the batches here are text",
    "composer.MLPerfCallback": "it times MLPerf's image benchmarks in Composer's Trainer",
    "llmfoundry.AsyncEval": "it starts MosaicML platform runs from Composer checkpoints",
    "llmfoundry.CurriculumLearning": "it replaces the loader of Composer's Trainer; list streams in the data config",
    "llmfoundry.DatasetSwap": "it replaces the loader of Composer's Trainer; list streams in the data config",
    "llmfoundry.EvalGauntlet": "it averages in-context-learning tasks, which only Composer's Trainer evaluates",
    "llmfoundry.EvalOutputLogging": "it decodes in-context-learning batches, which only Composer's Trainer evaluates",
    "llmfoundry.HuggingFaceCheckpointer": "it converts a Composer model; `mosaic-photon export` does it",
    "llmfoundry.LossPerpVsContextLengthLogger": "it needs llm-foundry's Composer model and the MLflow logger",
    "llmfoundry.MegaBlocksMoE_TokPerExpert": "it reads MegaBlocks' expert layers, which no TorchTitan model has",
    "llmfoundry.MonolithicCheckpointSaver": "it saves Composer checkpoints; use TorchTitan's [checkpoint] table",
}
"""Package and class -> the end of "is refused: ...". Subclasses are refused with their base."""


def refusal(cls: type) -> str | None:
    """Why a callback class is refused in every job, or None where it is not."""
    return next((REFUSED[name] for name in map(qualified, cls.__mro__) if name in REFUSED), None)


def refusal_in(job: MosaicJobConfig, facts: Facts, cls: type, arguments: Mapping[str, Any]) -> str | None:
    """Why a callback class with these arguments cannot work in this job, or None where it can."""
    names = set(map(qualified, cls.__mro__))
    if "composer.ActivationMonitor" in names:
        if job.parallelism.tensor_parallel_degree > 1:
            return "under parallelism.tensor_parallel_degree > 1 a token's activations lie in parts on several ranks"
        if compiles_model(job):
            return 'it looks into modules, which compile.enable = true compiles; set compile.components = ["loss"]'
    if "mosaic_photon.OptimizerMonitor" in names and job.optimizer.early_step_in_backward:
        return (
            "it measures gradients when the optimizer is to step, and optimizer.early_step_in_backward = true frees "
            "them before that; drop one"
        )
    if "mosaic_photon.SpikeGuard" in names and job.optimizer.early_step_in_backward:
        return (
            "it holds back optimizer steps, and optimizer.early_step_in_backward = true has made them before the "
            "gradient norm is known; drop one"
        )
    if "llmfoundry.LayerFreezing" in names:
        known = [clean_name(name) for name, _ in facts.model.named_parameters()]
        unknown = next((name for name in arguments["layer_names"] if name not in known), None)
        if unknown is not None:
            return f"layer_names: the model has no parameter {unknown!r}.{nearest(unknown, known)}"
    if "llmfoundry.EnvironmentLoggingCallback" in names and arguments.get("log_git", True):
        folder = arguments.get("workspace_dir", "/workspace")
        if not Path(folder).is_dir():
            return (
                f"log_git = true looks for repositories in workspace_dir = {folder!r}, which is no folder; set either"
            )
    return None


def qualified(cls: type) -> str:
    """Package and class, by which callbacks are known here."""
    return f"{cls.__module__.split('.')[0]}.{cls.__name__}"
