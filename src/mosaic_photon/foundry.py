"""llm-foundry and Composer, which are installed by a command of their own.

They bound torch below what TorchTitan runs on, so that a resolver without overrides, as pip's, finds no answer: this
package does not declare them. Both come from `foundry.txt`, which has them, and all that they and this package need but
torch, in the versions that tests run; `make lock` writes it.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError

PINS = Path(__file__).with_name("foundry.txt")
INSTALL = f"pip install --no-deps -r {PINS} (or the same with uv pip)"
NAMES = {"llmfoundry": "llm-foundry", "composer": "Composer"}
"""Module -> what people call it."""


def foundry_module(name: str, what: str) -> Any:
    """Import a module of llm-foundry's or Composer's.

    Raises:
        ConfigError: it, or a package that it needs, is not installed. The message begins with `what` needs it.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{what} {needed(error)}") from error


def needed(error: ModuleNotFoundError) -> str:
    """What a message says of something that needs the packages, one of which, or of theirs, is not installed."""
    module = str(error.name).partition(".")[0]
    missing = NAMES.get(module, module)
    return f"needs llm-foundry and Composer, and {missing} is not installed: {INSTALL}"
