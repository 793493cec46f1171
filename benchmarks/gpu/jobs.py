"""Jobs as a user starts them: the sample configs' losses beside the CPU's, save and resume, stop by SIGTERM."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu.rows import Options, Rows

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "examples" / "mosaic_photon" / "configs"
STEP = re.compile(r"step: +(\d+) .*?loss: +([\d.naif-]+)")

FIRST_LOSS, LAST_LOSS, RESUMED_LOSS = 0.01, 0.05, 0.01
"""Relative: bf16 keeps 8 bits; thirty steps let roundings grow; a resumed step differs by the order of atomic sums."""


def data_config(folder: Path, shards: Path, pin: bool = True, val: bool = True) -> Path:
    """A data config that reads these shards, written into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train = f'name = "text"\nnum_workers = 0\ndrop_last = true\npin_memory = {str(pin).lower()}\n'
    text = f"[mosaic_dataloader]\n{train}[mosaic_dataloader.dataset]\n"
    text += f'local = "{shards}"\nsplit = "train"\nshuffle = true\nshuffle_seed = 17\n'
    if val:
        text += '[mosaic_eval_dataloader]\nname = "text"\nnum_workers = 0\ndrop_last = false\n'
        text += f'[mosaic_eval_dataloader.dataset]\nlocal = "{shards}"\nsplit = "val"\nshuffle = false\n'
    (folder / "data.toml").write_text(text)
    return folder / "data.toml"


@dataclass
class Job:
    """A sample config on a device, in a process of its own."""

    options: Options
    name: str
    sample: str
    device: str
    flags: tuple[str, ...]

    def start(self, *more: str) -> subprocess.Popen[str]:
        folder = self.options.out / f"job-{self.name}"
        flags = [
            f"--job.dump_folder={folder}/out", f"--model.hf_assets_path={self.options.bundle / 'tokenizer'}",
            "--metrics.log_freq=1", "--metrics.disable_color_printing=true", "--validation.enable=false",
            *self.flags, *more,
        ]  # fmt: skip
        config, data = CONFIGS / self.sample, data_config(folder, self.options.bundle / "shards")
        command = [sys.executable, "-m", "mosaic_photon.train_with_mosaic", "--config", str(config)]
        environment = dict(os.environ) if self.device == "cuda" else os.environ | {"CUDA_VISIBLE_DEVICES": ""}
        return subprocess.Popen(
            [*command, "--mosaic-config", str(data), "--", *flags],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment,
        )  # fmt: skip

    def losses(self, *more: str) -> dict[int, float]:
        """Step -> loss of the job run to its end.

        Raises:
            RuntimeError: it failed; what it printed last.
        """
        printed, _ = (process := self.start(*more)).communicate()
        print(f"--- {self.name} {more}\n{printed}", flush=True)
        if process.returncode:
            raise RuntimeError(f"exit {process.returncode}: {printed[-400:]}")
        return read_losses(printed)


def read_losses(printed: str) -> dict[int, float]:
    return {int(step): float(loss) for step, loss in STEP.findall(printed)}


def run(options: Options, rows: Rows) -> None:
    checks: dict[str, Callable[[Options, Rows], None]] = {
        "Llama 3 sample": lambda options, rows: as_on_the_cpu(options, rows, "Llama 3 sample", "mosaic_job.toml"),
        "MPT sample": lambda options, rows: as_on_the_cpu(options, rows, "MPT sample", "mpt_mup_job.toml"),
        "resume": resume,
        "SIGTERM": stop_by_signal,
    }

    def guarded(name: str) -> None:
        try:
            checks[name](options, rows)
        except Exception as error:
            rows.failed(name, f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(len(checks) if options.device == "cuda" else 1) as pool:
        list(pool.map(guarded, checks))


def sizes(options: Options) -> tuple[str, ...]:
    if not options.tiny:
        return ()
    return ("--training.seq_len=64", "--validation.seq_len=64", "--training.local_batch_size=2")


def as_on_the_cpu(options: Options, rows: Rows, name: str, sample: str) -> None:
    """bf16 on the device and fp32 on the CPU, from the same weights over the same samples."""
    steps = options.pick(30, 16)
    flags = (f"--training.steps={steps}", *sizes(options))
    precision = "bfloat16" if options.device == "cuda" else "float32"
    there = Job(
        options, f"{sample}-device", sample, options.device, (*flags, f"--training.mixed_precision_param={precision}")
    )
    here = Job(options, f"{sample}-cpu", sample, "cpu", flags)
    with ThreadPoolExecutor(2 if options.device == "cuda" else 1) as pool:
        given, right = pool.map(lambda job: job.losses(), (there, here))
    rows.check(f"{name}: first loss beside the CPU's", abs(given[1] / right[1] - 1), FIRST_LOSS)
    rows.check(f"{name}: loss of step {steps} beside the CPU's", abs(given[steps] / right[steps] - 1), LAST_LOSS)
    rows.check(f"{name}: last loss over first", given[steps] / given[1], 1.0)


def resume(options: Options, rows: Rows) -> None:
    """A job saved half-way and started again goes on as one that was not interrupted."""
    steps = options.pick(12, 4)
    saved = "async_with_pinned_mem" if options.device == "cuda" else "async"
    flags = (
        "--checkpoint.enable=true", f"--checkpoint.interval={steps // 4}", "--lr_scheduler.total_steps=100",
        f"--checkpoint.async_mode={saved}",
    )  # fmt: skip
    whole = Job(options, "whole", "mosaic_job.toml", options.device, (*flags, *sizes(options)))
    halves = Job(options, "halves", "mosaic_job.toml", options.device, (*flags, *sizes(options)))
    right = whole.losses(f"--training.steps={steps}")
    halves.losses(f"--training.steps={steps // 2}")
    given = halves.losses(f"--training.steps={steps}")
    rows.check(f"resume: begins at step {min(given)}, not {steps // 2 + 1}", abs(min(given) - steps // 2 - 1), 0.0)
    rows.check("resume: last loss beside the uninterrupted", abs(given[steps] / right[steps] - 1), RESUMED_LOSS)


def stop_by_signal(options: Options, rows: Rows) -> None:
    """SIGTERM in the third step: a complete checkpoint, exit code 143, and the next run goes on from there."""
    flags = ("--checkpoint.enable=true", "--checkpoint.interval=1000", "--lr_scheduler.total_steps=2000")
    job = Job(options, "signal", "mosaic_job.toml", options.device, (*flags, *sizes(options)))
    process, printed = job.start("--training.steps=1000"), []
    assert process.stdout is not None
    for line in process.stdout:
        printed.append(line)
        if (match := STEP.search(line)) and int(match[1]) == 3:
            process.send_signal(signal.SIGTERM)
    code = process.wait()
    text = "".join(printed)
    print(text, flush=True)
    rows.check(f"SIGTERM: exit code {code}, not {128 + signal.SIGTERM}", abs(code - 128 - signal.SIGTERM), 0.0)
    last = max(read_losses(text))
    given = job.losses(f"--training.steps={last + 2}")
    rows.check(f"SIGTERM: stopped after step {last}, goes on at {min(given)}", abs(min(given) - last - 1), 0.0)
