"""Which TorchTitan is installed, and whether this package runs on it. Imports neither it nor torch."""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version

from mosaic_photon.errors import ConfigError


@dataclass(frozen=True)
class Known:
    """A release of TorchTitan that this package runs on."""

    folder: str
    """Below `titan/`."""
    newest: str
    """The version to install."""
    torch: str
    """The oldest torch that it runs on; its wheel names none."""


KNOWN = {"0.2.2": Known("v02", "0.2.2", "2.11"), "0.3": Known("v03", "0.3.0", "2.14")}
"""By what the versions begin with."""


@cache
def installed() -> Known:
    """The installed release.

    Raises:
        ConfigError: there is no TorchTitan, or one that this package does not know, or a torch too old for it; the
            message has the command that mends it.
    """
    try:
        titan = version("torchtitan")
    except PackageNotFoundError:
        raise ConfigError(f"TorchTitan is not installed: {_command(KNOWN['0.2.2'])}") from None
    known = next((release for begin, release in KNOWN.items() if f"{titan}.".startswith(f"{begin}.")), None)
    if known is None:
        names = " and ".join(KNOWN)
        raise ConfigError(
            f"torchtitan {titan} is installed, and this package runs on {names}: {_command(KNOWN['0.3'])}"
        )
    torch = version("torch")
    if Version(torch) < Version(known.torch):
        raise ConfigError(
            f"torchtitan {titan} needs torch {known.torch} or newer, and {torch} is installed: {_command(known)}"
        )
    return known


def _command(known: Known) -> str:
    return f"pip install 'torchtitan=={known.newest}' 'torch>={known.torch}'"
