"""One TorchTitan goes on from the other's checkpoints, in another layout. Its jobs run in both environments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import jobs
from layouts_jobs import CALLBACKS, JOBS, LAYOUTS, ONE, STEPS_PER_LINK, entry, run_plan, went_on

V02, V03 = str(jobs.ROOT / ".venv/bin/python"), sys.executable
pytestmark = pytest.mark.skipif(
    not Path(V02).exists(), reason="TorchTitan 0.2.2, whose checkpoints are to cross over, is in .venv: make install"
)
LINKS = ((V02, "FSDP2 ×2"), (V03, "TP ×2"), (V02, "PP ×2"))
"""Parts of a run: each goes on from the one before. It is compared with one that stays in 0.2.2, in one process."""
MODELS = ("llama3, QHADOPT", "MPT muP, QHADOPT")
STEPS = STEPS_PER_LINK * len(LINKS)
SAVE = "--checkpoint.enable"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> dict[str, Path]:
    """By model: the folder of its runs: unmoved, moved, and the seed checkpoint of each release."""
    root = tmp_path_factory.mktemp("crossing")
    folders = {model: root / str(number) for number, model in enumerate(MODELS)}

    def plan(run: str, layout: str, *flags: str) -> list[dict[str, object]]:
        return [
            entry(folder / run, f"{run} {model}", LAYOUTS[layout], JOBS[model] + CALLBACKS, prepared_data, *flags)
            for model, folder in folders.items()
        ]

    def link(number: int) -> list[dict[str, object]]:
        return plan("moved", LINKS[number][1], SAVE, f"--training.steps={STEPS_PER_LINK * (number + 1)}")

    seed = (SAVE, "--checkpoint.create_seed_checkpoint")
    run_plan([*plan("unmoved", ONE, f"--training.steps={STEPS}"), *plan("v02", ONE, *seed), *link(0)], root, V02)
    run_plan([*plan("v03", ONE, *seed), *link(1)], root, V03)
    run_plan(link(2), root, V02)
    return folders


@pytest.mark.parametrize("model", MODELS)
def test_initial_weights_are_the_same(model: str, runs: dict[str, Path]) -> None:
    old, new = (jobs.whole_state(runs[model] / release, 0) for release in ("v02", "v03"))
    weights = {name: tensor for name, tensor in old.items() if name.endswith("weight")}
    assert len(weights) > 10
    assert [name for name, tensor in weights.items() if not torch.equal(tensor, new[name])] == []


@pytest.mark.parametrize("model", MODELS)
def test_a_run_goes_on_in_the_other_release(model: str, runs: dict[str, Path]) -> None:
    went_on(runs[model] / "moved", runs[model] / "unmoved", model, STEPS)
    logs = (runs[model] / "moved/log").read_text()
    assert [f"Training starts at step {STEPS_PER_LINK * number + 1}\n" in logs for number in range(3)] == [True] * 3
