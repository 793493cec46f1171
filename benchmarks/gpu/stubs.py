"""Stands in the GPU bundle for packages that are imported and never used: as its `sitecustomize`, at every start.

Any name of such a package can be imported, subclassed or named in an `except`; calling it raises. Copied into the
bundle by itself, so it imports the standard library alone.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

STUBS = frozenset(
    {
        # object stores and other clouds, which composer, streaming and llm-foundry import
        "alipcs_py", "azure", "boto3", "botocore", "databricks", "google.api_core", "google.auth", "google.cloud",
        "google.oauth2", "mcli", "oci", "paramiko", "nacl", "cryptography", "OpenSSL", "mlflow", "git",
        "pynvml", "neptune", "wandb", "comet_ml",
        # tables, statistics and pictures
        "pyarrow", "pandas", "scipy", "sklearn", "PIL", "PIL.Image", "torchvision", "plotly",
        # compressions of shards; the bundle's shards have none
        "brotli", "snappy", "zstd", "zstandard", "cramjam",
        # data sets of Hugging Face, and what else reads text
        "datasets", "accelerate", "aiohttp", "bs4", "sentencepiece", "onnx", "onnxruntime", "peft", "openai",
        "tiktoken",
    }
)  # fmt: skip

HIDDEN = frozenset({"matplotlib"})
"""Not there at all, whatever the machine has: torchmetrics asks, and calls what it finds."""


def placeholder(name: str) -> type:
    """A class of this name whose instances cannot be made."""

    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise ImportError(f"{name} is a stub of the GPU bundle: the package is imported there and not used")

    return type(name, (Exception,), {"__init__": refuse, "__module__": "stubs"})


class _Stub(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        whole = f"{self.__name__}.{name}"
        if whole in STUBS:  # a module, though `from PIL import Image` does not say so
            return import_module(whole)
        return "0.0.0" if name == "__version__" else placeholder(whole)


class Stubs(MetaPathFinder, Loader):
    """Finds a stub for every module below the names in STUBS."""

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        parts = name.split(".")
        if parts[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}: the GPU bundle hides it", name=name)
        below = any(".".join(parts[: length + 1]) in STUBS for length in range(len(parts)))
        return ModuleSpec(name, self, origin="stub", is_package=True) if below else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing to run."""


def hide_versions() -> None:
    """Let stubs and hidden packages have no version: who asks for one would take the machine's own for there."""
    from importlib import metadata

    hidden = {name.lower() for name in STUBS | HIDDEN} | {"pillow", "scikit-learn", "nvidia-ml-py"}
    found = metadata.Distribution.from_name

    def from_name(name: str) -> metadata.Distribution:
        if name.lower() in hidden:
            raise metadata.PackageNotFoundError(name)
        return found(name)

    metadata.Distribution.from_name = staticmethod(from_name)  # type: ignore[method-assign]


if __name__ == "sitecustomize":
    sys.meta_path.insert(0, Stubs())
    hide_versions()
