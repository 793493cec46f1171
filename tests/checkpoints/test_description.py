"""What a checkpoint says of its model's function: each field of the model args is compared, or left out by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from mosaic_photon import train_spec
from mosaic_photon.checkpoints import description
from mosaic_photon.errors import ConfigError
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
from mosaic_photon.titan.llama3_mup import Llama3MuPModelArgs

ROPE = {"attn_config": {"rope": True}}
MUP = {"mup": {"enabled": True, "width": 2.0}}


def other(value: Any) -> Any:
    """Another value that a field might have."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x"


def fields(table: dict[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all values, in tables too."""
    names = []
    for name, value in table.items():
        names += fields(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return names


def changed(table: dict[str, Any], name: str) -> dict[str, Any]:
    """The table with another value under the dotted name."""
    key, _, rest = name.partition(".")
    return {**table, key: changed(table[key], rest) if rest else other(table[key])}


SEEN_OTHERWISE = {"max_seq_len", "fixed_attn_block_size", "attn_mask_type"}
"""Compared only where they have an effect; see below."""


@pytest.mark.parametrize("model", train_spec.known_models())
def test_each_field_is_compared_or_left_out_by_name(model: str) -> None:
    spec = train_spec.build_train_spec(model)
    args = dataclasses.asdict(spec.model_args["debugmodel"])
    for name in fields(args):
        if name in SEEN_OTHERWISE or name == "n_kv_heads":
            continue
        left_out = bool({name, name.partition(".")[0]} & description.LEFT_OUT)
        same = description.function_of(args) == description.function_of(changed(args, name))
        assert same == left_out, name


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ({}, {"n_heads": 8}, ["n_heads is 12 in the checkpoint and 8 in the job"]),
        ({}, MUP, ["mup.enabled is null in the checkpoint and true in the job"]),
        (MUP, {"mup": {"enabled": True, "width": 4.0}}, ["mup.width is 2.0 in the checkpoint and 4.0 in the job"]),
        (ROPE, {"attn_config": {"rope": True, "rope_theta": 5e5}}, ["attn_config.rope_theta is 10000 in the"]),
        ({}, {"attn_config": {"alibi": True}}, ["attn_config.alibi is false in the checkpoint and true in the job"]),
        ({}, {"final_logit_softcapping": 30.0}, ["final_logit_softcapping is null in the checkpoint and 30.0 in the"]),
        ({}, {"norm_type": "layernorm", "attn_config": {"attn_impl": "torch"}, "resid_pdrop": 0.1}, []),
        (ROPE, {**ROPE, "max_seq_len": 4096, "init_config": {"init_std": 1.0}}, []),
        ({"mup": {"enabled": False}}, {}, []),
    ],
)
def test_what_an_mpt_computes(before: dict, after: dict, says: list[str], tmp_path: Path) -> None:
    description.write(str(tmp_path), MPTMuPModelArgs(**before))
    lines = description.changes(str(tmp_path), MPTMuPModelArgs(**after))
    assert lines is not None
    assert bool(lines) == bool(says)
    for text in says:
        assert any(line.startswith(text) for line in lines), lines


TIGHT = {"d_model": 64, "n_heads": 4}
MULTIQUERY = {**TIGHT, "attn_config": {"attn_type": "multiquery_attention"}}
AT_BASE = {"enabled": True, "width": 1.0, "depth": 1.0, "depth_alpha": 0.5}


def grouped(kv_n_heads: int) -> dict[str, Any]:
    return {**TIGHT, "attn_config": {"attn_type": "grouped_query_attention", "kv_n_heads": kv_n_heads}}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({}, {"attn_config": {"rope_theta": 5e5, "rope_hf_config": {"type": "linear", "factor": 2.0}}}),
        ({}, {"attn_config": {"alibi_bias_max": 16}}),
        (ROPE, {"attn_config": {"rope": True, "rope_hf_config": {"factor": 1.0}}}),
        (ROPE, {"attn_config": {"rope": True, "rope_hf_config": {}}}),
        ({}, {"logit_scale": 1.0}),
        (TIGHT, {**TIGHT, "logit_scale": 1}),
        ({**TIGHT, "logit_scale": "inv_sqrt_d_model"}, {**TIGHT, "logit_scale": 0.125}),
        (TIGHT, {**TIGHT, "attn_config": {"softmax_scale": 0.25}}),
        ({}, {"ffn_config": {"ffn_act_fn": {"name": "gelu", "approximate": "none"}}}),
        ({}, {"ffn_config": {"ffn_act_fn": {"name": "gelu"}}}),
        (TIGHT, grouped(4)),
        (MULTIQUERY, grouped(1)),
        (MUP, {"mup": {**MUP["mup"], "scale_eps": False, "scale_hidden_lr": False}}),
        (MUP, {"mup": {**MUP["mup"], "depth_alpha": 0.5}}),
        ({}, {"mup": AT_BASE}),
    ],
)
def test_the_same_function_said_otherwise(one: dict, other: dict, tmp_path: Path) -> None:
    for before, after in ((one, other), (other, one)):
        description.write(str(tmp_path), MPTMuPModelArgs(**before))
        assert description.changes(str(tmp_path), MPTMuPModelArgs(**after)) == []


@pytest.mark.parametrize(
    ("one", "other", "name"),
    [
        (TIGHT, grouped(2), "attn_config.kv_n_heads is 4"),
        (TIGHT, MULTIQUERY, "attn_config.kv_n_heads is 4"),
        (TIGHT, {**TIGHT, "attn_config": {"softmax_scale": 0.5}}, "attn_config.softmax_scale is 0.25"),
        ({}, {"ffn_config": {"ffn_act_fn": {"name": "gelu", "approximate": "tanh"}}}, "ffn_config.ffn_act_fn.approx"),
        ({"mup": AT_BASE}, {"mup": {**AT_BASE, "input_multiplier": 2.0}}, "mup.input_multiplier"),
        ({"mup": AT_BASE}, {"mup": {**AT_BASE, "attention_scale": True}}, "mup.attention_scale"),
        ({"mup": AT_BASE}, {"mup": {**AT_BASE, "depth": 2.0}}, "mup.depth"),
    ],
)
def test_another_function_said_likewise(one: dict, other: dict, name: str, tmp_path: Path) -> None:
    description.write(str(tmp_path), MPTMuPModelArgs(**one))
    lines = description.changes(str(tmp_path), MPTMuPModelArgs(**other))
    assert lines and any(line.startswith(name) for line in lines), lines


def test_mup_at_the_base_size_of_llama(tmp_path: Path) -> None:
    """A job without `[mup]` builds TorchTitan's own model args."""
    description.write(str(tmp_path), Llama3MuPModelArgs(mup=AT_BASE))
    args = train_spec.build_train_spec("llama3_mosaic").model_args["debugmodel"]
    plain = type(args)()
    assert not isinstance(plain, Llama3MuPModelArgs) and description.changes(str(tmp_path), plain) == []


def test_what_has_an_effect_only_beside_something_else(tmp_path: Path) -> None:
    def function(model: str, **more: Any) -> dict[str, Any]:
        args = train_spec.build_train_spec(model).model_args["debugmodel"]
        return description.function_of(dataclasses.asdict(args) | more)

    assert function("llama3_mosaic", attn_mask_type="block_causal") == function("llama3_mosaic")
    flex = {"attn_type": "flex"}
    assert function("llama3_mosaic", **flex) == function("llama3_mosaic")
    assert function("llama3_mosaic", **flex, attn_mask_type="block_causal") != function("llama3_mosaic")
    assert function("llama4_mosaic", **flex, fixed_attn_block_size=5) == function("llama4_mosaic", **flex)
    chunks = {**flex, "every_n_layers_nope": 4}
    assert function("llama4_mosaic", **chunks, fixed_attn_block_size=5) != function("llama4_mosaic", **chunks)
    assert function("deepseek_v3_mosaic", max_seq_len=2048) == function("deepseek_v3_mosaic", max_seq_len=4096)
    assert function("deepseek_v3_mosaic", max_seq_len=2048) != function("deepseek_v3_mosaic", max_seq_len=4097)
    dynamic = {"rope": True, "rope_hf_config": {"type": "dynamic", "factor": 2.0}}
    args = [dataclasses.asdict(MPTMuPModelArgs(attn_config=dynamic, max_seq_len=n)) for n in (128, 256)]
    assert description.function_of(args[0]) != description.function_of(args[1])
    assert function("qwen3_mosaic", n_kv_heads=None) == function("qwen3_mosaic", n_kv_heads=16)


def test_what_a_later_release_adds_counts_as_its_default(tmp_path: Path) -> None:
    description.write(str(tmp_path), Llama3MuPModelArgs())
    path = tmp_path / description.FILE
    saved = json.loads(path.read_text())
    for name in ("norm_eps", "rope_scaling_args"):
        del saved["model"][name]
    path.write_text(json.dumps(saved))
    assert description.changes(str(tmp_path), Llama3MuPModelArgs()) == []
    lines = description.changes(str(tmp_path), Llama3MuPModelArgs(norm_eps=1e-6))
    assert lines == ["norm_eps is 1e-05 in the checkpoint and 1e-06 in the job"]


@pytest.mark.parametrize("text", ["{", "[]", '{"version": 1}'])
def test_a_description_that_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / description.FILE).write_text(text)
    with pytest.raises(ConfigError, match="is no description of a model"):
        description.changes(str(tmp_path), Llama3MuPModelArgs())


@pytest.mark.parametrize("args", [MPTMuPModelArgs(), Llama3MuPModelArgs()])
def test_a_description_by_a_release_that_knows_more(args: Any, tmp_path: Path) -> None:
    saved = dataclasses.asdict(args) | {"mup": {"enabled": True, "twist": 2.0}}
    (tmp_path / description.FILE).write_text(json.dumps({"version": description.VERSION, "model": saved}))
    with pytest.raises(ConfigError, match=r"json is no description of a model that this release knows: .*twist"):
        description.changes(str(tmp_path), args)
