"""Nothing of ours in a training step waits for the device, by what torch would have to copy or read back.

Without a GPU the step's parts run on fake CUDA tensors, which have shapes and no values: reading one back, and copying
between host and device without `non_blocking`, are seen where they are asked for. Backward passes need a device.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from composer.core import Time
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.utils._python_dispatch import TorchDispatchMode

from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.documents import document_counter
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.models.mpt_mup import attention
from mosaic_photon.models.mpt_mup.model import TitanComposerMPTMuP
from mosaic_photon.optimizers import QHADOPT

ATTENTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rope": {"rope": True},
    "grouped queries": {"attn_type": "grouped_query_attention", "kv_n_heads": 2},
    "ALiBi": {"alibi": True},
    "documents": {"attn_uses_sequence_id": True},
    "window, soft cap": {"sliding_window_size": 8, "attn_logit_softcapping": 20.0},
}
READ_BACK = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.is_nonzero", "aten.equal")


class Waits(TorchDispatchMode):
    """Collects the operations for which the host waits: values read back, and blocking copies over the bus."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func.overloadpacket) if hasattr(func, "overloadpacket") else str(func)
        on_device = any(isinstance(a, torch.Tensor) and a.device.type == "cuda" for a in args)
        if name in READ_BACK and on_device:
            self.found.append(name)
        if name in ("aten._to_copy", "aten.copy_") and not (kwargs.get("non_blocking") or True in args[2:]):
            ends = {tensor.device.type for tensor in args if isinstance(tensor, torch.Tensor)}
            ends |= {torch.device(kwargs["device"]).type} if kwargs.get("device") is not None else set()
            if len(ends) == 2:
                self.found.append(name)
        return func(*args, **kwargs)


@contextmanager
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Waits]:
    """Inside, "cuda" is a device without memory; what would wait for it is collected."""
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(attention, "_flex_kernels", lambda device: (flex_attention, create_block_mask))
    with FakeTensorMode(allow_non_fake_inputs=True), Waits() as waits:
        yield waits


def model_on(device: str, attn: dict[str, Any]) -> TitanComposerMPTMuP:
    args = MPTMuPModelArgs(d_model=32, n_heads=4, n_layers=2, vocab_size=64, max_seq_len=32, attn_config=attn)
    with torch.device("meta"):
        return TitanComposerMPTMuP(args).to_empty(device=device)


def test_waits_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The detector detects."""
    with fake_cuda(monkeypatch) as waits:
        there = torch.zeros(3).to("cuda")
        torch.zeros(3).to("cuda", non_blocking=True)
        with pytest.raises(Exception, match=r"_local_scalar_dense|item"):
            there.sum().item()
    assert waits.found == ["aten._to_copy", "aten._local_scalar_dense"]


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_forward_pass_does_not_wait(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attn = ATTENTIONS[name]
    with fake_cuda(monkeypatch) as waits, torch.no_grad():
        model = model_on("cuda", attn)
        tokens = torch.zeros(2, 32, dtype=torch.long, device="cuda")
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
        parameters = [torch.nn.Parameter(torch.zeros(8, 4, device="cuda")) for _ in range(3)]
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
        assert update.scalars_of(hyper, torch.zeros(3, device="cuda")).device.type == "cuda"
    assert waits.found == []


def test_the_monitor_does_not_wait_before_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as waits:
        model = model_on("cuda", {})
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
        clock = SimpleNamespace(batch=Time.from_batch(3), get=lambda unit: Time(3, unit))
        state: Any = SimpleNamespace(model=model, optimizers=[optimizer], timestamp=clock)
        monitor, logger = OptimizerMonitor(interval=1), SimpleNamespace()
        monitor.fit_start(state, logger)  # type: ignore[arg-type]
        monitor._report = True
        monitor.interval.due = lambda state: (True, True)  # type: ignore[method-assign]
        monitor.after_train_batch(state, logger)  # type: ignore[arg-type]
        optimizer.step()
        numbers = monitor._measure()
    assert waits.found == []
    assert all(value.device.type == "cuda" for value in numbers.sums.values())
