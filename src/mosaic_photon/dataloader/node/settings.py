"""What a job says of all its streams, beside what their own configs say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mosaic_photon.job.tables import Mosaic


@dataclass(frozen=True)
class KnownStream:
    """What a checkpoint knows of one stream."""

    shards: int | None
    """How many it had; None in version 1, which did not count them."""
    content: str
    """The digest of their index."""


@dataclass(frozen=True)
class KnownData:
    """What a checkpoint knows of the data and no config may say: found before the data is opened."""

    num_canonical_nodes: int
    streams: tuple[KnownStream, ...]


@dataclass(frozen=True)
class Settings:
    """In force while a dataset is opened. The defaults are those of a tool that looks at data, not of a job."""

    node_folder: str = ""
    """`[mosaic] node_folder`, for `folder.node_folder`."""
    adopt_cache: bool = False
    """`[mosaic] adopt_cache`: caches that another program filled become ours."""
    patience: float = 0.0
    """Seconds to wait for a remote that does not answer."""
    known: KnownData | None = None
    """What the checkpoint knows that the job goes on from; of its streams only the shards that it knew are read."""

    @classmethod
    def of(cls, mosaic: Mosaic) -> Settings:
        """A job's."""
        return cls(mosaic.node_folder, mosaic.adopt_cache)


_settings: ContextVar[Settings | None] = ContextVar("settings", default=None)


def settings() -> Settings:
    """Those in force."""
    return _settings.get() or Settings()


@contextmanager
def in_force(given: Settings) -> Iterator[None]:
    """Within it, datasets are opened with these settings."""
    token = _settings.set(given)
    try:
        yield
    finally:
        _settings.reset(token)
