"""`mosaic-photon coord-check` as a user runs it, on small models."""

import json
from pathlib import Path

import pytest

from mosaic_photon.cli import main

JOB = """
[model]
name = "{name}"
flavor = "debugmodel"
hf_assets_path = "{tokenizer}"
[model.overrides]
{overrides}
[mup]
enabled = true
base_width = 64
base_depth = 2
"""
TOKENIZER = Path(__file__).parent.parent / "assets" / "tokenizer"
MPT = "d_model = 64\nn_heads = 2\nn_layers = 2"
LLAMA = "dim = 64\nn_heads = 4\nn_layers = 2"


def job(folder: Path, name: str, overrides: str) -> str:
    path = folder / "job.toml"
    path.write_text(JOB.format(name=name, overrides=overrides, tokenizer=TOKENIZER))
    return str(path)


@pytest.mark.parametrize(("name", "overrides"), [("mpt_mup_mosaic", MPT), ("llama3_mosaic", LLAMA)])
def test_it_writes_its_report_and_exits_by_its_verdict(tmp_path, capsys, name, overrides):
    words = ["coord-check", job(tmp_path, name, overrides), "--widths", "64", "128", "256", "--seeds=1", "--steps=3"]
    code = main([*words, "--out", str(tmp_path / "out")])
    report = json.loads((tmp_path / "out" / "coord_check_width.json").read_text())
    assert code == (0 if report["verdict"] == "PASS" else 1)
    assert report["verdict"][:5] in capsys.readouterr().out
    assert report["sizes"] == [64, 128, 256]
    assert len(report["slopes"][0]) == 4
    # One seed on narrow models: noise may cross the verdict's 0.1; the standard parametrization is above 0.5.
    assert max(slope for slopes in report["slopes"] for slope in slopes[1:]) < 0.25
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".json", ".png", ".html"}


def test_the_standard_parametrization_fails_over_depth(tmp_path, capsys):
    words = ["coord-check", job(tmp_path, "mpt_mup_mosaic", MPT), "--depths", "2", "4", "8", "--seeds=1", "--steps=4"]
    assert main([*words, "--no-mup", "--out", str(tmp_path)]) == 1
    assert "FAIL: " in capsys.readouterr().out


EXAMPLE = str(Path(__file__).parents[2] / "examples" / "mosaic_photon" / "configs" / "mpt_mup_job.toml")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--widths", "--seeds=2"], 0),
        (["--depths", "--seeds=2"], 0),
        (["--widths", "128", "256", "512", "--seeds=1", "--no-mup"], 1),
        (["--depths", "2", "4", "8", "--seeds=1", "--no-mup"], 1),
    ],
    ids=["muP over widths", "CompleteP over depths", "standard over widths", "standard over depths"],
)
def test_ten_steps_of_the_example_job_at_the_documented_sizes(tmp_path, words, code):
    assert main(["coord-check", EXAMPLE, *words, "--out", str(tmp_path)]) == code
    (report,) = (json.loads(path.read_text()) for path in tmp_path.glob("*.json"))
    assert report["sizes"][-1] == {"--widths": 1024, "--depths": 16}[words[0]] or code == 1
    assert len(report["slopes"][0]) == 11


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--widths", "64", "65"], "no multiple of the model's head size 32"),
        (["--widths", "64"], "at least two"),
    ],
)
def test_mistakes_end_before_the_first_run(tmp_path, capsys, words, says):
    assert main(["coord-check", job(tmp_path, "mpt_mup_mosaic", MPT), *words, "--out", str(tmp_path)]) == 1
    assert says in capsys.readouterr().err
