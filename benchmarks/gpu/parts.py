"""The suite's parts, in the order of what is worth most, with the seconds that each may take. Imports nothing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One process of the suite."""

    name: str
    function: str
    """module:function below `gpu`."""
    limit_s: int
    asks: str
    """What it answers."""
    alone: bool = True
    """Nothing else may run meanwhile: it measures time."""


PARTS = (
    Part("ceilings", "ceilings:run", 45, "what the device can do: bf16 matrix products, copies"),
    Part("attention", "attention:run", 150, "logits, loss and gradients as on the CPU, each attention", alone=False),
    Part("qhadopt", "qhadopt:run", 120, "fused, foreach and capturable QHADOPT against the loop", alone=False),
    Part("monitor", "monitor:run", 120, "OptimizerMonitor's numbers against Composer's", alone=False),
    Part("loader", "loader:run", 60, "pinned batches against unpinned ones", alone=False),
    Part("jobs", "jobs:run", 180, "sample jobs: loss as on the CPU, save and resume, stop by SIGTERM", alone=False),
    Part("mpt_125m", "throughput:mpt_125m", 120, "tokens/s beside Composer; waits; kernels of a step"),
    Part("optimizer_step", "optimizer_step:run", 60, "QHADOPT's step beside AdamW's and the bandwidth"),
    Part("mpt_1b", "throughput:mpt_1b", 120, "tokens/s and MFU beside Composer"),
    Part("llama_1b", "throughput:llama_1b", 120, "tokens/s and MFU beside stock TorchTitan"),
    Part("monitor_cost", "monitor_cost:run", 75, "the monitor's share of a step, beside Composer's"),
    Part("startup", "startup:run", 60, "start to first step of the sample job"),
)
