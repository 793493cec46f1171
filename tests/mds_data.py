"""Small MDS data whose samples can be told apart, and job configs that read them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streaming import MDSWriter, StreamingDataset
from streaming.base.batching import generate_work
from streaming.base.world import World

from jobs import DATA
from mosaic_photon.job.tables import MosaicJobConfig

ASSETS = Path(__file__).parent / "assets" / "tokenizer"
SEQ_LEN = 16


def sample_tokens(number: int, length: int = SEQ_LEN + 1) -> np.ndarray:
    """Tokens of sample `number`: its number in base 1000 in the first two, then a pattern; ids 3 to 1999."""
    tokens = (np.arange(length) * 31 + number * 7) % 1900 + 100
    tokens[:2] = 3 + number // 1000, 3 + number % 1000
    return tokens


def numbers(batch: tuple[dict[str, torch.Tensor], torch.Tensor]) -> list[int]:
    """Which samples a micro-batch holds."""
    first = batch[0]["input"][:, :2] - 3
    return (first[:, 0] * 1000 + first[:, 1]).tolist()


def streamings_work(dataset: Any, batch: int, world: World, epoch: int = 0, start: int = 0) -> np.ndarray:
    """The sample ids that Streaming deals out of a dataset of ours: [nodes, ranks, workers, batches, batch]."""
    theirs = object.__new__(StreamingDataset)
    balanced = dataset.shuffle and dataset.sampling_method == "balanced"
    more = {"batch_size": batch, "num_streams": len(dataset.streams), "epoch_seed_change": balanced}
    vars(theirs).update(vars(dataset), initial_physical_nodes=None, **more)
    return generate_work(dataset.batching_method, theirs, world, epoch, start)


def flat(lists: Iterable[Iterable[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


def wait_until(condition: Callable[[], Any], timeout: float = 60) -> None:
    """For what threads or processes bring about: closing a loader waits for its threads, but not without end."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "this did not come about"
        time.sleep(0.02)


def write_mds(
    out: Path,
    samples: int,
    *,
    start: int = 0,
    encoding: str = "ndarray:int32:17",
    shard_samples: int = 16,
    **writer: Any,
) -> Path:
    """`samples` token samples from number `start` on, `shard_samples` a shard; as long as an encoding's shape says."""
    dtype = np.dtype(encoding.split(":")[1]) if encoding.startswith("ndarray:") else np.dtype(np.int64)
    length = int(encoding.split(":")[2]) if encoding.count(":") == 2 else SEQ_LEN + 1
    tokens = [sample_tokens(start + i, length).astype(dtype) for i in range(samples)]
    encoded = [t.tobytes() if encoding == "bytes" else t for t in tokens]
    size_limit = 4 + 4 + (4 + tokens[0].nbytes) * shard_samples + 400
    writer = {"hashes": ["sha1", "xxh64"], "size_limit": size_limit, **writer}
    with MDSWriter(out=str(out), columns={"tokens": encoding}, **writer) as mds:
        for value in encoded:
            mds.write({"tokens": value})
    return out


SECOND = 5000
"""Number of the first sample of the second of two streams."""


def write_two_streams(folder: Path, length: int) -> Path:
    """Streams `a` and `b`, 96 and 48 samples of `length` tokens, b's with up to 19 pad tokens at the end; and val/."""
    for stream, first, samples in (("a", 0, 96), ("b", SECOND, 48), ("val", 500, 32)):
        with MDSWriter(out=str(folder / stream), columns={"tokens": f"ndarray:int32:{length}"}, size_limit=8000) as mds:
            for number in range(first, first + samples):
                tokens = sample_tokens(number, length).astype(np.int32)
                if stream == "b":
                    tokens[length - number % 20 :] = 2
                mds.write({"tokens": tokens})
    return folder


TWO_STREAMS = DATA.replace('local = "{data}"\nsplit = "train"\n', "", 1).replace(
    "[mosaic_eval_dataloader]",
    """[mosaic_dataloader.dataset.streams."web, 2026"]
local = "{data}/a"
[mosaic_dataloader.dataset.streams.books]
local = "{data}/b"
[mosaic_eval_dataloader]""",
)
"""The data config of them. The first has no metric's name."""


def text_loader(dataset: dict[str, Any], **loader: Any) -> dict[str, Any]:
    return {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset, **loader}


def job(
    dataset: dict[str, Any] | None = None,
    *,
    loader: dict[str, Any] | None = None,
    eval_loader: dict[str, Any] | None = None,
    local: int = 2,
    batch: int = 8,
    seq_len: int = SEQ_LEN,
    **mosaic: Any,
) -> MosaicJobConfig:
    """A job config with this data, `local` samples a micro-batch and `batch` an optimizer step."""
    config = MosaicJobConfig()
    config.mosaic.dataloader = loader or text_loader(dataset or {})
    config.mosaic.eval_dataloaders = {"": eval_loader} if eval_loader else {}
    for name, value in mosaic.items():
        setattr(config.mosaic, name, value)
    config.model.hf_assets_path = str(ASSETS)
    config.training.local_batch_size, config.training.global_batch_size = local, batch
    config.training.seq_len = config.validation.seq_len = seq_len
    config.validation.local_batch_size = local
    return config
