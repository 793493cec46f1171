"""Run by torchrun on four ranks: layouts, then jobs. Arguments: job folder, data folder, free TCP ports."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
import torch.distributed as dist
from composer.core import Event, State
from composer.devices import DeviceCPU
from composer.loggers import InMemoryLogger, Logger
from composer.models import ComposerModel
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard, distribute_tensor

from jobs import JOB, scalars, write_job
from mosaic_photon.callbacks import OptimizerMonitor
from mosaic_photon.callbacks.host import CallbackError
from mosaic_photon.callbacks.registry import build_callbacks
from mosaic_photon.train_with_mosaic import main

SHAPES = {"layers.0.weight": (7, 6), "layers.0.bias": (7,), "layers.10.weight": (5, 7), "norm.weight": (6,)}
STEPS = 3
Layout = dict[str, tuple[DeviceMesh, list[Placement]]]
"""Where a parameter lies; a name that is missing is not on this rank, None is a plain whole tensor."""


class Parts(ComposerModel):
    """Holds parameters under dotted names; gradients are given, not computed."""

    def __init__(self, parameters: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.held = {name: torch.nn.Parameter(tensor) for name, tensor in parameters.items()}

    def named_parameters(self, *args, **kwargs):
        yield from self.held.items()

    def parameters(self, recurse: bool = True):
        yield from self.held.values()

    def forward(self, batch):
        raise NotImplementedError

    def loss(self, outputs, batch):
        raise NotImplementedError


def place(tensor: torch.Tensor, where: tuple[DeviceMesh, list[Placement]] | None) -> torch.Tensor:
    if where is None:
        return tensor.clone()
    mesh, placements = where
    if any(placement.is_partial() for placement in placements):  # as SequenceParallel leaves the gradients of norms
        return DTensor.from_local(tensor / mesh.size(), mesh, placements)
    return distribute_tensor(tensor.clone(), mesh, placements)


def run(
    layout: Layout | None, gradients: Layout | None = None, frozen: Sequence[str] = ()
) -> dict[str, dict[int, float]]:
    """Three AdamW steps on given gradients; what OptimizerMonitor logs. No layout: whole tensors, one process."""
    generator = torch.Generator().manual_seed(1)
    whole = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    places = dict.fromkeys(SHAPES) if layout is None else layout
    model = Parts({name: place(tensor, places[name]) for name, tensor in whole.items() if name in places})
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    state = State(model, 0, "run", DeviceCPU(), max_duration="3ba", optimizers=optimizer)
    memory = InMemoryLogger()
    memory.init(state, logger := Logger(state, memory))
    monitor = OptimizerMonitor(interval=1, curvature=True)
    for _ in range(STEPS):
        for name, shape in SHAPES.items():
            gradient = torch.randn(shape, generator=generator)
            if name in model.held and name not in frozen:
                model.held[name].grad = place(gradient, (gradients or places)[name])
        monitor.after_train_batch(state, logger)
        optimizer.step()
        state.timestamp = state.timestamp.to_next_batch()
        monitor.batch_end(state, logger)
    return {name: {stamp.batch.value: value for stamp, value in data} for name, data in memory.data.items()}


def layouts() -> dict[str, tuple[Layout, Layout | None]]:
    flat = init_device_mesh("cpu", (4,), mesh_dim_names=("dp",))
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
    inner, stage = grid["inner"], grid.get_local_rank("outer")
    matrices = {name for name, shape in SHAPES.items() if len(shape) == 2}
    tp = {name: (inner, [Shard(1) if name in matrices else Replicate()]) for name in SHAPES}
    mixed: Layout = {name: (grid, [Shard(0), Shard(1) if name in matrices else Replicate()]) for name in SHAPES}
    return {
        "DDP": (dict.fromkeys(SHAPES), None),
        "FSDP": ({name: (flat, [Shard(0)]) for name in SHAPES}, None),
        "HSDP": ({name: (grid, [Replicate(), Shard(0)]) for name in SHAPES}, None),
        "TP": (tp, {name: (inner, [Replicate() if name in matrices else Partial()]) for name in tp}),
        "FSDP x TP": (mixed, None),
        "FSDP x TP, norm outside TP": (mixed | {"norm.weight": (grid["outer"], [Shard(0)])}, None),
        "PP x FSDP": ({name: (inner, [Shard(0)]) for name in list(SHAPES)[2 * stage : 2 * stage + 2]}, None),
    }


def check_layouts(port: str) -> None:
    expected = run(None)
    assert len(expected) > 40
    expected_frozen = run(None, frozen=list(SHAPES)[2:])
    start(port)
    for name, (layout, gradients) in layouts().items():
        metrics = run(layout, gradients)
        assert metrics.keys() == expected.keys(), name
        for metric, values in expected.items():
            torch.testing.assert_close(metrics[metric], values, rtol=1e-5, atol=1e-7, msg=f"{name}: {metric}")
    one_stage = list(SHAPES)[2:]  # a stage without gradients waits for nobody and reports with the others
    torch.testing.assert_close(run(layouts()["PP x FSDP"][0], frozen=one_stage), expected_frozen, rtol=1e-5, atol=1e-7)
    check_groups()
    check_activations()
    dist.destroy_process_group()


def check_groups() -> None:
    """Two stages of two ranks, which share a group: numbered and logged as in one process, whichever rank logs."""
    rates = [[0.1, 0.2], [0.2, 0.3]][dist.get_rank() // 2]
    groups = [{"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "betas": (lr, 0.9)} for lr in rates]
    optimizer = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    state = State(Parts({}), 0, "run", DeviceCPU(), max_duration="3ba", optimizers=optimizer)
    memory = InMemoryLogger()
    memory.init(state, logger := Logger(state, memory))
    callbacks = build_callbacks({"lr_monitor": {}, "quasi_hyperbolic_parameter_monitor": {}}).values()
    for _ in range(2):
        for event in (Event.AFTER_TRAIN_BATCH, Event.BATCH_END):
            for callback in callbacks:
                callback.run_event(event, state, logger)
        schedule.step()
    logged = {name: [round(float(value), 6) for _, value in data] for name, data in memory.data.items()}
    assert {name: values for name, values in logged.items() if not name.endswith("beta2")} == {
        "lr-AdamW/group0": [0.1, 0.05],
        "lr-AdamW/group1": [0.2, 0.1],
        "lr-AdamW/group2": [0.3, 0.15],
        "quasi_hyperbolic/AdamW/group0/beta1": [0.1, 0.1],
        "quasi_hyperbolic/AdamW/group1/beta1": [0.2, 0.2],
        "quasi_hyperbolic/AdamW/group2/beta1": [0.3, 0.3],
    }


def check_activations() -> None:
    """Two stages, the first of ignored modules alone: all ranks report, and from the first step that runs a model."""
    rank = dist.get_rank()
    model = Parts({})
    model.add_module("seen" if rank // 2 else "ignored", linear := torch.nn.Linear(2, 2))
    state = State(model, 0, "run", DeviceCPU(), max_duration="3ba")
    memory = InMemoryLogger()
    memory.init(state, logger := Logger(state, memory))
    (monitor,) = build_callbacks({"activation_monitor": {"interval": 1, "ignore_module_types": ["ignored"]}}).values()
    for step in range(3):
        monitor.run_event(Event.BATCH_START, state, logger)
        if step:  # the first is without labels
            linear(torch.full((1, 2), float(step * rank)))
        state.timestamp = state.timestamp.to_next_batch()
        monitor.run_event(Event.BATCH_END, state, logger)
    logged = {name: [(stamp.batch.value, value) for stamp, value in data] for name, data in memory.data.items()}
    assert len(logged) == 8, sorted(logged)  # statistics of input and output
    assert [value for _, value in logged["activations/average/seen_input.0"]] == [2.5, 5.0]


def start(port: str) -> None:
    os.environ["MASTER_PORT"] = port
    dist.init_process_group("gloo")


def check_jobs(folder: Path, data: Path, ports: list[str]) -> None:
    rank = int(os.environ["RANK"])

    def job(name: str, tables: str, *flags: str) -> Path:
        os.environ["MASTER_PORT"] = ports.pop()
        where = folder / name
        text = JOB.replace("local_batch_size = 2\nglobal", "local_batch_size = 1\nglobal", 1)
        text = text.replace("n_layers = 2", "n_layers = 4")
        arguments = write_job(folder / f"{name}-{rank}", data, text.replace("{out}", f"{where}/out") + tables)
        try:
            assert main([*arguments, "--", *flags]) == 0
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()
        return where

    monitor = '[callbacks.optimizer_monitor]\ninterval = 2\n[callbacks."recording:Losses"]\n'
    fsdp = job("fsdp", monitor)
    layout = ("--parallelism.pipeline_parallel_degree=2", "--parallelism.tensor_parallel_degree=2")
    pipeline = job(
        "pipeline", monitor, *layout, "--parallelism.pipeline_parallel_schedule=1F1B", "--training.local_batch_size=4"
    )
    if rank == 0:
        for tag in (
            "seen/loss",
            "l2_norm/grad/global",
            "l2_norm/update/layers.3.attention_norm.weight",
            "max/moment2/global",
        ):
            values = scalars(fsdp, tag)
            assert values, tag
            assert values.keys() == ({1, 2, 3, 4} if tag == "seen/loss" else {2, 4})
            torch.testing.assert_close(scalars(pipeline, tag), values, rtol=1e-3, atol=1e-6, msg=tag)
        torch.testing.assert_close(scalars(fsdp, "seen/loss"), scalars(fsdp))

    checkpoints = ("--checkpoint.enable=true", "--checkpoint.interval=100")
    stopped = job("stopped", '[callbacks."recording:Stopper"]\nbatches = 2\nrank = 3\n', *checkpoints)
    assert [path.name for path in (stopped / "out/checkpoint").iterdir()] == ["step-2"]

    for event, batch in {"after_train_batch": 1, "eval_batch_end": 2}.items():
        failing = f'[callbacks."recording:FailingMonitor"]\nevent = "{event}"\nbatch = {batch}\nrank = 1\n'
        try:
            job(event, failing, "--validation.enable=true", "--validation.steps=1")
        except CallbackError as error:
            assert f"'recording:FailingMonitor' failed in {event} at step 2 on rank 1: RuntimeError: as it" in str(
                error
            )
        else:
            raise AssertionError("the job went on")

    tables = '[callbacks."recording:Raiser"]\nevent = "after_loss"\nbatch = 1\nrank = 2\n' + monitor.replace(
        "2", "1", 1
    )
    try:
        job("failed", tables, "--checkpoint.enable=true", "--checkpoint.interval=1")
    except CallbackError as error:
        assert "'recording:Raiser' failed in after_loss at step 2 on rank 2: RuntimeError: as it was told to" in str(
            error
        )
    else:
        raise AssertionError("the job went on")
    assert [path.name for path in (folder / "failed/out/checkpoint").iterdir()] == ["step-1"]


if __name__ == "__main__":
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"  # several process groups, one after the other
    check_layouts(sys.argv[3])
    check_jobs(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4:])
    print(f"rank {os.environ['RANK']} agrees")
