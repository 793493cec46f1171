"""Lets modules of `streaming` be imported without what its packages import beside them.

`streaming/__init__.py` imports torchvision, transformers and scikit-learn for dataset classes that no language model
uses, 2-3 s, and `streaming/base/__init__.py` torch, which those who write shards do without. Here both packages are
entered in `sys.modules` unexecuted; the first access to a name that only an `__init__` defines
(`from streaming import Stream`) executes it as usual.
Upstream: no issue filed yet; mosaicml/streaming 0.13.0, `streaming/__init__.py`. Delete when that file imports lazily.
"""

import importlib.util
import sys
from typing import Any

NEEDED = "mosaicml-streaming"


def install() -> None:
    """Enter `streaming` and `streaming.base` as packages whose `__init__` runs on first need, if not imported yet."""
    for name in ("streaming", "streaming.base"):
        if name in sys.modules:
            return
        _enter(name)
    sys.modules["streaming"].base = sys.modules["streaming.base"]  # type: ignore[attr-defined]


def _enter(name: str) -> None:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed", name="streaming")
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)

    def execute_and_get(attribute: str) -> Any:
        if attribute.startswith("__"):  # the import system probes dunders: they are no reason to execute
            raise AttributeError(attribute)
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, attribute)

    vars(package)["__getattr__"] = execute_and_get
    sys.modules[name] = package
