"""A fault in this package's own code comes out as it is, with its traceback; only users' mistakes become messages.

Each test breaks one of our functions behind a call of upstream's that judges what the user gave.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mds_data import job as data_job
from mosaic_photon import errors
from mosaic_photon.callbacks import optimizer_monitor
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.errors import ConfigError, ask_upstream
from mosaic_photon.job.run_length import RunLength
from mosaic_photon.job.tables import Optimizer
from mosaic_photon.optimizers import qhadopt
from mosaic_photon.optimizers.builder import build_optimizers
from mosaic_photon.optimizers.container import GroupedOptimizers
from mosaic_photon.schedulers.catalog import build_multiplier
from mosaic_photon.schedulers.wsd import WarmupStableDecay

SLIP: dict[str, Any] = {}
exec(compile("def slip(*_, **__): None.shape", errors.__file__, "exec"), SLIP)
slip = SLIP["slip"]  # as if it stood in the package


OURS: dict[str, tuple[Any, str, Callable[[], Any]]] = {
    # what breaks, and what then is called
    "our schedule": (WarmupStableDecay, "__call__", lambda: schedule("constant_with_linear_cooldown_with_warmup")),
    "times of a Composer schedule": (RunLength, "per_step", lambda: schedule("CosineAnnealingScheduler", {})),
    "our optimizer": (qhadopt, "_check", lambda: optimizer("QHADOPT")),
    "our container": (GroupedOptimizers, "_post_init", lambda: optimizer("AdamW")),
    "our callback": (optimizer_monitor, "Interval", lambda: build_callbacks({"optimizer_monitor": {}})),
}


def schedule(name: str, kwargs: dict[str, Any] | None = None) -> Any:
    return build_multiplier(name, {"t_warmup": "2ba", "t_cooldown": "3ba"} if kwargs is None else kwargs, RunLength(9))


def optimizer(name: str) -> Any:
    from torchtitan.distributed import ParallelDims

    one = ParallelDims(dp_replicate=1, dp_shard=1, cp=1, tp=1, pp=1, ep=1, etp=1, world_size=1)
    return build_optimizers([torch.nn.Linear(2, 2)], Optimizer(name=name, implementation="for-loop"), one)


@pytest.mark.parametrize("name", OURS)
def test_a_fault_of_ours_is_no_mistake_of_the_users(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, call = OURS[name]
    call()
    monkeypatch.setattr(owner, attribute, slip)
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
        call()


def test_a_fault_of_ours_under_llm_foundry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mosaic_photon.dataloader import build_mosaic_dataloader
    from mosaic_photon.dataloader.dataset import ShardedDataset
    from mosaic_photon.models.mpt_mup import MPT_MUP_CONFIGS, foundry

    with monkeypatch.context() as patch, pytest.raises(AttributeError):
        patch.setattr(foundry.MPTMuPBlock, "__init__", slip)
        foundry.check_model(MPT_MUP_CONFIGS["debugmodel"])
    foundry.check_model(MPT_MUP_CONFIGS["debugmodel"])

    from streaming import MDSWriter

    with MDSWriter(out=str(tmp_path), columns={"prompt": "str", "response": "str"}) as writer:
        for _ in range(8):
            writer.write({"prompt": "a", "response": "b"})
    streams = {"a": {"remote": str(tmp_path), "local": str(tmp_path / "cache")}}
    dataset = {"streams": streams, "decoder_only_format": True, "max_seq_len": 16}
    config = data_job(loader={"name": "finetuning", "num_workers": 0, "drop_last": True, "dataset": dataset})
    monkeypatch.setattr(ShardedDataset, "__init__", slip)
    with pytest.raises(AttributeError):
        build_mosaic_dataloader(1, 0, None, config)


def test_what_upstream_says_of_a_users_value_is_a_message() -> None:
    def one_argument(value: int) -> int:
        return int(value)

    assert ask_upstream("said", (ValueError,), one_argument, 3) == 3
    for arguments, kind in (((1, 2), TypeError), (("x",), ValueError)):
        with pytest.raises(ConfigError, match=r"^said: .*\.$"):
            ask_upstream("said", (kind,), one_argument, *arguments)
    with pytest.raises(ValueError, match="invalid literal") as raised:
        ask_upstream("said", (TypeError,), one_argument, "x")
    assert not isinstance(raised.value, ConfigError)
