"""Checks of a machine for a job: each finding is one line that says what is so and, if it is not well, what to do."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Finding:
    """`fail`: the job could not run. `warn`: it could, but not as it should. `ok`: as it should be."""

    level: Literal["ok", "warn", "fail"]
    subject: str
    text: str


def tried(subject: str, check: Callable[[], str]) -> Iterator[Finding]:
    """ok with what `check` returns, or fail with the mistake that it finds."""
    try:
        text = check()
    except ConfigError as error:
        yield Finding("fail", subject, str(error))
    else:
        yield Finding("ok", subject, text)
