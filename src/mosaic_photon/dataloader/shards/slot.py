"""A shard's place on this node: where its files lie, its lock, its row in the ledger of its cache."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mosaic_photon.dataloader.shards.claim import lock_path, part_path
from mosaic_photon.dataloader.shards.fetch import Source
from mosaic_photon.dataloader.shards.files import size_of
from mosaic_photon.dataloader.shards.index import INDEX, DataError, Shard, ShardFile
from mosaic_photon.dataloader.shards.ledger import Ledger
from mosaic_photon.files import locked


@dataclass(frozen=True)
class Slot:
    """A shard of a source."""

    shard_id: int
    shard: Shard
    source: Source
    ledger: Ledger | None
    """Of the source's cache; None where the data itself is read."""
    row: int
    """The shard's in the ledger."""

    @cached_property
    def raw(self) -> Path:
        """Where its raw file is put."""
        return self.source.folder / self.shard.raw.basename

    @cached_property
    def part(self) -> Path:
        """The folder in which its files are made while it is fetched."""
        return part_path(self.source.folder, self.shard.raw.basename)

    def locked(self, wait: bool = True) -> AbstractContextManager[bool]:
        """Who holds this may fetch or remove it. Data without a cache has no lock: it is not held."""
        if not self.source.cache:
            return nullcontext(False)
        return locked(lock_path(self.source.folder, self.shard.raw.basename), wait)

    def folders(self) -> list[Path]:
        """Where its files may lie."""
        return [self.source.data, self.source.folder] if self.source.data else [self.source.folder]

    def files_here(self) -> list[tuple[Path, ShardFile]]:
        """Its files that are on this node, whole or not."""
        places = [(folder / file.basename, file) for folder in self.folders() for file in self.shard.files]
        return [(path, file) for path, file in places if path.exists()]

    def is_here(self) -> bool:
        """Whether the raw file is on this node with its full size."""
        raw = self.shard.raw
        return any(size_of(folder / raw.basename) == raw.bytes for folder in self.folders())

    def may_remove(self, file: ShardFile) -> bool:
        """Whether the file in the cache was fetched by us."""
        return self.ledger is not None and self.ledger.claim.may_remove(file.basename)

    def lost(self) -> DataError:
        """The error for a shard of data without a remote that is missing or not whole."""
        stored, source = self.shard.stored, self.source
        path = (source.data or source.folder) / stored.basename
        size = size_of(path)
        what = f"missing; {INDEX} lists it" if size is None else f"has {size} bytes instead of {stored.bytes}"
        return DataError(f"{path}: {what}, and stream {source.name!r} has no remote to fetch it from")
