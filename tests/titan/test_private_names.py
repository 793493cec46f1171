"""Upstream's private names that this package uses: each is there, and stands in this table."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import jobs
import mosaic_photon.titan  # noqa: F401  (before TorchTitan)
from mosaic_photon.titan.releases import installed

SRC = jobs.ROOT / "src" / "mosaic_photon"
PRIVATE = [
    "torchtitan.components.checkpoint:CheckpointManager._purge_stale_checkpoints",
    "torchtitan.components.checkpoint:CheckpointManager._should_save",
    "torchtitan.components.checkpoint:CheckpointManager._states_to_load",
    "streaming.base.storage:S3Downloader._create_s3_client",
    "torch.distributed.distributed_c10d:_set_pg_timeout",
    "torch.distributed.pipelining.schedules:_Action.from_str",
    "torch.distributed.pipelining.schedules:_validate_schedule",
    "torch.distributed:_composable",
    "torch.nn:Linear._parameters",
    "torch.nn:init._no_grad_trunc_normal_",
    "torch:Tensor._make_wrapper_subclass",
    "torch:_C._disabled_torch_function_impl",
    "torch:_utils._get_available_device_type",
]
"""Module and name. An upstream release that drops one breaks what uses it here."""
OF_RELEASE = {
    "v02": [
        "torchtitan.components.checkpoint:CheckpointManager._async_wait",
        "torchtitan.components.optimizer:OptimizersContainer._post_init",
        "torchtitan.components.optimizer:OptimizersContainer._validate_length",
        "torchtitan.models.attention:FlexAttentionWrapper._compiled_flex_attn",
        "torchtitan.models.attention:_compiled_create_block_mask",
        "torchtitan.models.llama3.infra.parallelize:_op_sac_save_list",
        "torchtitan.models:_supported_models",
        "torchtitan.protocols.model_converter:_registry_model_converter_cls",
        "torchtitan.protocols.train_spec:_extra_train_specs",
    ],
    "v03": [
        "torch.distributed.tensor.experimental._context_parallel._attention:_compiled_create_block_mask",
        "torch.nn.attention.flex_attention:_DEFAULT_SPARSE_BLOCK_SIZE",
        "torchtitan.components.checkpoint:CheckpointManager._wait_for_saving",
        "torchtitan.components.loss:BaseLoss._maybe_compile",
        "torchtitan.components.loss:_LossParallelCrossEntropy",
        "torchtitan.components.optimizer:OptimizersContainer._validate_params",
        "torchtitan.distributed.pipeline_parallel:_generate_llm_fqn_per_model_part",
        "torchtitan.distributed.compile:_maybe_enable_async_tp",
        "torchtitan.distributed.pipeline_parallel:_get_pipeline_metadata",
        "torchtitan.models.common.attention:FlexAttention._compiled_flex_attn",
        "torchtitan.models.common.attention:_compiled_create_block_mask",
        "torchtitan.trainer:Trainer._forward_backward_body",
    ],
}
"""Those of one TorchTitan."""
ALL = [*PRIVATE, *OF_RELEASE["v02"], *OF_RELEASE["v03"]]


@pytest.mark.parametrize("name", [*PRIVATE, *OF_RELEASE[installed().folder]])
def test_the_installed_release_has_it(name: str) -> None:
    module, _, path = name.partition(":")
    found = importlib.import_module(module)
    for part in path.split("."):
        if part == "_parameters":  # which modules have, not their class
            found = found(1, 1)
        found = getattr(found, part)


def private(names: set[str]) -> set[str]:
    return {name for name in names if re.match(r"_[a-zA-Z]", name)}


def names_of(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Private names that a file uses, and those that it defines."""
    used, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            (own if isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self" else used).add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            used |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            own.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            own.add(node.id)
    return private(used), private(own)


def unlisted(path: Path) -> set[str]:
    """Private names that a file of the door uses, does not define, and has not put into the table."""
    used, own = names_of(ast.parse(path.read_text()))
    return used - own - {part for name in ALL for part in re.split(r"[.:]", name)}


def door() -> Iterator[Path]:
    yield from (SRC / "titan").rglob("*.py")
    yield from (SRC / "compat").rglob("*.py")


def test_each_that_is_used_is_listed() -> None:
    assert {path.name: names for path in door() if (names := unlisted(path))} == {}


def test_torchtitan_s_are_used_in_titan_and_compat_only() -> None:
    names = {name.rpartition(":")[2].rpartition(".")[2] for name in ALL if name.startswith("torchtitan")}
    others = set(SRC.rglob("*.py")) - set(door())
    found = {str(path.relative_to(SRC)): names & names_of(ast.parse(path.read_text()))[0] for path in others}
    assert {path: names for path, names in found.items() if names} == {}


def test_an_unlisted_name_is_found(tmp_path: Path) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text("from a._b import c\n\n\nclass D(c):\n    def _e(self):\n        self._e()\n        self._f()\n")
    assert unlisted(planted) == {"_b", "_f"}
