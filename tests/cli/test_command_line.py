"""What `mosaic-photon` says of a command line that is not right, and what it keeps to itself."""

import argparse
import warnings

import pytest

from mosaic_photon.cli import completion, main


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "job.toml"], "the following arguments are required: DATA.toml\n"),
        (
            ["train", "job.toml", "data.toml", "--training.steps=3"],
            "unrecognized arguments: --training.steps=3; the job's flags come behind `--`\n",
        ),
        (
            ["trace", "job.toml", "data.toml", "--step", "3", "--x.y", "4"],
            "--x.y 4; the job's flags come behind `--`\n",
        ),
        (["completion", "bash", "--x"], "unrecognized arguments: --x\n"),
    ],
)
def test_a_wrong_command_line_is_told(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(words)
    assert raised.value.code == 2 and capsys.readouterr().err.endswith(message)


def test_what_llm_foundry_does_in_an_old_way_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(args: argparse.Namespace) -> int:
        warnings.warn("pkg_resources is deprecated as an API. See ...", UserWarning, stacklevel=1)
        warnings.warn("Using a non-tuple sequence for multidimensional indexing is ...", UserWarning, stacklevel=1)
        warnings.warn("of interest", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(completion, "run", run)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        assert main(["completion", "bash"]) == 0
    assert [str(warning.message) for warning in shown] == ["of interest"]
