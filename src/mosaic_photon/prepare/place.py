"""Where the work goes on and what it makes ends up: a folder on a file system, or in an object store.

Tokens and notes lie in `<out>.partial` on both, beside the record of what the work is. A folder without our record is
not ours, and is refused.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from mosaic_photon import stores
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import OWN, display, json_bytes, locked, write_json
from mosaic_photon.prepare import record as records
from mosaic_photon.prepare.objects import below, look, remove
from mosaic_photon.prepare.tokenization import SPLITS
from mosaic_photon.stores import is_url, write

OURS = re.compile(
    r"prepare\.json|bad_lines\.txt|tokens/\d{6,}\.((train|val)\.bin|json)|tokens/(train|val)\.\d{5,}\.json"
    r"|(train|val)/(index\.json|shard\.\d{5,}\.mds(\.\w+)?)"
)
"""What prepare writes in a store, below `<out>` and `<out>.partial`."""


class Place(Protocol):
    """Where the work goes on."""

    partial: str
    splits: str
    """Below it the shards are written, and before they are whole no index lies there."""

    def made(self) -> dict[str, Any] | None:
        """The record of a finished result. Raises ConfigError for what is not ours."""

    def claimed(self) -> Any:
        """Within it the work is this call's, as far as that can be told."""

    def begun(self) -> dict[str, Any] | None:
        """The record of unfinished work; with "splits" in it, all that is left to do is `finish`."""

    def begin(self, record: dict[str, Any]) -> None:
        """Clear away what is there of ours and unfinished, or in the way of `record`'s work, and note it."""

    def discard(self) -> None:
        """Clear away the unfinished work."""

    def finish(self, record: dict[str, Any]) -> None:
        """Let readers see the result."""

    def tidy(self) -> None:
        """Clear away what a call left that was killed after that."""


def place_of(out: str) -> Place:
    """Of an absolute path or an address."""
    return InStore(out) if is_url(out) else OnDisk(out)


class OnDisk:
    """All work goes on in `<out>.partial`, which becomes `<out>` by one rename when it is whole.

    What is to be removed is first renamed to `<out>.replaced`. Of these three only an empty one or one with our record
    is ever touched.
    """

    def __init__(self, out: str) -> None:
        self._out, self._replaced = Path(out), Path(f"{out}.replaced")
        self._partial = Path(f"{out}.partial")
        self.partial = self.splits = str(self._partial)

    def made(self) -> dict[str, Any] | None:
        return records.read_record(self._out)

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """A lock that ends with the process, however it ends."""
        try:
            with locked(Path(f"{self.partial}.lock"), wait=False, remove=True) as held:
                if not held:
                    raise ConfigError(f"another prepare is writing {display(self._out)} right now")
                records.read_record(self._replaced)  # refuses someone else's before the work, not after it
                yield
        except OSError as error:
            raise ConfigError(f"{display(self._out)} cannot be written: {error}") from error

    def begun(self) -> dict[str, Any] | None:
        for left in self._partial.glob(f"tokens/{OWN}*"):  # by a worker that was killed
            shutil.rmtree(left, ignore_errors=True)
        return records.read_record(self._partial)

    def begin(self, record: dict[str, Any]) -> None:
        self.discard()
        self._partial.mkdir()
        write_json(self._partial / records.FILE, record)

    def discard(self) -> None:
        self._set_aside(self._partial)
        self._remove(self._replaced)

    def finish(self, record: dict[str, Any]) -> None:
        """An older result is there until the moment it is replaced."""
        write_json(self._partial / records.FILE, record)
        shutil.rmtree(self._partial / "tokens", ignore_errors=True)
        self._set_aside(self._out)
        os.rename(self._partial, self._out)
        self._remove(self._replaced)

    def tidy(self) -> None:
        pass

    def _set_aside(self, folder: Path) -> None:
        """Rename a folder before it is removed: what a killed call leaves of it is then never taken for a whole one."""
        self._remove(self._replaced)
        if folder.exists():
            os.rename(folder, self._replaced)

    def _remove(self, folder: Path) -> None:
        """Remove a folder of ours, its record last, by which the next call knows what a killed one left."""
        records.read_record(folder)  # raises for what is not ours
        for part in ("tokens", *SPLITS):
            shutil.rmtree(folder / part, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


class InStore:
    """Shards are written where they belong, as nothing can be renamed, and their index when all are there.

    There are no locks: two calls at once for the same work write the same bytes.
    """

    def __init__(self, out: str) -> None:
        self.splits, self.partial = out, f"{out}.partial"

    def made(self) -> dict[str, Any] | None:
        record = self._record(self.splits)
        if record is None:
            if self.begun() is None:
                for folder in (self.splits, self.partial):
                    self._refuse_others(folder)
        elif not all(look(f"{self.splits}/{split}/index.json") for split in record["splits"]):
            return None  # what is left of a removal that was cut off
        return record

    @contextmanager
    def claimed(self) -> Iterator[None]:
        stores.check_rights("--out", self.partial)
        yield

    def begun(self) -> dict[str, Any] | None:
        return self._record(self.partial)

    def begin(self, record: dict[str, Any]) -> None:
        self.discard()
        write(f"{self.partial}/{records.FILE}", json_bytes(record))

    def discard(self) -> None:
        for folder in (self.splits, self.partial):
            self._remove(folder)

    def finish(self, record: dict[str, Any]) -> None:
        write(f"{self.partial}/{records.FILE}", json_bytes(record))
        write(f"{self.splits}/{records.FILE}", json_bytes(record))
        self._remove(self.partial)

    def tidy(self) -> None:
        if "splits" in (self.begun() or {}):
            self._remove(self.partial)

    def _record(self, folder: str) -> dict[str, Any] | None:
        with suppress(FileNotFoundError):
            return records.parse_record(f"{folder}/{records.FILE}")
        return None

    def _refuse_others(self, folder: str) -> None:
        if below(folder):
            raise ConfigError(f"{folder} is not empty and was not written by prepare: choose another --out")

    def _remove(self, folder: str) -> None:
        """Remove what is ours: first what readers go by, last the record, by which a killed call's rest is known."""
        ours = [url for url in below(folder) if OURS.fullmatch(url[len(folder) + 1 :])]
        indexes = [url for url in ours if url.endswith("/index.json")]
        record = [url for url in ours if url == f"{folder}/{records.FILE}"]
        for urls in (indexes, sorted({*ours} - {*indexes, *record}), record):
            remove(urls)
