"""The release that is installed is one that this package knows, or the job ends with a sentence."""

from __future__ import annotations

import importlib
import inspect

import pytest

from mosaic_photon import titan
from mosaic_photon.errors import ConfigError
from mosaic_photon.titan.interface import Release


def test_the_installed_release_has_what_every_release_has() -> None:
    asked = {name: call for name, call in vars(Release).items() if inspect.isfunction(call) and name[0] != "_"}
    assert set(asked) == {"known_models", "model_spec", "register", "build_trainer"}
    found = titan.release()
    for name, call in asked.items():
        _, *parameters = inspect.signature(call).parameters
        assert list(inspect.signature(getattr(found, name)).parameters) == parameters


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("mosaic_photon.titan"), "version", lambda package: "0.3.0")
    with pytest.raises(ConfigError, match=r"torchtitan 0\.3\.0 is installed, and this package runs on 0\.2\.2"):
        titan.release()
