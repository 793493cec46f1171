"""Nothing of ours in a training step waits for the device, by what torch would have to copy or read back.

Without a GPU the step's parts run on fake CUDA tensors, which have shapes and no values: reading one back, and copying
between host and device without `non_blocking`, are seen where they are asked for. Backward passes need a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from composer.core import Time
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.dataloader.documents import document_counter
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup import attention
from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP
from mosaic_photon.optimizers import QHADOPT
from mosaic_photon.titan.row_losses import cross_entropy_of_each, keeping_rows
from mosaic_photon.train.loop import MosaicLoop
from mosaic_photon.train.streams import StreamMeter

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope": {"rope": True},
    "grouped queries": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    "ALiBi": {"alibi": True},
    "documents": {"attn_uses_sequence_id": True},
    "window, soft cap": {"sliding_window_size": 8, "attn_logit_softcapping": 20.0},
}
CUDA = "cuda:0"  # with its number: torch would ask the driver for the current device's
READ_BACK = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal")


class Waits(TorchDispatchMode):
    """Runs what is asked of "cuda" on fake tensors, all else as it is, and collects what the host would wait for."""

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.device = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(getattr(func, "overloadpacket", func))
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        ends = {tensor.device.type for tensor in tensors}
        if kwargs.get("device") is not None:
            ends.add(torch.device(kwargs["device"]).type)
        if name in READ_BACK and "cuda" in ends:
            self.found.append(name)
        blocking = not (kwargs.get("non_blocking") or any(argument is True for argument in args))
        if name in ("aten._to_copy", "aten.copy_") and blocking and {"cpu", "cuda"} <= ends:
            self.found.append(name)
        with self.device if "cuda" in ends else nullcontext():
            return func(*args, **kwargs)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Inside, "cuda" is a device without memory; what would wait for it is collected."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(attention, "_flex_kernels", lambda device: (flex_attention, create_block_mask))
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a real parameter's data cannot become fake
    try:
        with Waits() as waits:
            yield waits
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        torch._dynamo.reset()  # which keeps how flex attention was traced here, for other tests of this process too


def model_on(device: str, attn: dict[str, Any]) -> TitanComposerMPTMuP:
    args = MPTMuPModelArgs(d_model=64, n_heads=4, n_layers=2, vocab_size=64, max_seq_len=32, attn_config=attn)
    with torch.device("meta"):
        return TitanComposerMPTMuP(args).to_empty(device=device)


def test_waits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector detects."""
    with fake_cuda(monkeypatch) as waits:
        there = torch.zeros(3).to(CUDA)
        torch.zeros(3).to(CUDA, non_blocking=True)
        with pytest.raises(Exception, match=r"_local_scalar_dense|item"):
            there.sum().item()
    assert waits.found == ["aten._to_copy", "aten._local_scalar_dense"]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_forward_pass_does_not_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attn = ATTENTIONS[name]
    with fake_cuda(monkeypatch) as waits, torch.no_grad():
        model = model_on(CUDA, attn)
        tokens = torch.zeros(2, 32, dtype=torch.long, device=CUDA)
        count = document_counter(model.model_args, {"eos_token_id": 2})
        more = {} if count is None else {"sequence_id": count(tokens)}
        model(tokens, **more)
        waits.found.clear()  # the first pass may place what is kept
        logits = model(tokens, **more)
    assert isinstance(logits, FakeTensor) and logits.device.type == "cuda"
    assert waits.found == []


@pytest.mark.parametrize("flags", [{"foreach": True}, {"foreach": False}, {"capturable": True}])
def test_the_optimizer_s_step_does_not_wait(flags: dict[str, bool], monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as waits:
        parameters = [torch.nn.Parameter(torch.zeros(8, 4, device=CUDA)) for _ in range(3)]
        optimizer = QHADOPT(parameters, lr=0.1, weight_decay=0.1, decouple=True, **flags)
        for _ in range(3):
            for parameter in parameters:
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()
    assert waits.found == []


def test_the_scalars_of_the_fused_step_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    from mosaic_photon.optimizers import update

    hyper = update.Hyper(0.1, 0.0, 0.0, 0.9, 0.99, 0.7, 1e-8, 1.0, False)
    with fake_cuda(monkeypatch) as waits:
        assert update.scalars_of(hyper, torch.zeros(3, device=CUDA)).device.type == "cuda"
    assert waits.found == []


def test_the_monitor_does_not_wait_before_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as waits:
        model = model_on(CUDA, {})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        clock = SimpleNamespace(batch=Time.from_batch(3), get=lambda unit: Time(3, unit))
        state: Any = SimpleNamespace(model=model, optimizers=[optimizer], timestamp=clock)
        monitor, logger = OptimizerMonitor(interval=1), SimpleNamespace()
        monitor._report = True
        monitor.interval.due = lambda state: (True, True)  # type: ignore[method-assign]
        monitor.after_train_batch(state, logger)  # type: ignore[arg-type]
        optimizer.step()
        numbers = monitor._measure()
    assert waits.found == []
    assert all(value.device.type == "cuda" for value in numbers.sums.values())


def test_the_losses_of_streams_do_not_wait_before_their_report(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(4)
    plan = SimpleNamespace(names=("a", "b"), samples=lambda batch: ids, stream_of=lambda ids: ids % 2)
    plan.blocks = lambda *_: iter([ids.reshape(2, 2)])
    progress = SimpleNamespace(batch=0, samples_in_step=0)
    dataset = SimpleNamespace(samples_per_stream=np.array([9, 9]))
    loader: Any = SimpleNamespace(plan=plan, progress=progress, layout=None, data=SimpleNamespace(dataset=dataset))
    meter = StreamMeter(loader)
    loss_fn = keeping_rows(cross_entropy_of_each, meter.keep_rows)
    meter.begin_step()
    labels = torch.zeros(2, 8, dtype=torch.long)
    with fake_cuda(monkeypatch) as waits:
        for _ in range(2):
            meter.count(labels)
            meter.begin_micro_batch(2)
            logits = torch.zeros(2, 8, 16, device=CUDA, requires_grad=True)
            loss_fn(logits, labels.to(CUDA, non_blocking=True))
        assert waits.found == []
        with suppress(Exception):  # there is nothing to read
            meter.losses()
        assert waits.found == ["aten._to_copy"]
    assert meter.labels.tolist() == [16, 16]


def test_a_step_s_labels_are_not_asked_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The device's own count stays there; the hosts of data-parallel ranks have counted."""
    dims = SimpleNamespace(dp_enabled=True, dp_replicate=2, dp_shard=2)
    loader, host = SimpleNamespace(counts=[]), SimpleNamespace(fire=lambda *_, **__: None)
    loop = object.__new__(MosaicLoop)
    metrics = SimpleNamespace(should_log=lambda step: True)
    loop.trainer = SimpleNamespace(  # type: ignore[assignment]
        parallel_dims=dims, gradient_accumulation_steps=1, token_bytes=None, metrics_processor=metrics
    )
    loop.streams = None
    loop.loader, loop.fire, loop.group = SimpleNamespace(add_loss_tokens=loader.counts.append), host.fire, None  # type: ignore[assignment]
    loop.micro_batches_left, loop.labels_of_step = 1, 0
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 8)  # two tensor-parallel ranks have each batch
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda count, group: count.mul_(8))
    labels = torch.tensor([[5, -100, 7]])
    assert list(loop.counted(iter([({}, labels)])))
    with fake_cuda(monkeypatch) as waits:
        batch = {"labels": labels.to(CUDA, non_blocking=True)}
        assert loop.begin_micro_batch(batch, torch.tensor(8).to(CUDA, non_blocking=True))
    assert waits.found == []
    assert loader.counts == [8]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch's sync debug mode needs a GPU")
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("flags", [{"foreach": True}, {"fused": True}])
def test_forward_backward_clipping_and_step_on_a_gpu_do_not_wait(name: str, flags: dict[str, bool]) -> None:
    attn = ATTENTIONS[name]
    model = model_on("cuda", attn)
    model.init_weights()
    optimizer = QHADOPT(model.parameters(), lr=0.1, **flags)
    tokens = torch.zeros(2, 32, dtype=torch.long, device="cuda")
    count = document_counter(model.model_args, {"eos_token_id": 2})
    step(model, optimizer, tokens, count)
    step(model, optimizer, tokens, count)  # call 0 of ADOPT is another kernel than those that follow
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(model, optimizer, tokens, count)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def step(model: TitanComposerMPTMuP, optimizer: QHADOPT, tokens: torch.Tensor, count: Any) -> None:
    """What TorchTitan's step does with a batch that is on the device."""
    optimizer.zero_grad()
    with torch.autocast("cuda", torch.bfloat16):
        logits = model(tokens, **({} if count is None else {"sequence_id": count(tokens)}))
    torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens.flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    optimizer.step()
