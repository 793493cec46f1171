"""Builds what a bare GPU machine lacks to run `gpu_suite.py`: one folder that travels, at most 50 MiB.

    PYTHONPATH=benchmarks python -m gpu.bundle [--out build/gpu_bundle] [--python 3.12]

    wheels/            the packages of CARRIED in the versions of requirements.lock, and this project, for that Python
    shards/ tokenizer/ text of the standard library as Mosaic shards, and its tokenizer
    sitecustomize.py   stubs for packages that are imported and never used (see `stubs.py`)
    setup.sh           makes an environment of these over the machine's own torch: sh setup.sh, then env/python
    contents.txt       what is in it, with sizes

torch with what it requires (triton, sympy, filelock, ...) is the machine's own.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from gpu.stubs import HIDDEN, STUBS

ROOT = Path(__file__).parents[2]
LIMIT_MIB = 50

CARRIED = [
    "torchtitan", "mosaicml", "mosaicml-streaming", "llm-foundry", "transformers", "tokenizers", "huggingface-hub",
    "safetensors", "numpy", "torchmetrics", "lightning-utilities", "omegaconf", "tensorboard", "protobuf", "absl-py",
    "tyro", "docstring-parser", "rich", "markdown-it-py", "mdurl", "pygments", "psutil", "packaging", "pyyaml",
    "regex", "requests", "urllib3", "idna", "certifi", "charset-normalizer", "tqdm", "xxhash", "torchdata",
    "einops", "catalogue", "coolname", "py-cpuinfo", "importlib-metadata", "zipp", "tabulate", "setuptools",
    "tenacity", "typeguard", "msgspec",
]  # fmt: skip
"""What the suite imports beside torch, whether the machine has it or not: its numpy and transformers are others."""

PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 17, 12)]
PLATFORMS += [f"manylinux{year}_x86_64" for year in (2014, 2010, 1)]

SOURCES = ("json", "email", "asyncio", "unittest", "xml", "logging")
"""Packages of the standard library whose text the shards hold."""


def locked(names: list[str]) -> list[str]:
    """`name==version` of each, as requirements.lock has it."""
    lock = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(), re.MULTILINE))
    return [f"{name}=={lock[name]}" for name in names]


def run(*command: str) -> None:
    """Run a command of this environment's Python, silently unless it fails."""
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


def fetch_wheels(folder: Path, python: str) -> None:
    """The wheels of CARRIED for that Python, and this project's own."""
    abi = f"cp{python.replace('.', '')}"
    options = ["--no-deps", "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    options += [f"--abi={name}" for name in (abi, "abi3", "none")] + [f"--platform={name}" for name in PLATFORMS]
    run("-m", "pip", "download", "--quiet", *options, "--dest", str(folder), *locked(CARRIED))
    run("-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder))


def prepare_shards(folder: Path) -> None:
    """Text as shards of 257 tokens a sample: train/ and val/."""
    library = Path(sysconfig.get_path("stdlib"))
    options = ["--out", str(folder), "--tokenizer", "tests/assets/tokenizer", "--seq-len=256", "--val=0.1"]
    run("-m", "mosaic_photon.cli", "prepare", *(str(library / name) for name in SOURCES), *options)


def build(out: Path, python: str) -> None:
    """Make the bundle anew in `out`."""
    shutil.rmtree(out, ignore_errors=True)
    (out / "wheels").mkdir(parents=True)
    fetch_wheels(out / "wheels", python)
    prepare_shards(out / "shards")
    shutil.copytree(ROOT / "tests" / "assets" / "tokenizer", out / "tokenizer")
    here = Path(__file__).parent
    shutil.copy(here / "stubs.py", out / "sitecustomize.py")
    shutil.copy(here / "setup.sh", out / "setup.sh")


def contents(out: Path) -> str:
    """Sizes, largest first, and the stubs."""
    files = sorted(((path.stat().st_size, path) for path in out.rglob("*") if path.is_file()), reverse=True)
    lines = [f"{size / 2**20:8.2f} MiB  {path.relative_to(out)}" for size, path in files]
    total = sum(size for size, _ in files) / 2**20
    lines += [
        f"{total:8.2f} MiB  in all",
        "",
        f"stubs: {' '.join(sorted(STUBS))}",
        f"hidden: {' '.join(sorted(HIDDEN))}",
    ]
    if total > LIMIT_MIB:
        sys.exit("\n".join([*lines, f"the bundle is larger than {LIMIT_MIB} MiB"]))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu_bundle")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python (default: %(default)s)")
    options = parser.parse_args()
    build(options.out, options.python)
    text = contents(options.out)
    (options.out / "contents.txt").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
