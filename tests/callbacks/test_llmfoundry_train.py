"""llm-foundry's own train, with this project's callbacks by their registry names."""

import pytest

from foundry_train import train_config
from mosaic_photon.callbacks import OptimizerMonitor, QuasiHyperbolicParameterMonitor


@pytest.mark.filterwarnings("ignore")
def test_callbacks_by_name_log_in_llm_foundrys_train(prepared_data):
    from composer.loggers import InMemoryLogger
    from llmfoundry.command_utils.train import train
    from omegaconf import OmegaConf

    yaml = train_config(
        prepared_data,
        steps=4,
        optimizer={"name": "decoupled_adamw", "lr": 1e-3, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.0},
        scheduler={"name": "constant_with_warmup", "t_warmup": "0ba"},
        callbacks={
            "optimizer_monitor": {"batch_log_interval": 2},
            "quasi_hyperbolic_parameter_monitor": {},
            "spike_guard": {"window": 2},
        },
    )
    with pytest.warns(UserWarning, match="under Composer's Trainer a callback has no veto"):
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
