"""A bad document in a run's data: seen in its loss, found by `trace`, passed over. Draws docs/spike.png.

    python benchmarks/spike.py [--out FOLDER]

The data are files of Python's standard library, with one document of random tokens among them. Takes some minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
from tokenizers import Tokenizer

from mosaic_photon.report.record import read_run

ROOT = Path(__file__).parent.parent
TOKENIZER = ROOT / "tests" / "assets" / "tokenizer"
STEPS, INTERVAL, SEQ_LEN, BATCH = 240, 40, 256, 4
CHARACTERS, PIECE, BAD_AT, BAD_TOKENS = 900_000, 600, 0.5, 2_500
"""Of the text and of each document; where among them the bad document comes; how long that is."""
RISE = 0.7
"""A step whose loss lies so far above the mean of the ten before is taken for a bad one."""

JOB = f"""
[job]
dump_folder = "{{out}}/run"
[model]
name = "llama3_mosaic"
flavor = "debugmodel"
hf_assets_path = "{TOKENIZER}"
[model.overrides]
dim = 64
n_layers = 2
n_heads = 4
[optimizer]
name = "AdamW"
lr = 2e-3
[lr_scheduler]
warmup_steps = 20
[training]
steps = {STEPS}
local_batch_size = {BATCH}
global_batch_size = {BATCH}
seq_len = {SEQ_LEN}
mixed_precision_param = "float32"
[activation_checkpoint]
mode = "none"
[checkpoint]
enable = true
interval = {INTERVAL}
keep_latest_k = 0
last_save_model_only = false
[metrics]
log_freq = 1
[debug]
seed = 1
"""
DATA = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset.streams.stdlib]
local = "{out}/data"
split = "train"
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="folder to work in (default: a temporary one)")
    out = (parser.parse_args().out or Path(tempfile.mkdtemp())).resolve()
    out.mkdir(parents=True, exist_ok=True)
    write_data(out)
    configs = [str(out / "job.toml"), str(out / "data.toml")]
    for path, text in zip(configs, (JOB, DATA), strict=True):
        Path(path).write_text(text.format(out=out))
    command("train", *configs)
    before = losses(out)
    bad = leaps(before)
    print(f"steps whose loss leaps: {bad}")
    begin = (bad[0] - 1) // INTERVAL * INTERVAL
    checkpoint = out / "run" / "checkpoint" / f"step-{begin}"
    command("trace", *configs, "--step", str(max(bad, key=before.__getitem__)), "--checkpoint", str(checkpoint))
    skip = f"{bad[0]}-{bad[-1]}"
    command("train", *configs, "--", f"--checkpoint.load_step={begin}", f"--mosaic.skip_batches={skip}")
    draw(before, losses(out), bad, begin, ROOT / "docs" / "spike.png")


def write_data(out: Path) -> None:
    """Pieces of files in a drawn order, the bad document among them, prepared as shards that are read in that order."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = "".join(path.read_text() for path in files)[:CHARACTERS]
    documents, draws = [text[begin : begin + PIECE] for begin in range(0, CHARACTERS, PIECE)], random.Random(0)
    draws.shuffle(documents)
    tokenizer = Tokenizer.from_file(str(TOKENIZER / "tokenizer.json"))
    ids = draws.choices(range(100, tokenizer.get_vocab_size()), k=BAD_TOKENS)
    documents.insert(int(BAD_AT * len(documents)), tokenizer.decode(ids))
    (out / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    options = ["--tokenizer", str(TOKENIZER), "--seq-len", str(SEQ_LEN), "--val", "0", "--overwrite"]
    command("prepare", str(out / "text.jsonl"), "--out", str(out / "data"), *options)


def command(*words: str) -> None:
    """Run `mosaic-photon WORDS`."""
    print("$ mosaic-photon", *words, flush=True)
    subprocess.run([sys.executable, "-m", "mosaic_photon.cli", *words], check=True)


def losses(out: Path) -> dict[int, float]:
    """The run's loss by step; of a step that was made twice, the later one."""
    loss = read_run(out / "run").series["loss_metrics/global_avg_loss"]
    return dict(zip(loss.steps, loss.values, strict=True))


def leaps(loss: dict[int, float]) -> list[int]:
    """The first steps in a row whose loss lies far above those before."""
    high = [step for step in loss if step > 10 and loss[step] > RISE + sum(loss[step - n] for n in range(1, 11)) / 10]
    return [step for number, step in enumerate(high) if step == high[0] + number]


def draw(before: dict[int, float], after: dict[int, float], bad: list[int], begin: int, path: Path) -> None:
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.4), sharey=True, layout="constrained")
    titles = (f"the run: loss leaps at step {bad[0]}", f'from step {begin}, skip_batches = ["{bad[0]}-{bad[-1]}"]')
    for panel, loss, title in zip(panels, (before, after), titles, strict=True):
        panel.plot(loss.keys(), loss.values(), linewidth=1)
        panel.axvspan(bad[0] - 0.5, bad[-1] + 0.5, color="tab:red", alpha=0.15, linewidth=0)
        panel.set(title=title, xlabel="step")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("training loss")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
