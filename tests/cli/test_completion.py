"""Completion by the shells themselves: commands, options, values, files, and a job's fields after `--`."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mosaic_photon.cli import COMMANDS, main

CASES = {
    # what is typed: what stands there after the tab key
    "mosaic-photon insp": "mosaic-photon inspect",
    "mosaic-photon init run --mod": "mosaic-photon init run --model",
    "mosaic-photon init run --model m": "mosaic-photon init run --model mpt",
    "mosaic-photon doctor my_j": "mosaic-photon doctor my_job.toml",
    "mosaic-photon inspect --job my_j": "mosaic-photon inspect --job my_job.toml",
    "mosaic-photon train my_job.toml my_d": "mosaic-photon train my_job.toml my_data.toml",
    "mosaic-photon train a b -- --training.st": "mosaic-photon train a b -- --training.steps",
    "mosaic-photon train a b -- --training.steps 2 --optimizer.wei": (
        "mosaic-photon train a b -- --training.steps 2 --optimizer.weight_decay"
    ),
}
BASH = """
source "$1"
COMP_WORDS=($2)
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_mosaic_photon
echo "${COMP_WORDS[@]:0:COMP_CWORD} ${COMPREPLY[@]}"
"""
FISH = 'source $argv[1]; set words (string split " " $argv[2]); echo $words[1..-2] (complete -C $argv[2] | cut -f 1)'
ZSH = """
zmodload zsh/zpty
zpty z zsh -f -i
zpty -w z "fpath=($1:h \\$fpath); autoload -Uz compinit; compinit -D -u; bindkey '^I' complete-word"
zpty -w z 'show() { print -r -- "<$BUFFER>" }; zle -N show; bindkey "^X" show; print RE""ADY'
zpty -r z seen '*READY*'
zpty -w -n z "$2"$'\\t'$'\\x18'
zpty -r z seen '*<*>*'
print -r -- "${${seen##*<}%%>*}"
"""
SHELLS = {"bash": ["bash", "-c", BASH, "bash"], "fish": ["fish", "-c", FISH], "zsh": ["zsh", "-f", "-c", ZSH, "zsh"]}


@pytest.mark.parametrize("shell", SHELLS)
def test_shell_completes(shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    assert main(["completion", shell]) == 0
    script = tmp_path / "_mosaic-photon"
    script.write_text(capfd.readouterr().out)
    for name in ("my_job.toml", "my_data.toml"):
        (tmp_path / name).touch()
    for typed, completed in CASES.items():
        command = [*SHELLS[shell], str(script), typed]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert run.stdout.split() == completed.split(), (typed, run.stdout, run.stderr)


def test_every_command_is_in_the_script(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "fish"]) == 0
    script = capfd.readouterr().out
    assert [name for name in COMMANDS if f"-a {name} " not in script] == []
