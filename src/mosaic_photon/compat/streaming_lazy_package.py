"""Lets `streaming.base` be imported without `streaming`'s vision, multimodal and text packages.

`streaming/__init__.py` imports torchvision, transformers and scikit-learn for dataset classes that no language model
uses: 2-3 s beside the 0.1-0.2 s of `streaming.base` itself. Here the package is entered in `sys.modules` unexecuted;
the first access to a name that only its `__init__` defines (`from streaming import Stream`) executes it as usual.
`streaming.base` imports torch, which those who write shards need not: `alone` is for what they need of it.
Upstream: no issue filed yet; mosaicml/streaming 0.13.0, `streaming/__init__.py`. Delete when that file imports lazily.
"""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

NEEDED = "mosaicml-streaming"


def install() -> None:
    """Enter `streaming` as a package whose `__init__` runs on first need. Does nothing if it is imported already."""
    if "streaming" in sys.modules:
        return
    spec = importlib.util.find_spec("streaming")
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed", name="streaming")
    loader = spec.loader
    package = importlib.util.module_from_spec(spec)

    def execute_and_get(name: str) -> Any:
        if name.startswith("__"):  # the import system probes dunders: they are no reason to execute
            raise AttributeError(name)
        vars(package).pop("__getattr__", None)
        loader.exec_module(package)
        return getattr(package, name)

    vars(package)["__getattr__"] = execute_and_get
    sys.modules["streaming"] = package


@cache
def alone(name: str) -> ModuleType:
    """A module of `streaming.base` that imports nothing of it, as a module that nobody else knows: its `__init__` and
    the order in which its parts are imported stay as they are.
    """
    package = importlib.util.find_spec("streaming")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("mosaicml-streaming is not installed", name="streaming")
    spec = importlib.util.spec_from_file_location(name, Path(package.origin).parent / "base" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
