"""`mosaic-photon schedule`: what it shows is what the job would do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mds_data import write_mds
from mosaic_photon.cli import main
from mosaic_photon.cli.schedule import decay_kind, preview_of
from mosaic_photon.optimizers import ADOPT, QHADOPT
from mosaic_photon.schedulers.preview import drawing

JOB = """
[model]
name = "{model}"
flavor = "{flavor}"
hf_assets_path = "tests/assets/tokenizer"
[optimizer]
name = "QHADOPT"
lr = 0.01
weight_decay = 1e-4
decouple = true
no_decay = ["norm"]
[lr_scheduler]
name = "constant_with_sqrt_cooldown_with_warmup"
[lr_scheduler.kwargs]
t_warmup = "{warmup}"
t_cooldown = "0.2dur"
[training]
steps = 50
seq_len = 64
[mup]
enabled = {mup}
base_width = 32
"""


@pytest.fixture
def job(tmp_path):
    def write(model="llama3_mosaic", flavor="debugmodel", warmup="10ba", mup="false"):
        path = tmp_path / "job.toml"
        path.write_text(JOB.format(model=model, flavor=flavor, warmup=warmup, mup=mup))
        return str(path)

    return write


def test_it_draws_every_group_and_writes_the_plot(job, tmp_path, capsys):
    out = tmp_path / "plots"
    assert main(["schedule", job(), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for word in ("learning rate", "momentum (beta1)", "weight decay", "tok_embeddings.weight", "norm.weight", "0.9"):
        assert word in printed
    assert (out / "schedule.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in out.iterdir()] == ["schedule.png"]


def test_the_curves_are_the_jobs(job):
    shown = preview_of(job(), None, None)
    weights, norms = shown.groups
    assert list(shown.steps) == list(range(50))
    assert weights.lr[[0, 5, 10, 39, 40, 49]] == pytest.approx([0, 0.005, 0.01, 0.01, 0.01, 0.01 * (1 - 0.9**0.5)])
    np.testing.assert_allclose(weights.decay, weights.lr / 0.01 * 1e-4)
    assert norms.weight_decay == 0 and not norms.decay.any()
    assert weights.momentum == {"beta1": 0.999, "beta2": 0.9999, "v1": 0.9}


def test_mup_gives_hidden_weights_a_learning_rate_of_their_own(job):
    shown = preview_of(job("mpt_mup_mosaic", "debugmodel", mup="true"), None, None)
    assert len({group.peak_lr for group in shown.groups}) > 1


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda params: torch.optim.Adam(params), "coupled"),
        (lambda params: torch.optim.Adam(params, decoupled_weight_decay=True), "times lr"),
        (lambda params: torch.optim.AdamW(params), "times lr"),
        (lambda params: ADOPT(params, decouple=True), "times lr"),
        (lambda params: QHADOPT(params, decouple=True), "follows lr"),
        (lambda params: QHADOPT(params), "coupled"),
    ],
)
def test_how_weights_decay_is_read_from_the_optimizer(make, kind):
    assert decay_kind(make([torch.nn.Parameter(torch.ones(1))])) == kind


def test_token_times_need_the_batch(job, capsys):
    path = job(warmup="5120tok")
    assert main(["schedule", path, "--no-files"]) == 1
    assert "does not know its tok a step" in capsys.readouterr().err
    assert preview_of(path, 8, None).groups[0].lr[5] == pytest.approx(0.005)  # 8 samples of 64 tokens: 10 steps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batch", "0"], "--batch 0: must be at least 1."),
        (["--epoch-batches", "-2"], "--epoch-batches -2: must be at least 1."),
        (["--out", "{job}"], "is not a folder that can be written to"),
        (["--out", "~/plots"], "'~' and '$' are a shell's"),
    ],
)
def test_options_are_checked_before_the_model_is_built(job, capsys, words, message):
    path = job(flavor="no such flavor")
    assert main(["schedule", path, *(word.format(job=path) for word in words)]) == 1
    assert message in capsys.readouterr().err


def test_what_the_models_own_code_refuses_is_one_message(job, capsys):
    with open(path := job(), "a") as file:
        file.write('[model.overrides]\nattn_type = "x"\n')
    assert main(["schedule", path, "--no-files"]) == 1
    assert "cannot be built as the job has it: Unknown attention type: x." in capsys.readouterr().err


@pytest.mark.parametrize(("warmup", "message"), [("45ba", "longer than the schedule"), ("1h", "clock")])
def test_a_mistake_is_one_message(job, capsys, warmup, message):
    assert main(["schedule", job(warmup=warmup), "--no-files"]) == 1
    assert message in capsys.readouterr().err


def test_a_drawing_has_its_curve_where_the_values_are():
    lines = drawing(np.arange(100), [np.linspace(0, 1, 100)], width=20, height=5).splitlines()
    assert lines[0].endswith("•") and lines[4].split("┤")[1].startswith("•")
    assert lines[0].startswith("        1 ┤")


STAGES = """
[[mosaic_stages]]
duration = "10ba"
proportion = {{ web = 0.75, code = 0.25 }}
[[mosaic_stages]]
duration = "20ba"
ramp = true
proportion = {{ code = 1 }}
[[mosaic_stages]]
proportion = {{ code = 1 }}
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset.streams]
web = {{ local = "{data}/web" }}
code = {{ local = "{data}/code" }}
"""


def test_streams_of_the_data_are_drawn_beside(job, tmp_path, capsys):
    write_mds(tmp_path / "web", 48)
    write_mds(tmp_path / "code", 16)
    data = tmp_path / "data.toml"
    data.write_text(STAGES.format(data=tmp_path))
    assert main(["schedule", job(), str(data), "--batch", "8", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert all(f"{name} (• web, + code)" in printed for name in ("share of a step", "tokens", "passes"))
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")
    curves = dict(preview_of(job(), 8, None, str(data)).of_streams)
    web, code = curves["share of a step"]
    assert (web + code == 1).all() and (web[:10] == 0.75).all() and not web[30:].any()
    assert abs(np.cumsum(8 * web[10:30]) - 8 * 0.75 * (np.arange(1, 21) - np.arange(1, 21) ** 2 / 40)).max() < 1
    for stream, size in enumerate((48, 16)):
        read = np.concatenate([[0], 8 * np.cumsum(curves["share of a step"][stream])[:-1]])
        np.testing.assert_allclose(curves["tokens"][stream], 64 * read)
        np.testing.assert_allclose(curves["passes"][stream], read / size)
    assert main(["schedule", job(), str(data), "--no-files"]) == 1
    assert "give --batch N" in capsys.readouterr().err
