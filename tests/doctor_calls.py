"""Calls of mosaic-photon doctor on jobs that their own tests start, and what is in their way."""

import re

from mosaic_photon.cli import main
from mosaic_photon.doctor import job as job_checks
from mosaic_photon.doctor import machine
from mosaic_photon.job import load as job_loading


def say_all(arguments, flags, processes, monkeypatch, capsys):
    """Exit code and output for a job that its own tests start with TorchTitan's flags; the machine is not looked at."""
    monkeypatch.setattr(machine, "check_machine", lambda *_: ())
    monkeypatch.setattr(job_checks, "PROBE_BYTES", 1)
    monkeypatch.setattr(job_loading, "load_job", lambda job, data, _, load=job_loading.load_job: load(job, data, flags))
    capsys.readouterr()
    code = main(["doctor", arguments[1], arguments[3], "--nproc-per-node", str(processes)])
    return code, capsys.readouterr().out


def failures(said):
    """The findings that are in the way, with all lines of their messages."""
    return "".join(re.findall(r"^FAIL.*\n(?:(?!ok  |warn|FAIL|\d+ ok).*\n)*", said, re.MULTILINE))
