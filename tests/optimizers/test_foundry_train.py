"""llm-foundry's own train finds optimizer and schedule by name; the monitor reads the optimizer."""

from __future__ import annotations

import pytest

from foundry_train import train_config
from mosaic_photon.optimizers import QHADOPT
from mosaic_photon.schedulers.wsd import WarmupStableDecay


@pytest.mark.filterwarnings("ignore")
def test_qhadopt_and_a_cooldown_schedule_train_in_llm_foundry_by_name(prepared_data):
    from composer.loggers import InMemoryLogger
    from llmfoundry.command_utils.train import train
    from omegaconf import OmegaConf

    yaml = train_config(
        prepared_data,
        steps=8,
        optimizer={"name": "qhadopt", "lr": 1e-2, "v1": 0.8, "decouple": True, "weight_decay": 1e-3},
        scheduler={"name": "constant_with_sqrt_cooldown_with_warmup", "t_warmup": "2ba", "t_cooldown": "0.5dur"},
        callbacks={"optimizer_monitor": {"batch_log_interval": 1}, "lr_monitor": {}},
    )
    trainer = train(OmegaConf.create(yaml))
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
