"""Compiles our Triton kernels for sm_90 on a machine without a GPU, and prints a line for each: name, cubin's size.

torch traces on CPU tensors; its graphs go to inductor as graphs of CUDA tensors, which here are fake; what inductor
writes for Triton is compiled by Triton and ptxas, which need no device. Run as a process of its own: torch is told that
there is an H100.
"""

import sys
import traceback
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
import torch._inductor.runtime.triton_helpers as triton_helpers
import torch._subclasses.fake_tensor as fake_tensor
import torch.nn.attention.flex_attention as flex
import torch.utils._triton as triton_checks
import triton
import triton.language as tl
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.device_interface import CudaInterface
from torch._guards import TracingContext, tracing
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx_inner
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mosaic_photon.models.mpt_mup import attention
from mosaic_photon.optimizers import fused_kernel, update

H100 = SimpleNamespace(
    name="NVIDIA H100 80GB HBM3", major=9, minor=0, multi_processor_count=132, total_memory=80 * 2**30, warp_size=32,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472, L2_cache_size=50 * 2**20, gcnArchName="",
)  # fmt: skip
sources: dict[str, str] = {}


class NoDevice:
    """torch.cuda.device without a device to switch to."""

    def __init__(self, *_: object) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


class Driver:
    """Triton's driver of a GPU that is only a target."""

    is_active = staticmethod(lambda: True)

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda")

    def get_device_interface(self) -> Any:
        return torch.cuda


def keep_source(_: AsyncCompile, kernel_name: str, source_code: str, device_str: str = "cuda") -> Any:
    sources[kernel_name] = source_code
    return SimpleNamespace(run=None)


def pretend() -> None:
    """There is an H100, as far as inductor asks."""
    cuda = torch.cuda
    cuda._lazy_init = lambda: None
    cuda.current_device, cuda.device_count = lambda: 0, lambda: 1
    cuda.get_device_properties = lambda device=None: H100
    cuda.get_device_capability = lambda device=None: (H100.major, H100.minor)
    cuda.get_device_name = lambda device=None: H100.name
    cuda.is_bf16_supported = lambda *a, **k: True
    cuda.set_device = cuda.synchronize = lambda *a: None
    cuda.device = NoDevice
    cuda._exchange_device = cuda._maybe_exchange_device = lambda device: 0
    cuda.current_stream = lambda device=None: SimpleNamespace(cuda_stream=0, stream_id=0, device_index=0, device_type=1)
    cuda.get_rng_state = lambda device=None: torch.zeros(16, dtype=torch.uint8)
    cuda.set_rng_state = lambda state, device=None: None
    for name in ("device", "current_device", "set_device", "device_count", "synchronize", "get_device_properties"):
        setattr(CudaInterface, name, staticmethod(getattr(cuda, name)))  # it has taken torch's
    CudaInterface.exchange_device = CudaInterface.maybe_exchange_device = staticmethod(lambda device: 0)
    CudaInterface.current_stream = staticmethod(cuda.current_stream)
    fake_tensor.init_gpu_context = lambda device: None
    triton.runtime.driver.set_active(Driver())
    triton_helpers.set_driver_to_gpu = lambda: None
    AsyncCompile.triton = keep_source
    inductor_config.compile_threads = 1
    inductor_config.force_disable_caches = True
    inductor_config.use_static_cuda_launcher = False
    functorch_config.enable_autograd_cache = False
    flex._validate_device = lambda *a: None  # flex attention refuses to trace a backward pass on a CPU


def graphs_of(function: Callable[..., Any], *inputs: Any) -> list[tuple[bool, torch.fx.GraphModule, list[Any]]]:
    """What torch.compile would hand to inductor: (backward?, graph, example inputs), traced on the CPU."""
    graphs = []

    def compiler(backward: bool) -> Callable[..., Any]:
        def keep(graph: torch.fx.GraphModule, examples: list[Any]) -> Any:
            graphs.append((backward, graph, examples))
            return graph.forward

        return keep

    torch._dynamo.reset()
    backend = aot_autograd(
        fw_compiler=compiler(False), bw_compiler=compiler(True), decompositions=select_decomp_table()
    )
    with functorch_config.patch(force_non_lazy_backward_lowering=True):
        torch.compile(function, dynamic=False, backend=backend)(*inputs)
    return graphs


def to_triton(backward: bool, graph: torch.fx.GraphModule, examples: list[Any]) -> None:
    """Lower one graph as if its tensors were CUDA's; the sources come to `sources`."""
    mode = fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    for node in graph.graph.nodes:
        node.meta.pop("val", None)
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": torch.device("cuda")}
    graph.recompile()
    with mode:
        fakes = [
            torch.empty_strided(tuple(x.shape), tuple(x.stride()), dtype=x.dtype, device="cuda")
            if isinstance(x, torch.Tensor)
            else x
            for x in examples
        ]
    with mock.patch.object(torch.cuda, "is_available", lambda: True), V.set_fake_mode(mode):
        triton_checks.has_triton.cache_clear()
        with tracing(TracingContext(mode)):
            compile_fx_inner(graph, fakes, is_backward=backward)
        for name, source in sources.items():
            kernel = getattr(PyCodeCache.load(source), name)
            compiled = kernel._precompile_config(kernel.configs[0])
            print(name, len(compiled.kernel.asm["cubin"]), ".target sm_90" in compiled.kernel.asm["ptx"], flush=True)
        sources.clear()


def compiled_step() -> list[Any]:
    tensors = [[torch.randn(64, 64), torch.randn(33)] for _ in range(4)]
    return graphs_of(lambda tensors, scalars: update.traced(tensors, scalars, False), tensors, torch.rand(9))


def fused_kernel_of_ours() -> None:
    """Aligned float32 tensors, the usual case: a thread must move 16 bytes at once."""
    signature = {"pointers": "*i64", "chunks": "*i64", "scalars": "*fp32", "n_tensors": "i32"}
    constants = {
        "MAXIMIZE": False, "DTYPE": tl.float32, "STATE": tl.float32, "COMPUTE": tl.float32, "ALIGNED": True,
        "CHUNK": fused_kernel.CHUNK, "BLOCK": fused_kernel.BLOCK,
    }  # fmt: skip
    source = ASTSource(
        fn=fused_kernel._kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(fused_kernel._kernel.arg_names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    ptx = compiled.asm["ptx"]
    assert "ld.global.v4.b32" in ptx and "st.global.v4.b32" in ptx
    print("triton_qhadopt", len(compiled.asm["cubin"]), ".target sm_90" in ptx, flush=True)


def flex_attention(alibi: bool, window: int, softcap: float | None) -> list[Any]:
    attention._flex_kernels = lambda device: (flex.flex_attention, flex.create_block_mask)
    documents = torch.randint(0, 3, (2, 256)).sort(1).values
    slopes = torch.rand(4) if alibi else None
    bias = attention.attention_bias(256, torch.device("cpu"), slopes, documents, None, window, flex=True)
    q, k, v = (torch.randn(2, 4, 256, 64, dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    return graphs_of(lambda q, k, v: attention._flex(q, k, v, bias, None, softcap), q, k, v)


CASES: dict[str, Callable[[], list[Any]]] = {
    "compiled optimizer": compiled_step,
    "documents": lambda: flex_attention(False, -1, None),
    "documents, ALiBi, window, soft cap": lambda: flex_attention(True, 32, 20.0),
}


def main() -> int:
    pretend()
    fused_kernel_of_ours()
    failed = False
    for name, graphs in CASES.items():
        try:
            for backward, graph, examples in graphs():
                print(f"== {name}, {'backward' if backward else 'forward'}")
                to_triton(backward, graph, examples)
        except Exception:
            failed = True
            traceback.print_exc()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
