"""Without llm-foundry and Composer, Llama 3 trains on tokens; what needs them says so, and how they are installed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

import jobs
from mosaic_photon.foundry import PINS

MUP = """
[mup]
enabled = true
base_width = 32
base_depth = 2
"""
FLAGS = [
    "--optimizer.name=QHADOPT",
    "--optimizer.decouple=true",
    "--lr_scheduler.name=constant_with_sqrt_cooldown_with_warmup",
    "--checkpoint.enable=true",
    "--validation.enable=true",
    "--validation.steps=1",
]
SCHEDULE = """[lr_scheduler.kwargs]
t_warmup = "2ba"
t_cooldown = "0.25dur"
"""
MISTAKES = {
    "model": ["--model.name=mpt_mup_mosaic", "--model.flavor=debugmodel"],
    "optimizer": ["--optimizer.name=decoupled_lionw"],
}
PUBLIC = ["callbacks OptimizerMonitor", "models TitanComposerMPTMuP"]
PUBLIC += ["schedulers ConstantWithLinearCooldownWithWarmupScheduler"]
SCRIPT = """
import contextlib, io, json, os, sys

class Blocked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in ("llmfoundry", "composer"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked)

from mosaic_photon.train_with_mosaic import main

said = {}
for name, argv in json.loads(sys.argv[1]).items():
    os.environ.pop("MASTER_PORT", None)
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(argv)
    said[name] = code, errors.getvalue()

import logging, mosaic_photon
logging.getLogger().handlers.clear()  # the jobs'
mosaic_photon.register_mpt_mup_mosaic()  # warns
for path in json.loads(sys.argv[2]):
    package, _, name = path.partition(" ")
    try:
        exec(f"from mosaic_photon.{package} import {name}")
    except ModuleNotFoundError as error:
        said[path] = 1, str(error)
loaded = sorted({name.partition(".")[0] for name in sys.modules} & {"llmfoundry", "composer"})
print("SAID", json.dumps([said, loaded]))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> dict[str, tuple[int, str]]:
    """Exit code and what was said, by what was tried; one process tries all."""
    root = tmp_path_factory.mktemp("without")
    own_schedule = jobs.JOB.replace("[lr_scheduler]\nwarmup_steps = 2\ntotal_steps = 1000\n", SCHEDULE)
    recipe = jobs.write_job(root / "recipe", prepared_data, own_schedule + MUP)
    with MDSWriter(out=str(root / "text/train"), columns={"text": "str"}) as mds:
        for number in range(200):
            mds.write({"text": f"words of text {number} " * 20})
    only_train = jobs.DATA[: jobs.DATA.index("[mosaic_eval_dataloader]")]
    finetuning = only_train.replace('"text"', '"finetuning"').replace("local", 'remote = "{data}"\nlocal', 1)
    plain = jobs.write_job(root / "plain", prepared_data)
    tried = {name: [*plain, "--", *flags] for name, flags in MISTAKES.items()}
    tried |= {
        "recipe": [*recipe, "--", *FLAGS],
        "schedule": [*recipe, "--", "--lr_scheduler.name=CosineAnnealingScheduler"],
        "callbacks": jobs.write_job(root / "callbacks", prepared_data, jobs.JOB + "[callbacks.lr_monitor]\n"),
        "text": jobs.write_job(root / "text", root / "text", jobs.JOB, only_train),
        "finetuning": jobs.write_job(root / "tuning", root / "text", jobs.JOB, finetuning),
    }
    command = [sys.executable, "-c", SCRIPT, json.dumps(tried), json.dumps(PUBLIC)]
    done = subprocess.run(command, cwd=jobs.ROOT, capture_output=True, text=True, timeout=240)
    assert "SAID " in done.stdout, done.stdout + done.stderr
    outcome, loaded = json.loads(done.stdout.rpartition("SAID ")[2])
    assert loaded == []
    outcome["warned"] = [1, done.stderr]
    outcome["losses"] = jobs.scalars(root / "recipe")
    return outcome


def test_the_recipe_trains(said: dict) -> None:
    code, text = said["recipe"]
    assert code == 0, text
    losses = list(said["losses"].values())
    assert len(losses) == 4 and all(np.isfinite(losses))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model", "model.name: mpt_mup_mosaic needs llm-foundry and Composer, and llm-foundry is not installed"),
        ("optimizer", "optimizer.name: 'decoupled_lionw' is not of this package"),
        ("schedule", "lr_scheduler.name = 'CosineAnnealingScheduler': it is not of this package"),
        ("callbacks", "[callbacks]: lr_monitor: a callback needs llm-foundry and Composer, and Composer is not"),
        ("text", "the data config's loader, 'text' of no tokens, needs llm-foundry and Composer"),
        ("finetuning", "the data config's loader, 'finetuning' of no tokens, needs llm-foundry and Composer"),
        ("warned", "mpt_mup_mosaic is not registered: it needs llm-foundry and Composer"),
        *((path, f".{path.partition(' ')[2]} needs llm-foundry and Composer") for path in PUBLIC),
    ],
)
def test_what_needs_them_says_so(said: dict, name: str, what: str) -> None:
    code, text = said[name]
    assert code == 1
    assert what in text
    assert f"pip install --no-deps -r {PINS}" in text
    assert "Traceback" not in text
