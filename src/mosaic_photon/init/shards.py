"""What MDS shards that somebody has are: found from their index and their first samples."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.first_rows import first_rows
from mosaic_photon.dataloader.inspection import open_dataset
from mosaic_photon.dataloader.shards.index import INDEX, DataError
from mosaic_photon.dataloader.tokens import ANY_VOCABULARY
from mosaic_photon.errors import ConfigError
from mosaic_photon.files import display, read_json, write_json
from mosaic_photon.places import file_path
from mosaic_photon.prepare.record import FILE as RECORD
from mosaic_photon.tokenizers import BYTE_LEVEL, CONFIG


@dataclass(frozen=True)
class Shards:
    """Data to train on, as a job and a data config need to know it."""

    place: dict[str, str]
    """`local` or `remote` of the data config."""
    train: str | None
    """The split; None where the shards lie right there."""
    val: str | None
    """The split to validate on, None where there is none."""
    samples: int
    tokens: int
    """Of the longest sample that was read."""
    largest: int
    """The largest token id that was read."""
    encoding: str | None = None
    """`token_encoding_type`, of tokens stored as bytes."""


def look_at(place: str) -> Shards:
    """Read the index and the first samples.

    Args:
        place: a folder or the address of one, that holds shards, or train/ and perhaps val/ with shards.

    Raises:
        ConfigError: there are no shards, they cannot be read, or hold no tokens to train on.
    """
    path = file_path(place)
    if path is not None:
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(path):
            raise ConfigError(f"--mds {place!r}: there is no such folder.")
    where = {"local": path} if path is not None else {"remote": place.rstrip("/")}
    split, dataset = _open(where, place)
    try:
        rows, encoding = first_rows(dataset, place)
        samples = dataset.num_samples
    finally:
        dataset.reader.close()
        dataset.cache.close()
    lengths = {len(row) for row in rows}
    if max(lengths) < 2:
        raise ConfigError(
            f"--mds {place!r}: its samples have {max(lengths)} token{'s' if max(lengths) != 1 else ''}; a job needs at"
            " least 2 in each, as it predicts every token from those before it."
        )
    largest = max(int(row.max()) for row in rows if len(row))
    least = min(int(row.min()) for row in rows if len(row))
    if least < 0 or largest >= ANY_VOCABULARY:
        raise ConfigError(f"--mds {place!r}: its samples hold {least if least < 0 else largest}, which is no token id.")
    val = "val" if split == "train" and _has(where, "val") else None
    return Shards(where, split, val, samples, max(lengths), largest, encoding)


def _open(where: dict[str, str], place: str) -> tuple[str | None, ShardedDataset]:
    """The shards in train/, else those right there."""
    reasons = []
    for split in ("train", None):
        try:
            return split, open_dataset(_loader(where, split))
        except DataError as error:
            reasons.append(str(error))
        if "local" in where and os.path.isfile(os.path.join(where["local"], split or "", INDEX)):
            break  # there it is, and it is damaged
    raise ConfigError(f"--mds {place!r}: no shards there: {reasons[-1]}")


def _has(where: dict[str, str], split: str) -> bool:
    try:
        dataset = open_dataset(_loader(where, split))
    except DataError:
        return False
    dataset.cache.close()
    return True


def _loader(where: dict[str, str], split: str | None) -> dict[str, Any]:
    return {"dataset": {**where, "split": split}}


def named_tokenizer(shards: Shards) -> str | None:
    """The folder of the tokenizer that the record of `mosaic-photon prepare` names; None where there is no record.

    Raises:
        ConfigError: the tokenizer is no longer there, or has been changed.
    """
    folder = Path(shards.place.get("local", ""))
    record = next((one / RECORD for one in (folder, folder.parent) if (one / RECORD).is_file()), None)
    if "local" not in shards.place or record is None:
        return None
    content = read_json(record, "name the tokenizer with --tokenizer")
    named = content.get("tokenizer_folder")
    for tokenizer in filter(None, (named, str(BYTE_LEVEL))):
        file = Path(tokenizer, "tokenizer.json")
        if file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == content.get("tokenizer"):
            return str(tokenizer)
    called = f", {named!r}," if named else ""
    raise ConfigError(
        f"{display(record)}: the tokenizer that these shards were made with{called} is not on this machine as it was:"
        " name it with --tokenizer DIR."
    )


def write_stand_in(folder: Path, largest: int) -> int:
    """Write a tokenizer of ids without text, for shards that name none; returns how many ids it has.

    They are a multiple of 1,024 above `largest`, as more may come than the first samples have; the last one pads.
    """
    from tokenizers import Tokenizer, models

    ids = (largest + 1) // 1024 * 1024 + 1024
    folder.mkdir()
    tokenizer = Tokenizer(models.WordLevel({f"<|{number}|>": number for number in range(ids)}, unk_token="<|0|>"))
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    write_json(folder / CONFIG, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": f"<|{ids - 1}|>"})
    return ids
