"""Callbacks of Composer and llm-foundry that cannot work inside TorchTitan, and why."""

REFUSED = {
    "composer.CheckpointSaver": "it saves through Composer's Trainer; use TorchTitan's [checkpoint] table",
    "composer.LoadCheckpoint": "it loads Composer checkpoints; use TorchTitan's checkpoint.initial_load_path",
    "composer.ExportForInferenceCallback": "it exports through Composer's Trainer; export the TorchTitan checkpoint",
    "composer.Generate": "it needs a Hugging Face model's generate(); export the checkpoint and generate from that",
    "composer.ImageVisualizer": "it shows batches of images; the batches here are text",
    "composer.MLPerfCallback": "it times MLPerf's image benchmarks in Composer's Trainer",
    "llmfoundry.AsyncEval": "it starts MosaicML platform runs from Composer checkpoints",
    "llmfoundry.CurriculumLearning": "it replaces the loader of Composer's Trainer; list streams in the data config",
    "llmfoundry.DatasetSwap": "it replaces the loader of Composer's Trainer; list streams in the data config",
    "llmfoundry.EvalGauntlet": "it averages in-context-learning tasks, which only Composer's Trainer evaluates",
    "llmfoundry.EvalOutputLogging": "it decodes in-context-learning batches, which only Composer's Trainer evaluates",
    "llmfoundry.HuggingFaceCheckpointer": "it converts a Composer model; export the TorchTitan checkpoint",
    "llmfoundry.LossPerpVsContextLengthLogger": "it needs llm-foundry's Composer model and the MLflow logger",
    "llmfoundry.MegaBlocksMoE_TokPerExpert": "it reads MegaBlocks' expert layers, which no TorchTitan model has",
    "llmfoundry.MonolithicCheckpointSaver": "it saves Composer checkpoints; use TorchTitan's [checkpoint] table",
}
"""Package and class -> the end of "is refused: ...". Subclasses are refused with their base."""


def refusal(cls: type) -> str | None:
    """Why a callback class is refused, or None where it is not."""
    for base in cls.__mro__:
        reason = REFUSED.get(f"{base.__module__.split('.')[0]}.{base.__name__}")
        if reason is not None:
            return reason
    return None
