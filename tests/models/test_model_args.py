"""What is asked of a model's sizes before it is built."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

from mosaic_photon.errors import ConfigError
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.model_args import check_flex_heads
from mosaic_photon.titan.llama3_mup import TransformerModelArgs

JOB: Any = SimpleNamespace(model=SimpleNamespace(name="mpt_mup_mosaic", flavor="debugmodel"))


def mpt(d_model: int, **attn: Any) -> MPTMuPModelArgs:
    return MPTMuPModelArgs(d_model=d_model, n_heads=4, n_layers=1, vocab_size=64, attn_config=attn)


def on(device: str, args: Any) -> Any:
    return SimpleNamespace(model_args=args, on_cpu=device == "cpu")


@pytest.mark.parametrize("attn", [{"alibi": True}, {"attn_uses_sequence_id": True}, {"sliding_window_size": 8}])
def test_a_gpu_has_no_flex_kernel_for_heads_of_fewer_than_16_dimensions(attn: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="has heads of 8 dimensions"):
        check_flex_heads(JOB, on("cuda", mpt(32, **attn)))
    check_flex_heads(JOB, on("cuda", mpt(64, **attn)))
    check_flex_heads(JOB, on("cpu", mpt(32, **attn)))


def test_small_heads_may_attend_without_flex_attention() -> None:
    check_flex_heads(JOB, on("cuda", mpt(32)))
    check_flex_heads(JOB, on("cuda", mpt(32, rope=True, attn_logit_softcapping=20.0)))
    check_flex_heads(JOB, on("cuda", mpt(32, alibi=True, attn_impl="torch")))
    check_flex_heads(JOB, on("cuda", TransformerModelArgs(dim=32, n_heads=4)))


def test_titan_s_own_models_are_judged_too() -> None:
    with pytest.raises(ConfigError, match="heads of 8 dimensions"):
        check_flex_heads(JOB, on("cuda", TransformerModelArgs(dim=32, n_heads=4, attn_type="flex")))


def test_heads_are_as_wide_as_what_they_read() -> None:
    """DeepSeek's are not its width over their number."""
    from torchtitan.models.deepseek_v3 import deepseekv3_args

    args = dataclasses.replace(deepseekv3_args["debugmodel_flex_attn"], n_heads=32)
    assert args.dim // args.n_heads < 16 <= args.v_head_dim
    check_flex_heads(JOB, on("cuda", args))
