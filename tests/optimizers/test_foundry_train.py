"""llm-foundry's own train finds optimizer and schedule by name; Composer's monitor reads the optimizer."""

from __future__ import annotations

import pytest

import jobs
from mosaic_photon.optimizers import QHADOPT
from mosaic_photon.schedulers.wsd import WarmupStableDecay


def config(data):
    """A debug MPT on prepared shards, as a user's YAML would have it."""
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
        "optimizer": {"name": "qhadopt", "lr": 1e-2, "v1": 0.8, "decouple": True, "weight_decay": 1e-3},
        "scheduler": {"name": "constant_with_sqrt_cooldown_with_warmup", "t_warmup": "2ba", "t_cooldown": "0.5dur"},
        "callbacks": {"optimizer_monitor": {"batch_log_interval": 1}, "lr_monitor": {}},
        "max_duration": "8ba",
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


@pytest.mark.filterwarnings("ignore")
def test_qhadopt_and_a_cooldown_schedule_train_in_llm_foundry_by_name(prepared_data):
    from composer.loggers import InMemoryLogger
    from llmfoundry.command_utils.train import train
    from omegaconf import OmegaConf

    trainer = train(OmegaConf.create(config(prepared_data)))
    (optimizer,) = trainer.state.optimizers
    assert type(optimizer) is QHADOPT
    assert optimizer.param_groups[0]["v1"] == 0.8
    memory = next(one for one in trainer.logger.destinations if isinstance(one, InMemoryLogger))
    schedule = WarmupStableDecay(2, 4, 8, "sqrt")
    lrs = [value for _, value in memory.data["lr-QHADOPT/group0"]]
    assert lrs == pytest.approx([1e-2 * schedule(t) for t in range(8)])  # logged at a batch's end, for the next one
    weight = "model.transformer.blocks.1.ffn.up_proj.weight"
    updates = [float(value) for _, value in memory.data[f"l2_norm/update/{weight}"]]
    assert updates[0] == 0 and updates[3] > 0  # call 0 updates nothing
