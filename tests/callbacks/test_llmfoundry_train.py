"""llm-foundry's own train, with this project's callbacks by their registry names."""

import pytest

import jobs
from mosaic_photon.callbacks import OptimizerMonitor, QuasiHyperbolicParameterMonitor


def config(data, **callbacks):
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
        "optimizer": {"name": "decoupled_adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        "scheduler": {"name": "constant_with_warmup", "t_warmup": "0ba"},
        "callbacks": callbacks,
        "max_duration": "4ba",
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
def test_callbacks_by_name_log_in_llm_foundrys_train(prepared_data):
    from composer.loggers import InMemoryLogger
    from llmfoundry.command_utils.train import train
    from omegaconf import OmegaConf

    yaml = config(prepared_data, optimizer_monitor={"batch_log_interval": 2}, quasi_hyperbolic_parameter_monitor={})
    trainer = train(OmegaConf.create(yaml))
    kinds = {type(callback) for callback in trainer.state.callbacks}
    assert {OptimizerMonitor, QuasiHyperbolicParameterMonitor} <= kinds
    memory = next(one for one in trainer.logger.destinations if isinstance(one, InMemoryLogger))
    logged = {name: [stamp.batch.value for stamp, _ in data] for name, data in memory.data.items()}
    weight = "model.transformer.blocks.1.ffn.up_proj.weight"
    for quantity in ("l2_norm/grad", "l2_norm/moment", "l2_norm/param", "l2_norm/update", "l2_norm/moment2"):
        assert logged[f"{quantity}/{weight}"] == [2, 4]
    assert logged["l2_norm/grad/global"] == [2, 4]
    assert logged["quasi_hyperbolic/DecoupledAdamW/group0/beta2"] == [1, 2, 3, 4]
