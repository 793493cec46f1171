"""Initial weights: each rank draws its shards, the same numbers in every layout, under every release of torch."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from llmfoundry.layers_registry import param_init_fns
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.placement_types import _StridedShard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torchtitan.models.llama3.model.args import TransformerModelArgs
from torchtitan.models.llama3.model.model import Transformer
from torchtitan.models.utils import trunc_normal_ as titan_trunc_normal_

from mosaic_photon.compat import layout_independent_init as init
from mosaic_photon.compat.counter_random import Stream, log, normal_quantile
from mosaic_photon.models.mpt_mup.args import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP
from mosaic_photon.models.resized import build as initialised

Fill = Callable[[Tensor], Any]


def halves(w: Tensor) -> None:
    """As llm-foundry treats fused projections: each by its own shape."""
    middle = w.shape[0] // 2
    nn.init.kaiming_normal_(w[:middle])
    nn.init.xavier_uniform_(w[middle:])


def twice_and_a_row(w: Tensor) -> None:
    nn.init.normal_(w, 1.0, 3.0)
    first = w.select(0, 0)
    w.div_(7)
    first.fill_(0)
    nn.init.uniform_(w[1, 1:], 5.0, 6.0)


FILLS: dict[str, Fill] = {
    "normal": lambda w: nn.init.normal_(w, std=0.02),
    "method": lambda w: w.uniform_(-1, 1),
    "truncated": lambda w: nn.init.trunc_normal_(w, std=0.02, a=-0.03, b=0.06),
    "halves": halves,
    "twice and a row": twice_and_a_row,
    "columns": lambda w: nn.init.normal_(w[:, -2:]),
    "TorchTitan's": lambda w: titan_trunc_normal_(w, std=0.02, a=-0.03),
}
PLACEMENTS = {
    "rows": (Replicate(), Shard(0)),
    "rows of rows": (Shard(0), Shard(0)),
    "columns": (Shard(1), Replicate()),
    "both": (Shard(0), Shard(1)),
    "FSDP of tensor parallel rows": (_StridedShard(0, split_factor=2), Shard(0)),
    "FSDP of tensor parallel columns": (_StridedShard(1, split_factor=2), Shard(1)),
}


def on_each_of_four_ranks(check: Callable[[Any], Any]) -> list[Any]:
    """What `check` says of a 2 x 2 mesh as each of its ranks sees it; nothing can be sent.

    In a process for each rank, as DTensor remembers what a mesh means.
    """

    def as_rank(rank: int, results: Any) -> None:
        dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=4)
        results.send(check(init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))))

    fork, said = multiprocessing.get_context("fork"), []
    for rank in range(4):
        here, there = fork.Pipe(duplex=False)
        process = fork.Process(target=as_rank, args=(rank, there))
        process.start()
        there.close()
        said.append(here.recv())
        process.join()
    return said


class One(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)


@torch.no_grad()
def filled(weight: Tensor, fill: Fill, seed: int = 1) -> Tensor:
    module = One(weight)
    with init.initialised_by_parts(module, seed):
        fill(module.weight)
    return module.weight.detach()


def differences(mesh: Any, whole: dict[Any, Tensor], placements: dict[str, Any]) -> list[Any]:
    """The fillings whose shards are not those of the whole."""
    found = []
    for (fill, shape), weight in whole.items():
        for name, placed in placements.items():
            nothing = distribute_tensor(torch.full(shape, math.nan), mesh, placed, src_data_rank=None)
            mine = filled(nothing, FILLS[fill]).to_local()
            expected = distribute_tensor(weight.clone(), mesh, placed, src_data_rank=None).to_local()
            if not torch.equal(mine.nan_to_num(99), expected.nan_to_num(99)):
                found.append((fill, shape, name, mesh.get_rank()))
    return found


def test_shards_are_those_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rows do not divide, shards are empty, and blocks are of one or two rows."""
    whole = {
        (fill, shape): filled(torch.full(shape, math.nan), FILLS[fill])
        for fill in FILLS
        for shape in ((8, 6), (7, 5), (2, 9))
    }
    assert all(weight.isfinite().all() for (fill, _), weight in whole.items() if fill != "columns")
    monkeypatch.setattr(init, "BLOCK", 11)
    assert on_each_of_four_ranks(lambda mesh: differences(mesh, whole, PLACEMENTS)) == [[]] * 4


def test_vectors_scalars_and_stacks() -> None:
    assert filled(torch.empty(()), FILLS["normal"]).isfinite()
    assert len(set(filled(torch.empty(1000), FILLS["normal"]).tolist())) > 990
    vector = {("normal", (13,)): filled(torch.empty(13), FILLS["normal"])}
    stack = {("normal", (4, 6, 5)): filled(torch.empty(4, 6, 5), FILLS["normal"])}

    def check(mesh: Any) -> list[Any]:
        placements = {"experts": (Shard(0), Shard(2)), "rows": (Shard(1), Shard(0))}
        return differences(mesh, vector, {"rows": PLACEMENTS["rows"]}) + differences(mesh, stack, placements)

    assert on_each_of_four_ranks(check) == [[]] * 4


class Largest(TorchDispatchMode):
    """The elements of the largest tensor with memory of its own that any operation makes, beside `known`."""

    def __init__(self, known: Tensor) -> None:
        super().__init__()
        self.known, self.elements = known.data_ptr(), 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if type(out) is Tensor and out.untyped_storage().data_ptr() != self.known:
            self.elements = max(self.elements, out.numel())
        return out


def test_no_more_is_allocated_than_the_shard_and_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "BLOCK", 4096)

    def check(mesh: Any) -> int:
        local = torch.empty(1024, 64)
        parameter = DTensor.from_local(local, mesh, (Shard(0), Shard(0)), run_check=False)
        assert parameter.shape == (4096, 64)
        with Largest(local) as largest:
            for fill in ("normal", "truncated", "halves"):
                filled(parameter, FILLS[fill])
        return largest.elements

    assert on_each_of_four_ranks(check) == [4096] * 4


def test_numbers_are_of_their_distributions() -> None:
    """First four moments within five of their standard errors, by a seed that is fixed."""
    count = 2_000_000
    uniform = Stream.of("test", 1).uniform(torch.arange(count))
    assert uniform.min() > 0 and uniform.max() < 1 and len(uniform.unique()) == count
    z = normal_quantile(uniform)
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean().item() - expected) < 5 * math.sqrt(variance / count)
    normal = torch.distributions.Normal(0.0, 1.0)
    below = torch.searchsorted(z.sort().values, torch.linspace(-4, 4, 81, dtype=torch.float64)) / count
    assert (below - normal.cdf(torch.linspace(-4, 4, 81, dtype=torch.float64))).abs().max() < 2 / math.sqrt(count)
    other = normal_quantile(Stream.of("test", 2).uniform(torch.arange(count)))
    for a, b in ((z, other), (z[1:], z[:-1]), (z[1024:], z[:-1024])):
        assert abs((a * b).mean().item()) < 5 / math.sqrt(count)


def test_the_quantile_and_the_logarithm_are_right() -> None:
    p = torch.cat([torch.rand(100_000, dtype=torch.float64), 2.0 ** -torch.arange(1, 54, dtype=torch.float64)])
    assert torch.allclose(log(p), p.log(), rtol=1e-15)
    assert torch.allclose(normal_quantile(p), torch.special.ndtri(p), rtol=2e-9, atol=1e-12)
    assert torch.equal(normal_quantile(1 - p[:9]), -normal_quantile(1 - (1 - p[:9])))


def test_a_truncated_normal_is_torchs_of_before_its_redraws() -> None:
    w = filled(torch.empty(400, 500), lambda w: nn.init.trunc_normal_(w, 0.5, 2.0, -1.0, 4.0))
    assert w.min() >= -1 and w.max() <= 4 and w.min() < -0.99 and w.max() > 3.99
    torch.manual_seed(0)
    theirs = nn.init.trunc_normal_(torch.empty(400, 500), 0.5, 2.0, -1.0, 4.0)
    assert abs(w.mean() - theirs.mean()) < 0.02 and abs(w.std() - theirs.std()) < 0.02
    assert nn.init.trunc_normal_.__module__ == "torch.nn.init"


def test_numbers_of_half_precision_are_those_of_full_rounded_once() -> None:
    full, half = (filled(torch.empty(9, 9, dtype=t), FILLS["TorchTitan's"]) for t in (torch.float32, torch.bfloat16))
    assert half.dtype == torch.bfloat16 and torch.allclose(full, half.float(), rtol=2**-8)


def test_an_initialisation_may_tie_two_parameters() -> None:
    """As TorchTitan's qwen3 does, in case that being built on the meta device has untied them."""
    model = nn.ModuleDict({"tokens": nn.Embedding(9, 5), "head": nn.Linear(5, 9, bias=False)})
    tokens = model["tokens"].weight
    with torch.no_grad(), init.initialised_by_parts(model, 1):
        nn.init.normal_(model["tokens"].weight)
        model["head"].weight = model["tokens"].weight
        nn.init.zeros_(model["head"].weight)
    assert model["head"].weight is model["tokens"].weight is tokens and not tokens.any()
    assert type(tokens) is nn.Parameter


def test_names_seeds_and_repetitions_differ() -> None:
    a = nn.ModuleDict({"a": nn.Linear(9, 9), "b": nn.Linear(9, 9)})

    def weights(seed: int, times: int = 1) -> list[Tensor]:
        with torch.no_grad(), init.initialised_by_parts(a, seed):
            for _ in range(times):
                nn.init.normal_(a["a"].weight)
                nn.init.normal_(a["b"].weight)
        return [a["a"].weight.detach().clone(), a["b"].weight.detach().clone()]

    different = [*weights(1), *weights(2), *weights(1, times=2)]
    assert len({w.sum().item() for w in different}) == 6
    assert all(torch.equal(*pair) for pair in zip(weights(1), different, strict=False))


@pytest.mark.parametrize(
    "act",
    [
        lambda w: w.exponential_(),
        lambda w: w.normal_(generator=torch.Generator()),
        lambda w: w.add_(torch.ones(4, 4)),
        lambda w: w[::2].zero_(),
        nn.init.orthogonal_,
    ],
)
def test_what_would_need_the_whole_is_refused(act: Fill) -> None:
    with pytest.raises(NotImplementedError, match="initialised"):
        filled(torch.empty(4, 4), act)


def digest(model: nn.Module) -> str:
    content = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        content.update(name.encode() + parameter.detach().numpy().tobytes())
    return content.hexdigest()[:16]


def llama() -> nn.Module:
    return Transformer(TransformerModelArgs(dim=32, n_layers=2, n_heads=2, vocab_size=97))


def mpt(**changes: Any) -> nn.Module:
    args = MPTMuPModelArgs(d_model=32, n_heads=2, n_layers=2, vocab_size=97, max_seq_len=16, **changes)
    return TitanComposerMPTMuP(args)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (llama, "34aa259bcc570ec6"),
        (mpt, "a7370ad524f879f2"),
        (lambda: mpt(init_config={"name": "baseline_", "init_std": 0.02}), "90209133d0856a9a"),
    ],
    ids=["llama3", "mpt by fans", "mpt by one width"],
)
def test_a_seeds_weights_are_what_they_were(build: Callable[[], nn.Module], expected: str) -> None:
    """Bit for bit, on any processor and under any release of torch. A new value here changes every run's weights."""
    model = build()
    if hasattr(model, "model_args"):
        model.model_args._init_seed = 5
    init.seed_init_by_name(model, 5)
    model.init_weights()
    assert digest(model) == expected


def test_every_init_of_llm_foundry_goes_by_parts() -> None:
    for name in param_init_fns.get_all():
        if name != "baseline_":
            mpt(init_config={"name": name}).init_weights()


def test_a_slice_that_is_the_whole():
    """As llm-foundry fills the projection of a single key and value head that is not fused with the queries'."""
    attn = {"attn_type": "multiquery_attention", "fused_qkv": False}
    args = MPTMuPModelArgs(d_model=64, n_heads=2, n_layers=1, vocab_size=256, max_seq_len=32, attn_config=attn)
    weights = initialised(TitanComposerMPTMuP, args, 3).get_parameter("layers.0.attn.Wk.weight")
    assert weights.shape == (32, 64) and weights.std() > 0
