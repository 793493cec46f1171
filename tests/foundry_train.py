"""A small config for llm-foundry's own train."""

from pathlib import Path
from typing import Any

import jobs


def train_config(data: Path, steps: int, **parts: dict[str, Any]) -> dict[str, Any]:
    """A debug MPT on prepared shards, as a user's YAML would have it; `parts` are optimizer, scheduler, callbacks."""
    return {
        "model": {
            "name": "mpt_causal_lm",
            "d_model": 32,
            "n_heads": 2,
            "n_layers": 2,
            "max_seq_len": 64,
            "vocab_size": 2048,
            "attn_config": {"attn_impl": "torch"},
            "init_device": "cpu",
            "loss_fn": "torch_crossentropy",
        },
        "tokenizer": {"name": str(jobs.TOKENIZER), "kwargs": {"model_max_length": 64}},
        "train_loader": {
            "name": "text",
            "dataset": {"local": str(data), "split": "train", "shuffle": False, "max_seq_len": 64},
            "drop_last": True,
            "num_workers": 0,
            "prefetch_factor": None,
            "persistent_workers": False,
        },
        **parts,
        "max_duration": f"{steps}ba",
        "eval_interval": 0,
        "max_seq_len": 64,
        "seed": 1,
        "global_train_batch_size": 2,
        "device_train_microbatch_size": 2,
        "precision": "fp32",
        "python_log_level": "error",
        "progress_bar": False,
        "loggers": {"inmemory": {}},
        "save_folder": None,
    }
