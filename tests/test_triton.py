"""What torch.compile makes of flex attention and the fused optimizer for a GPU, on a machine without one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from mosaic_photon.models.mpt_mup import attention

TESTS = Path(__file__).parent


@pytest.mark.slow
def test_the_triton_kernels_compile_for_sm_90(tmp_path: Path) -> None:
    """Fused optimizer; flex attention forward and backward with documents, and with everything at once."""
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TRITON_CACHE_DIR": str(tmp_path / "triton")}
    done = subprocess.run(
        [sys.executable, str(TESTS / "sm90_worker.py")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kernels = [line.split() for line in done.stdout.splitlines() if line.startswith("triton_")]
    assert sum("flex_attention_backward" in name for name, _, _ in kernels) >= 2
    assert sum("flex_attention_0" in name for name, _, _ in kernels) >= 2
    assert any("sqrt" in name for name, _, _ in kernels)
    assert any(name == "triton_qhadopt" for name, _, _ in kernels)
    assert all(int(size) > 0 and is_sm_90 == "True" for _, size, is_sm_90 in kernels)


def test_the_fused_kernel_computes_the_formula() -> None:
    """In Triton's interpreter: each dtype, both directions, tensors at addresses that are no multiples of 16 bytes."""
    worker = TESTS / "optimizers" / "fused_kernel_worker.py"
    done = subprocess.run([sys.executable, str(worker)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 16


def test_neither_a_step_nor_a_layer_compiles_flex_attention_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masks and score functions are made anew in each step, over other documents."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    kernels = (
        torch.compile(flex_attention, dynamic=False, backend=backend),
        torch.compile(create_block_mask, backend=backend),
    )
    monkeypatch.setattr(attention, "_flex_kernels", lambda device: kernels)
    counts = []
    for _ in range(3):
        documents = torch.randint(0, 3, (2, 128)).sort(1).values
        bias = attention.attention_bias(128, torch.device("cpu"), torch.rand(4), documents, None, window=16, flex=True)
        for _ in range(2):
            q, k, v = (torch.randn(2, 4, 128, 16) for _ in range(3))
            with torch.no_grad():
                attention._flex(q, k, v, bias, None, 20.0)
        counts.append(len(graphs))
    assert counts == [2, 2, 2]
