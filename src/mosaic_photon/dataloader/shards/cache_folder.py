"""A stream's folder at the start of a run: is it data, a cache of this remote, or something that is not ours to touch?

A folder that is absent or empty becomes a cache of ours. One whose index.json is the remote's is read and added to, and
what was in it stays. Everything else is refused. Of a node's processes one decides; the others read what it left.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mosaic_photon.dataloader.node.folder import folder_for, folder_of
from mosaic_photon.dataloader.node.once import once_a_run
from mosaic_photon.dataloader.node.settings import settings
from mosaic_photon.dataloader.shards.claim import (
    Claim,
    canonical,
    contents,
    digest_of,
    names_here,
    read_claim,
    use_path,
)
from mosaic_photon.dataloader.shards.fetch import Source, download, reported
from mosaic_photon.dataloader.shards.index import INDEX, DataError, Shard
from mosaic_photon.dataloader.shards.patience import patiently
from mosaic_photon.dataloader.shards.store import stamp_of
from mosaic_photon.dataloader.shards.table import Index, open_index, read_index
from mosaic_photon.files import locked, write_whole

logger = logging.getLogger(__name__)


def open_source(source: Source, allow_unsafe_types: bool = False) -> tuple[Source, Index]:
    """The source as it is to be read, and its index's shards; the index is fetched if it is not here or has changed.

    Compressed data without a remote becomes a source whose remote it is, with a cache in the node folder.

    Raises:
        DataError: no index, a damaged one, or a folder that is no cache of this remote.
    """
    if source.remote is None:
        index = read_index(source.folder, allow_unsafe_types)
        if all(kind.zip_hashes is None for kind in index.kinds):
            return source, index
        source = _unpacked(source)
    key = f"cache {os.path.realpath(source.folder)} of {canonical(str(source.remote))}"
    adopt = settings().adopt_cache
    answer = once_a_run(key, lambda: reported(source, lambda: _settle(source, allow_unsafe_types, adopt)))
    if answer["error"]:
        raise DataError(answer["error"])
    # Without a claim nobody knows whose it is. Where nothing can be added, no lock can be held either.
    if read_claim(source.folder) is None or not _is_writable(source.folder):
        source = dataclasses.replace(source, remote=None)
    return source, read_index(source.folder, allow_unsafe_types)


def _unpacked(source: Source) -> Source:
    from streaming.base.storage import CloudDownloader

    folder = folder_for(str(source.folder), "unpacked")
    remote = os.path.realpath(source.folder)
    downloader = CloudDownloader.get(remote)
    return dataclasses.replace(
        source, folder=folder, remote=remote, data=source.folder, keep_zip=False, downloader=downloader
    )


@dataclasses.dataclass(frozen=True)
class _Found:
    """What lies in a cache folder before a run."""

    claim: Claim | None
    index: str | None
    """The digest of its index.json."""
    names: list[str]

    @classmethod
    def of(cls, folder: Path) -> _Found:
        path = folder / INDEX
        return cls(read_claim(folder), digest_of(path) if path.is_file() else None, contents(folder))

    @property
    def intact(self) -> bool:
        """Whether the index is the one that was fetched."""
        return self.claim is not None and self.index == self.claim.index

    def is_current(self, remote: str, stamp: str) -> bool:
        """Whether the remote's index is here already; a store that gives no stamp does not tell."""
        known = self.claim is not None and (self.claim.remote, self.claim.stamp) == (remote, stamp)
        return bool(stamp) and known and self.intact


def _settle(source: Source, allow_unsafe_types: bool, adopt: bool) -> None:
    """Bring the folder's index and claim up to date with the remote."""
    found = _Found.of(source.folder)
    if found.claim is None and found.index is None and found.names:
        raise _not_a_cache(source, found)
    # Not fetched into the cache folder, which may turn out not to be ours.
    with tempfile.TemporaryDirectory(dir=folder_of("")) as scratch:
        fetched = Path(scratch, INDEX)
        try:
            stamp = _fetch_unless_current(source, fetched, found)
        except DataError as error:  # a full disk is none, nor is a fault of ours: they end the job
            if found.index is None:
                raise
            _go_on_without(source, found, str(error))
            return
        if fetched.exists():
            index = open_index(fetched, f"{source.remote}/{INDEX}", allow_unsafe_types)
            _take(source, found, stamp, index, fetched, adopt)
        elif not _is_writable(source.folder):
            _say_read_only(source)
        elif found.claim and found.claim.kept and adopt:
            dataclasses.replace(found.claim, kept=frozenset()).write(source.folder)


def _fetch_unless_current(source: Source, target: Path, found: _Found) -> str:
    """Fetch the remote's index, after one time-out at most where there is one here. Returns its stamp.

    Raises:
        DataError: it can't be asked, or can't be had.
        OSError: there is no room.
    """
    try:
        stamp = stamp_of(source)
    except Exception as error:  # each store's client has exceptions of its own
        if found.index is not None:
            raise DataError(f"{type(error).__name__}: {error}") from error
        stamp = ""  # the download will say what is wrong
    if found.index is None:
        patiently(source, lambda source: download(source, INDEX, target))
    elif not found.is_current(canonical(str(source.remote)), stamp):
        download(dataclasses.replace(source, attempts=1), INDEX, target)
    return stamp


def _take(source: Source, found: _Found, stamp: str, index: Index, fetched: Path, adopt: bool) -> None:
    """Make an index that was fetched the cache's."""
    digest = digest_of(fetched)
    claim = Claim(canonical(str(source.remote)), digest, stamp, _kept(source, found, digest, index, adopt))
    if found.claim:
        _drop_changed(source, found, claim, index)
    try:
        claim.write(source.folder)
        if found.index != digest:
            write_whole(source.folder / INDEX, fetched.read_bytes())
    except OSError:
        if found.index != digest:
            raise
        _say_read_only(source)


def _is_writable(folder: Path) -> bool:
    """Whether shards can be added: not in another user's cache, nor in one that is mounted to be read."""
    return os.access(folder, os.W_OK)


def _say_read_only(source: Source) -> None:
    logger.warning(f"{source.folder}: can't be written to; stream {source.name!r} reads the shards that are there")


def _go_on_without(source: Source, found: _Found, reason: str) -> None:
    """The remote can't be asked: the cache is used as it is, if it is known to be of this remote or of none."""
    remote, claim = canonical(str(source.remote)), found.claim
    if claim and claim.remote != remote:
        raise DataError(
            f"{source.folder}: a cache of {claim.remote}, and {remote}, which stream {source.name!r} names, can't be"
            f" asked whether it holds the same: {reason}"
        )
    if claim and not found.intact:
        raise DataError(f"{source.folder / INDEX}: damaged, and it can't be fetched from {remote}: {reason}")
    unknown = "" if claim else f", nor whether {source.folder} holds its data"
    logger.warning(
        f"{remote}: stream {source.name!r}: it can't be asked whether it has changed{unknown}; going on with what is in"
        f" {source.folder}: {reason}"
    )


def _kept(source: Source, found: _Found, digest: str, index: Index, adopt: bool) -> frozenset[str]:
    """The files in the folder that are not ours to remove. Raises DataError if it is no cache of this remote."""
    remote, claim = canonical(str(source.remote)), found.claim
    if claim is None and found.index is None:
        return frozenset()
    if claim is None:
        if found.index != digest:
            raise _not_a_cache(source, found)
        logger.warning(
            f"{source.folder}: filled by another program with the shards of {remote}; "
            + ("it is a cache of ours from now on" if adopt else "what is in it stays, see mosaic.adopt_cache")
        )
        return frozenset() if adopt else frozenset(names_here(source.folder, index))
    same, hashed = claim.index == digest, all(kind.stored_hashes for kind in index.kinds)
    if claim.remote != remote and not (same and hashed):
        why = "whose index differs" if not same else "whose shards may differ, as their index has no hashes"
        raise DataError(
            f"{source.folder}: a cache of {claim.remote}, but stream {source.name!r} names {remote}, {why};"
            " give it another local folder, or remove this one"
        )
    return frozenset() if adopt else claim.kept


def _drop_changed(source: Source, found: _Found, claim: Claim, index: Index) -> None:
    """Remove the files of a cache of ours that the remote's index no longer vouches for.

    A file stays whose entry is the same and has a hash: sizes alone don't tell new content from old.
    """
    assert found.claim is not None
    if found.claim.index == claim.index and (found.claim.stamp == claim.stamp or found.claim.remote != claim.remote):
        return
    before: Sequence[Shard] = read_index(source.folder, True) if found.intact else ()
    known = {file.basename: file for shard in before for file in shard.files}
    now = {file.basename: file for shard in index for file in shard.files}
    stale = {name for name in known.keys() | now.keys() if known.get(name) != now.get(name) or not now[name].hashes}
    stale &= names_here(source.folder, [*before, *index])
    if not stale:
        return
    for name in sorted(stale):
        if not claim.may_remove(name):
            raise DataError(
                f"{source.folder / name}: {source.remote} has changed, and this file was here before stream"
                f" {source.name!r} made the folder its cache; remove it, or set mosaic.adopt_cache = true"
            )
    with locked(use_path(source.folder), wait=False) as free:
        if not free:
            raise DataError(
                f"{source.folder}: {source.remote} has changed, and another job on this node reads this cache with the"
                f" index of before; end it, or give stream {source.name!r} another local folder"
            )
        logger.warning(f"{source.remote} has changed: {len(stale)} files in {source.folder} will be fetched again")
        for name in stale:
            (source.folder / name).unlink(missing_ok=True)


def _not_a_cache(source: Source, found: _Found) -> DataError:
    what = f"its {INDEX} is another one" if found.index is not None else f"it holds {', '.join(found.names[:5])}"
    return DataError(
        f"{source.folder}: no cache of {canonical(str(source.remote))}, which stream {source.name!r} names: {what}."
        " Nothing in it was changed; give the stream another local folder, or empty this one"
    )
