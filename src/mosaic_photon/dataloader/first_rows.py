"""The first samples of MDS shards of which nothing is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mosaic_photon.dataloader.dataset import ShardedDataset
from mosaic_photon.dataloader.shards.reader import token_column
from mosaic_photon.dataloader.tokens import ANY_VOCABULARY, BYTE_TYPES, are_ids
from mosaic_photon.errors import ConfigError

SAMPLES = 1000
"""Read, from the first on."""


def first_rows(dataset: ShardedDataset, place: str) -> tuple[list[NDArray[np.integer]], str | None]:
    """The tokens of the first samples; and their type, where they are stored as bytes."""
    for _, kind in dataset.kinds():
        if token_column(kind.columns, "int64", f"--mds {place!r}") is None:
            columns = ", ".join(column.name for column in kind.columns)
            raise ConfigError(
                f"--mds {place!r}: its samples have no tokens, but {columns}. `mosaic-photon prepare` makes tokens of"
                " text; text shards as they are need a data config written by hand (docs/data.md)."
            )
    values = [dataset.get_item(number)["tokens"] for number in range(min(SAMPLES, dataset.num_samples))]
    if not values:
        raise ConfigError(f"--mds {place!r}: its index lists no sample.")
    if not isinstance(values[0], bytes):
        odd = next((value for value in values if value.ndim != 1 or value.dtype.kind not in "iu"), None)
        if odd is not None:
            raise ConfigError(f"--mds {place!r}: its tokens are {odd.dtype.name} of shape {odd.shape}, no row of ids.")
        return values, None
    for name in BYTE_TYPES:
        dtype = np.dtype(name)
        if all(not value or are_ids(value, dtype, ANY_VOCABULARY) for value in values):
            return [np.frombuffer(value, dtype) for value in values], name
    raise ConfigError(f"--mds {place!r}: its tokens are stored as bytes that are no ids of {', '.join(BYTE_TYPES)}.")


def least_tokens(dataset: ShardedDataset, encoding: str | None, place: str) -> int | None:
    """Tokens of the shortest samples of a fixed length, by the index; None where it says none."""
    columns = [token_column(kind.columns, encoding or "int64", place) for _, kind in dataset.kinds()]
    return min((column.length for column in columns if column is not None and column.length), default=None)
