"""The commands of docs/use.md, from `make train` on, in a folder that looks like the repository's root."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import jobs


def commands() -> list[str]:
    """The walk's: the page's first block."""
    page = (jobs.ROOT / "docs/use.md").read_text()
    return page.partition("```\n")[2].partition("```")[0].splitlines()


def recipe() -> list[str]:
    """What `make train` runs once everything is installed and prepared."""
    lines = subprocess.run(["make", "-n", "train"], cwd=jobs.ROOT, capture_output=True, text=True, check=True).stdout
    return re.sub(r"\\\n\s*", "", lines).partition("rm -rf outputs/make_train\n")[2].splitlines()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_from_make_train_to_a_text_a_number_and_a_folder(tmp_path: Path) -> None:
    for name in ("examples", "tests"):
        (tmp_path / name).symlink_to(jobs.ROOT / name)
    source = str(Path(re.__file__).parent.parent / "email")
    cli = [sys.executable, "-m", "mosaic_photon.cli"]
    prepare = ["prepare", source, "--out", "data/stdlib", "--tokenizer", "tests/assets/tokenizer", "--seq-len=256"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MASTER_")}

    def run(words: list[str]) -> str:
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run([*cli, *prepare, "--val=0.2"])
    train, line = recipe()
    run([sys.executable, "-m", "torch.distributed.run", "--standalone", *shlex.split(train)[1:], "--training.steps=26"])
    made, *walk = commands()
    assert made == "make train" and "generate outputs/make_train/checkpoint --job" in line
    generated, evaluated, _, again = (run([*cli, *shlex.split(words)[1:]]) for words in walk)
    assert generated.startswith("def main():") and len(generated) > 100
    assert re.search(r"step-26\n  eval: loss \d\.\d+, perplexity \d+\.?\d*, bits_per_byte \d\.\d+", evaluated)
    assert again.startswith("def main():")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(os.listdir(tmp_path / "outputs/exported"))
