"""Launch to first step, and steps per second: the debug job here against stock TorchTitan's, in turns.

Both train TorchTitan's llama3 debug model with the same batch and sequence length on the same text: here from Mosaic
shards, there from TorchTitan's own text dataset as local JSON, on whichever TorchTitan is installed. `make train` must
have prepared data/stdlib.

    python benchmarks/bench_startup.py [--rounds 5] [--steps 20]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

JOB = """
[job]
dump_folder = "{out}"
[model]
name = "{model}"
flavor = "debugmodel"
hf_assets_path = "tests/assets/tokenizer"
[training]
steps = {steps}
local_batch_size = 4
seq_len = 256
mixed_precision_param = "float32"
[activation_checkpoint]
mode = "none"
[metrics]
log_freq = 1
disable_color_printing = true
[debug]
seed = 17
"""
STEP = re.compile(r"step: +(\d+) ")


@dataclass
class Run:
    """Seconds to the first step's report, and steps per second from there to the last."""

    first_step_s: float
    steps_per_s: float


def write_text_dataset(folder: Path) -> None:
    """The standard library's top-level modules as JSON lines, TorchTitan's local text format."""
    folder.mkdir()
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    lines = [json.dumps({"text": source.read_text(errors="replace")}) for source in sources]
    (folder / "data.json").write_text("\n".join(lines))


def measure(command: list[str], steps: int) -> Run:
    """Start the command and read its log until the last step."""
    begin = time.perf_counter()
    times: dict[int, float] = {}
    log: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            log.append(line)
            if match := STEP.search(line):
                times[int(match[1])] = time.perf_counter() - begin
    if process.returncode or steps not in times:
        sys.exit("".join(log) + f"\n{' '.join(command)} ended with {process.returncode}")
    return Run(times[1], (steps - 1) / (times[steps] - times[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        write_text_dataset(work / "text")
        configs = {}
        for model in ("llama3", "llama3_mosaic"):
            configs[model] = work / f"{model}.toml"
            configs[model].write_text(JOB.format(out=work / model, model=model, steps=options.steps))
        if version("torchtitan").startswith("0.2."):
            stock = [sys.executable, "benchmarks/stock_torchtitan.py", f"--job.config_file={configs['llama3']}"]
            stock += ["--training.dataset=c4_test", f"--training.dataset_path={work / 'text'}"]
        else:
            stock = [sys.executable, "benchmarks/stock_torchtitan_v03.py", str(work / "llama3"), str(work / "text")]
            stock += [str(options.steps)]
        ours = [sys.executable, "-m", "mosaic_photon.train_with_mosaic", f"--config={configs['llama3_mosaic']}"]
        runs: dict[str, list[Run]] = {"stock": [], "mosaic": []}
        for _ in range(options.rounds):
            runs["stock"].append(measure(stock, options.steps))
            runs["mosaic"].append(measure(ours, options.steps))
    print("|  | launch to first step | steps per second |\n|---|---|---|")
    for name, values in runs.items():
        first = statistics.median(run.first_step_s for run in values)
        rate = statistics.median(run.steps_per_s for run in values)
        print(f"| {name} | {first:.2f} s | {rate:.2f} |")
    pairs = list(zip(runs["mosaic"], runs["stock"], strict=True))
    first = statistics.median(ours.first_step_s / theirs.first_step_s for ours, theirs in pairs)
    rate = statistics.median(ours.steps_per_s / theirs.steps_per_s for ours, theirs in pairs)
    print(f"| median ratio of the rounds | {first:.2f} | {rate:.2f} |")


if __name__ == "__main__":
    main()
