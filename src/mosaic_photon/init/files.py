"""The two files of a first job, commented."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_photon.init.shards import Shards
from mosaic_photon.init.sizes import Plan
from mosaic_photon.job.schema import SCHEMAS

MODELS = {"llama3": "llama3_mosaic", "mpt": "mpt_mup_mosaic"}
STEPS = {"cpu": 100, "gpu": 1000}
CHECKPOINT_BYTES = 12
"""Of a parameter in a checkpoint: the weight and AdamW's two moments, float32."""
KEPT = 2
"""Checkpoints that stay; for a moment there is one more."""


@dataclass(frozen=True)
class FirstJob:
    """What the files say."""

    family: str
    plan: Plan
    shards: Shards
    vocabulary: int
    """Rows of the model's embedding."""
    tokenizer: str
    """Its folder."""
    outputs: str
    """Folder for all that the job writes."""
    room: int
    """Bytes that are free there."""

    @property
    def model(self) -> str:
        """`[model] name`."""
        return MODELS[self.family]

    @property
    def llm_foundrys(self) -> bool:
        """Whether the last token of a sample is no target more, which is llm-foundry's meaning of max_seq_len."""
        return self.plan.seq_len == self.shards.tokens

    def write(self, folder: Path) -> None:
        """job.toml and data.toml."""
        (folder / "data.toml").write_text(self.data_config(), "utf-8")
        (folder / "job.toml").write_text(self.job_config(), "utf-8")

    def data_config(self) -> str:
        """llm-foundry's train_loader and eval_loader."""
        loaders = [
            f"{_schema('data')}\n# llm-foundry's train_loader and eval_loader, as they stand there (docs/data.md). From"
            " `mosaic-photon init`.\n",
            self._loader("mosaic_dataloader", self.shards.train, train=True),
        ]
        if self.shards.val is not None:
            loaders.append(self._loader("mosaic_eval_dataloader", self.shards.val, train=False))
        return "\n".join(loaders)

    def _loader(self, table: str, split: str | None, train: bool) -> str:
        shards = self.shards
        ((key, place),) = shards.place.items()
        about = {
            "local": "the shards",
            "remote": "the shards, which are cached on this node; `local` names another folder for that",
        }
        lines = [
            f"[{table}]" + ("" if train else "      # what [validation] of the job reads"),
            'name = "text"',
            f"drop_last = {_toml(train)}",
            "",
            f"[{table}.dataset]",
            f"{key} = {_toml(place)}    # {about[key]}",
            *([f"split = {_toml(split)}"] if split else []),
            f"shuffle = {_toml(train)}",
            *(["shuffle_seed = 17"] if train else []),
            *([f"token_encoding_type = {_toml(shards.encoding)}    # tokens are bytes"] if shards.encoding else []),
        ]
        if self.llm_foundrys:
            lines.append(f"max_seq_len = {shards.tokens}    # all of a sample's tokens; the last has no target")
        if train:
            lines += ['# cache_limit = "100gb"      # evict what was cached of a remote beyond this size']
        return "\n".join(lines) + "\n"

    def job_config(self) -> str:
        """TorchTitan's tables, and this project's."""
        plan, gpu = self.plan, self.plan.machine.gpus > 0
        steps = STEPS["gpu" if gpu else "cpu"]
        validate = self.shards.val is not None
        values = {
            "schema": _schema("job"),
            "machine": plan.machine,
            "outputs": _toml(self.outputs),
            "tokenizer": _toml(self.tokenizer),
            "model": self.model,
            "flavor": _toml(plan.size.flavor),
            "overrides": "\n".join(f"{name} = {_toml(value)}" for name, value in self._overrides().items()),
            "recipe": MPT_RECIPE if self.family == "mpt" else LLAMA3_RECIPE.format(lr="3e-4" if gpu else "8e-4"),
            "warmup": steps // 10,
            "steps": steps,
            "local_batch": plan.local_batch,
            "seq_len": plan.seq_len,
            "precision": _toml("bfloat16" if plan.machine.bfloat16 else "float32"),
            "recompute": _toml("full" if plan.recompute else "selective" if gpu else "none"),
            "checkpoint": _toml(self.room >= (KEPT + 1) * CHECKPOINT_BYTES * plan.size.parameters(self.vocabulary)),
            "kept": KEPT,
            "interval": steps // 2,
            "log": steps // 20,
            "validate": _toml(validate),
            "freq": steps // 4,
        }
        return JOB.format(**values)

    def _overrides(self) -> dict[str, Any]:
        mpt = {"tie_word_embeddings": False, "max_seq_len": self.plan.seq_len} if self.family == "mpt" else {}
        return {"vocab_size": self.vocabulary, **self.plan.size.overrides, **mpt}


def _schema(name: str) -> str:
    """The line by which Taplo knows the schema; it takes addresses and, of paths, relative ones."""
    return f"#:schema {(SCHEMAS / f'{name}.json').as_uri()}"


def _toml(value: Any) -> str:
    """A value as TOML has it."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


LLAMA3_RECIPE = """\
[optimizer]
name = "AdamW"                # or QHADOPT, ADOPT, or any optimizer in llm-foundry's registry
lr = {lr}
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
"""
MPT_RECIPE = """\
[mup]                         # CompleteP: what is tuned at the base size holds for wider and deeper models
enabled = true
base_width = 128
base_depth = 2

[optimizer]
name = "AdamW"                # or QHADOPT, ADOPT, or any optimizer in llm-foundry's registry
lr = 2e-3                     # of the base size; scaled per parameter
weight_decay = 0.1
beta1 = 0.9
beta2 = 0.95
"""
JOB = """\
{schema}
# From `mosaic-photon init`, for a machine with {machine}. Every TorchTitan table and field works here (docs/jobs.md);
# each can be overridden after `--` on the command line, and `-- --help` lists them all.

[job]
dump_folder = {outputs}

[model]
name = "{model}"
flavor = {flavor}
hf_assets_path = {tokenizer}

[model.overrides]             # fields of the flavor that are replaced
{overrides}

{recipe}
[lr_scheduler]                # without a name: TorchTitan's warm-up and decay
warmup_steps = {warmup}
decay_ratio = 0.5
min_lr_factor = 0.1

[training]
steps = {steps}
local_batch_size = {local_batch:<10} # sequences in a micro-batch of one process
global_batch_size = -1        # sequences in a step; -1: one micro-batch of each process
seq_len = {seq_len}
mixed_precision_param = {precision}   # in which the layers compute

[activation_checkpoint]
mode = {recompute:<22} # "none", "selective" or "full": how much is computed again to save memory

[compile]
enable = false                # true is faster on GPUs, after a minute of compiling

[checkpoint]
enable = {checkpoint:<20} # the same command goes on from the newest checkpoint
interval = {interval}
keep_latest_k = {kept}
last_save_model_only = false  # the last checkpoint can be trained on from

[metrics]
log_freq = {log}
enable_tensorboard = true     # tensorboard --logdir on dump_folder shows the curves

[validation]
enable = {validate}
local_batch_size = {local_batch}
seq_len = {seq_len}
freq = {freq}
steps = 8                     # batches in a pass; -1: the whole eval set

[debug]
seed = 17
"""
