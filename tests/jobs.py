"""Write small jobs, run them in this process or by torchrun, and read what they logged."""

import logging
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "assets" / "tokenizer"
LOSS = "loss_metrics/global_avg_loss"

JOB = """
[job]
dump_folder = "{out}"
[model]
name = "llama3_mosaic"
flavor = "debugmodel"
hf_assets_path = "{tokenizer}"
[model.overrides]
dim = 64
n_layers = 2
n_heads = 4
[optimizer]
name = "AdamW"
lr = 3e-3
[lr_scheduler]
warmup_steps = 2
total_steps = 1000
[training]
steps = 4
local_batch_size = 2
global_batch_size = 4
seq_len = 64
mixed_precision_param = "float32"
[activation_checkpoint]
mode = "none"
[metrics]
log_freq = 1
enable_tensorboard = true
disable_color_printing = true
[checkpoint]
last_save_model_only = false
[validation]
local_batch_size = 2
seq_len = 64
freq = 2
[debug]
seed = 3
"""

DATA = """
[mosaic_dataloader]
name = "text"
num_workers = 0
drop_last = true
[mosaic_dataloader.dataset]
local = "{data}"
split = "train"
shuffle = true
shuffle_seed = 5
num_canonical_nodes = 4
[mosaic_eval_dataloader]
name = "text"
num_workers = 0
drop_last = false
[mosaic_eval_dataloader.dataset]
local = "{data}"
split = "val"
shuffle = false
"""

SIZES = {
    "qwen3": "n_kv_heads = 2\nhead_dim = 16\nhidden_dim = 128\nmoe_inter_dim = 32",
    "deepseek_v3": "inter_dim = 128\nmoe_inter_dim = 32\nkv_lora_rank = 32\nqk_nope_head_dim = 16\n"
    "qk_rope_head_dim = 8\nv_head_dim = 16",
}


def of(model: str) -> str:
    """JOB with another model of TorchTitan's, as small."""
    return JOB.replace("llama3", model).replace("n_heads = 4", f"n_heads = 4\n{SIZES[model]}")


def free_port() -> int:
    """A TCP port that is free, for a process that takes it later: below those that the kernel gives away by itself."""
    while True:
        port = random.SystemRandom().randrange(15000, 32000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port


def write_job(folder: Path, data: Path, job: str = JOB, dataloader: str = DATA) -> list[str]:
    """Write both configs into `folder`; returns the command line's arguments up to `--`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.toml").write_text(job.format(out=folder / "out", tokenizer=TOKENIZER))
    (folder / "data.toml").write_text(dataloader.format(data=data))
    return ["--config", str(folder / "job.toml"), "--mosaic-config", str(folder / "data.toml")]


def run_here(arguments: list[str], *flags: str) -> int:
    """Run the job in this process, one rank; returns its exit code."""
    from mosaic_photon.train_with_mosaic import main

    for name in ("MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    try:
        return main([*arguments, "--", *flags])
    finally:
        logging.getLogger().handlers.clear()  # TorchTitan's, bound to this test's captured stderr


def start(arguments: list[str], *flags: str, ranks: int = 1) -> subprocess.Popen[str]:
    """Start the job by torchrun from the repository's root, or without it for 0 ranks; a session of its own."""
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "-m"] if ranks else []
    command = [sys.executable, "-m", *torchrun, "examples.mosaic_photon.train_with_mosaic", *arguments, "--", *flags]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if not k.startswith("MASTER_")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def launch(arguments: list[str], *flags: str, ranks: int = 1, expect: int = 0) -> str:
    """Run the job by torchrun to its end; returns what it printed."""
    process = start(arguments, *flags, ranks=ranks)
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == expect, printed
    return printed


def read_until_step(process: subprocess.Popen[str], step: int) -> None:
    """Read the job's output until it reports `step`."""
    assert process.stdout is not None
    printed = []
    for line in process.stdout:
        printed.append(line)
        if f"step: {step:2}  loss" in line:
            return
    raise AssertionError("".join(printed))


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the launcher and to the ranks that it started."""
    import psutil

    children = psutil.Process(process.pid).children(recursive=True)
    for child in children:
        child.send_signal(signal.SIGKILL)
    process.kill()
    process.communicate()


def shared_memory(process: subprocess.Popen[str]) -> list[str]:
    """Files in /dev/shm that the launcher's ranks have mapped."""
    import psutil

    launcher = psutil.Process(process.pid)
    ranks = [launcher, *launcher.children(recursive=True)]
    paths = [mapped.path for rank in ranks for mapped in rank.memory_maps()]
    return [path for path in paths if path.startswith("/dev/shm")]


def scalars(folder: Path, tag: str = LOSS) -> dict[int, float]:
    """Step -> value of a TensorBoard tag, over all runs that wrote under `folder`; a later run's value wins."""
    values: dict[int, tuple[float, float]] = {}
    for events in (folder / "out" / "tb").rglob("events.*"):
        accumulator = EventAccumulator(str(events)).Reload()
        if tag not in accumulator.Tags()["scalars"]:
            continue
        for event in accumulator.Scalars(tag):
            if event.wall_time >= values.get(event.step, (0.0, 0.0))[0]:
                values[event.step] = (event.wall_time, event.value)
    return {step: value for step, (_, value) in sorted(values.items())}


def whole_state(folder: Path, step: int) -> dict[str, Any]:
    """Weights and optimizer state of a checkpoint."""
    import torch.distributed.checkpoint as dcp

    state: dict = {}
    dcp.state_dict_loader._load_state_dict(
        state,
        storage_reader=dcp.FileSystemReader(folder / f"out/checkpoint/step-{step}"),
        no_dist=True,
        planner=dcp.default_planner._EmptyStateDictLoadPlanner(),
    )
    flat = dcp._nested_dict.flatten_state_dict(state)[0]
    skip = ("dataloader", "lr_scheduler", "train_state", "callbacks", "optimizer.param_groups")
    return {name: value for name, value in flat.items() if not name.startswith(skip)}


def slow_imports(importtime: str) -> set[str]:
    """Packages that take seconds to import, of those that `python -X importtime` lists."""
    imported = {line.rpartition("|")[2].strip() for line in importtime.splitlines()}
    return imported & {"torch", "torchtitan", "streaming", "llmfoundry", "composer", "transformers", "numpy", "tyro"}


def processes_mentioning(text: Any) -> list[str]:
    """Command lines of live processes that contain `text`."""
    import psutil

    lines = []
    for process in psutil.process_iter(["cmdline", "pid"]):
        line = " ".join(process.info["cmdline"] or [])
        if str(text) in line and process.info["pid"] != os.getpid():
            lines.append(line)
    return lines
