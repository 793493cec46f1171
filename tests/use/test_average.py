"""`mosaic-photon average`: the mean of checkpoints' weights, and what it refuses."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

import jobs
from mosaic_photon.checkpoints import description
from mosaic_photon.cli import main
from mosaic_photon.models import MPTMuPModelArgs
from mosaic_photon.use.average import Weights

NAMES = ("layers.0.ffn.weight", "norm.weight")


def state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = dict(zip(NAMES, ((300, 70), (70,)), strict=True))
    drawn = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return drawn | {"steps": torch.tensor([seed])}


def checkpoint(folder: Path, content: dict[str, Any], model_args: Any = None) -> str:
    dcp.save(content, checkpoint_id=folder, no_dist=True)
    if model_args is not None:
        description.write(str(folder), model_args)
    return str(folder)


def read(folder: Path) -> dict[str, Tensor]:
    weights = Weights(str(folder))
    return {name: weights.read(name) for name in weights.stored}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_mean_is_summed_in_fp32_whatever_the_weights_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    states = {step: state(step, dtype) for step in (5, 10, 900)}
    more = {"optimizer": {"state": {name: {"exp_avg": torch.ones(3)} for name in NAMES}}, "train_state": {"step": 1}}
    folders = [checkpoint(tmp_path / f"step-{step}", {**content, **more}) for step, content in states.items()]
    assert main(["average", *folders, "--out", str(tmp_path / "mean")]) == 0
    found = read(tmp_path / "mean")
    assert found.keys() == states[5].keys()  # the model alone
    for name in NAMES:
        stacked = torch.stack([content[name].float() for content in states.values()])
        torch.testing.assert_close(found[name], stacked.mean(0).to(dtype), rtol=1e-6, atol=1e-7)
    assert found["steps"].tolist() == [900]
    assert {entry.name for entry in tmp_path.iterdir()} == {"mean", "step-5", "step-10", "step-900"}

    by_letters = sorted(folders)  # as a shell has step-*: 10, 5, 900
    assert main(["average", *by_letters, "--out", str(tmp_path / "ema"), "--weights", "ema:0.9"]) == 0
    first, *newer = (content[NAMES[0]].double() for content in states.values())
    for tensor in newer:
        first = 0.9 * first + 0.1 * tensor
    last_bit = {torch.float32: 1e-6, torch.bfloat16: 2**-8}[dtype]
    torch.testing.assert_close(read(tmp_path / "ema")[NAMES[0]].double(), first, rtol=last_bit, atol=1e-7)


def test_checkpoints_of_different_models_are_refused_with_what_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = MPTMuPModelArgs(d_model=64, n_heads=4)
    one = checkpoint(tmp_path / "one", state(1), args)
    other = dict(state(2))
    other[NAMES[0]] = torch.zeros(7, 70)
    other["layers.1.ffn.weight"] = torch.zeros(3)
    cases = {
        "layers.0.ffn.weight is [300, 70] in the first and [7, 70] in the second": (other, args),
        "lacks layers.1.* (1 tensors)": (other, args),
        "n_heads is 4 in the first and 8 in the second": (state(2), MPTMuPModelArgs(d_model=64, n_heads=8)),
    }
    for number, (says, (content, model_args)) in enumerate(cases.items()):
        second = checkpoint(tmp_path / f"other-{number}", content, model_args)
        assert main(["average", one, second, "--out", str(tmp_path / "out")]) == 1
        assert says in (message := capsys.readouterr().err) and "of different models" in message
        assert not list(tmp_path.glob("*out*"))


def test_what_cannot_be_averaged_is_one_message_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = checkpoint(tmp_path / "whole", state(1))
    checkpoint(tmp_path / "cut", state(1))
    data = next((tmp_path / "cut").glob("*.distcp"))
    os.truncate(data, data.stat().st_size // 2)
    (tmp_path / "half").mkdir()
    optimizer = checkpoint(tmp_path / "optimizer", {"optimizer": {"state": {"x": torch.ones(2)}}})
    out = str(tmp_path / "out")
    for words, says in [
        ([str(tmp_path / "half"), "--out", out], "no whole checkpoint"),
        ([str(tmp_path / "cut"), "--out", out], "is damaged"),
        ([optimizer, "--out", out], "holds no weights"),
        ([whole, "--out", str(tmp_path / "cut")], "is there already"),
        ([whole, "--out", out, "--weights", "ema:1.5"], "with D between 0 and 1"),
        ([whole, "--out", out, "--weights", "median"], "give equal, or ema:D"),
        ([whole, "--out", f"{data}/out"], "cannot be written"),
    ]:
        assert main(["average", *words]) == 1
        assert says in capsys.readouterr().err
        assert not list(tmp_path.glob("*out*"))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    assert main(["average", whole, "--out", out]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.slow
def test_memory_is_that_of_a_tensor_or_two(tmp_path: Path) -> None:
    """Eight tensors of 64 MiB in each of two checkpoints: far below one checkpoint's 512 MiB above the imports."""
    import subprocess
    import sys

    for step in (1, 2):
        checkpoint(tmp_path / f"step-{step}", {f"layers.{n}.w": torch.full((16, 2**20), float(step)) for n in range(8)})
    program = (
        "import resource, sys\n"
        "from mosaic_photon.use import average\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\n"
        "average.average(sys.argv[1:3], sys.argv[3], [1.0, 1.0])\n"
        "print(peak() - before)\n"
    )
    command = [sys.executable, "-c", program, *(str(tmp_path / name) for name in ("step-1", "step-2", "out"))]
    taken = int(subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, check=True).stdout)
    assert taken < 6 * 64, taken
    assert read(tmp_path / "out")["layers.7.w"].unique().tolist() == [1.5]
