"""What a step of QHADOPT needs beside its arithmetic: temporaries, copies between devices."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mosaic_photon.optimizers import ADOPT, QHADOPT


class Temporaries(TorchDispatchMode):
    """Counts the elements of tensors that operations have made and that are alive at once."""

    alive, peak = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        for made in tree_leaves(results):
            if isinstance(made, torch.Tensor) and not func.is_view:
                self.alive += made.numel()
                weakref.finalize(made, self.free, made.numel())
        self.peak = max(self.peak, self.alive)
        return results

    def free(self, elements):
        self.alive -= elements


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("shapes", [[3000], [999, 1000, 1001], [10] * 300], ids=len)
def test_foreach_needs_no_more_temporaries_than_the_group_has_elements(options, shapes):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    optimizer = QHADOPT(params, foreach=True, **options)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()  # call 0 is another, and makes the state
    with Temporaries() as temporaries:
        optimizer.step()
    assert 1000 < temporaries.peak <= 3000


class NothingFromTheHost(TorchFunctionMode):
    """Refuses what makes a tensor on the host and then copies it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, torch.as_tensor)
        result = func(*args, **(kwargs or {}))
        assert not isinstance(result, torch.Tensor) or result.is_meta
        return result


@pytest.mark.parametrize("clip_lambda", [None, lambda call: 0.5, lambda call: call**0.25])
@pytest.mark.parametrize("decouple", [False, True])
@pytest.mark.parametrize("optimizer", [QHADOPT, ADOPT])
def test_a_capturable_step_copies_nothing_from_the_host_and_reads_nothing(optimizer, decouple, clip_lambda):
    """As a graph capture demands. Parameters without data stand for a device: there is nothing to read."""
    p = torch.nn.Parameter(torch.ones(3, device="meta"))
    made = optimizer([p], weight_decay=0.1, decouple=decouple, capturable=True, clip_lambda=clip_lambda)
    for _ in range(2):
        p.grad = torch.ones_like(p)
        with NothingFromTheHost():
            made.step()
