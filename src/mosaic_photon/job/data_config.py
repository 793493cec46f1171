"""The data config file: read it, find each mistake in it. Pure functions on dicts, without torch or Streaming."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mosaic_photon.errors import ConfigError, nearest
from mosaic_photon.files import check_path
from mosaic_photon.job import eval_sets
from mosaic_photon.job.algorithms import instead_of
from mosaic_photon.job.data_file import interpolated, read_tables
from mosaic_photon.job.source import Source, opened
from mosaic_photon.job.stages import STAGES, check_stages
from mosaic_photon.places import check_apart, place_of


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The names below are llm-foundry 0.22.0's and Streaming 0.13.0's, written down because asking their signatures costs
# seconds of imports; a test compares them with the signatures.
LOADER_KEYS = _names("name dataset drop_last num_workers pin_memory prefetch_factor persistent_workers timeout")
STREAM_KEYS = _names(
    "remote local split proportion repeat choose download_retry download_timeout validate_hash keep_zip"
)
STREAMING_KEYS = _names(
    "streams remote local split download_retry download_timeout validate_hash keep_zip epoch_size predownload "
    "cache_limit sampling_method sampling_granularity partition_algo num_canonical_nodes batch_size shuffle "
    "shuffle_algo shuffle_seed shuffle_block_size batching_method allow_unsafe_types replication stream_name "
    "stream_config"
)
COMMON_KEYS = _names(
    "max_seq_len token_encoding_type eos_token_id bos_token_id override_eos_token_id_mismatch_error "
    "override_bos_token_id_mismatch_error seq_parallel_replication"
)
TEXT_KEYS = STREAMING_KEYS | COMMON_KEYS | {"mlm_probability"}
FINETUNING_KEYS = (STREAMING_KEYS | COMMON_KEYS) | _names(
    "packing_ratio allow_pad_trimming auto_packing_replication max_leftover_bins_to_keep pad_to_longest "
    "decoder_only_format hf_name hf_kwargs preprocessing_fn safe_load target_prompts target_responses "
    "hf_collator_kwargs"
)
CHOICES = {
    "batching_method": ("random", "stratified", "per_stream", "device_per_stream"),
    "sampling_method": ("balanced", "fixed"),
    "partition_algo": ("orig", "relaxed"),
    "shuffle_algo": ("naive", "py1br", "py1e", "py1s", "py2s"),
    "token_encoding_type": ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
}
_BOOL, _INT, _NUMBER, _TEXT, _SIZE = (bool,), (int,), (int, float), (str,), (int, str)
TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(["shuffle", "keep_zip", "allow_unsafe_types", "drop_last", "pin_memory"], _BOOL),
    **dict.fromkeys(["persistent_workers", "decoder_only_format"], _BOOL),
    **dict.fromkeys(["max_seq_len", "num_workers", "prefetch_factor", "predownload"], _INT),
    **dict.fromkeys(["download_retry", "num_canonical_nodes", "shuffle_seed", "sampling_granularity"], _INT),
    **dict.fromkeys(["eos_token_id", "bos_token_id", "choose", "shuffle_block_size"], _INT),
    **dict.fromkeys(["download_timeout", "proportion", "repeat", "timeout"], _NUMBER),
    **dict.fromkeys(["remote", "local", "split", "validate_hash", "name", *CHOICES], _TEXT),
    **dict.fromkeys(["epoch_size", "cache_limit"], _SIZE),
    **dict.fromkeys(["dataset", "streams"], (dict,)),
}
AT_LEAST = {"num_workers": 0, "download_retry": 0, "shuffle_seed": 0, "proportion": 0, "repeat": 0, "choose": 0} | {
    key: 1 for key in _names("max_seq_len num_canonical_nodes sampling_granularity shuffle_block_size predownload")
}
AT_MOST = {"num_canonical_nodes": 1 << 20, "shuffle_block_size": 1 << 40}
"""Beyond these Streaming's arithmetic takes all memory or overflows."""
SIZES = {  # in text: the pattern, an example
    "epoch_size": (r"\d+|\d*\.?\d+ *[kmbt]", "10k"),
    "cache_limit": (r"\d+b?|\d*\.?\d+ *[kmgtpezy]b", "100gb"),
}
TRAIN = "mosaic_dataloader"
LOADERS = (TRAIN, "train_loader", *eval_sets.KEYS)


@dataclass(frozen=True)
class DataConfig:
    """The loader configs of one file, verbatim."""

    train: dict[str, Any]
    eval: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By label, "" for a set without one; empty where the file has none."""
    path: str = ""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """As they stand there, checked; empty: the run has none."""

    def loaders(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """All of them, called "train", and "eval" or "eval/LABEL" as llm-foundry calls its evaluators."""
        yield "train", self.train
        for label, loader in self.eval.items():
            yield eval_sets.evaluator(label), loader


def load_data_config(source: Source) -> DataConfig:
    """Read a TOML or YAML data config, or take its tables as they are, and check it.

    Raises:
        ConfigError: the first mistake, with file, key and what would be right.
    """
    name, tables = opened(source, "data config")
    path = Path(name)
    raw = tables if tables is not None else read_tables(path)
    parameters = raw.get("parameters")
    train_key = eval_sets.key_of(raw, (TRAIN, "train_loader"), path) or TRAIN
    if train_key not in raw and isinstance(parameters, dict) and "train_loader" in parameters:
        raise ConfigError(
            f"{path}: this file is mcli's, whose job is the table 'parameters': give a file with the contents of that "
            "table alone."
        )
    whole_foundry_yaml = path.suffix.lower() != ".toml" and "train_loader" in raw
    for key in (str(key) for key in raw if not whole_foundry_yaml or str(key).startswith("mosaic_")):
        if key == "algorithms":
            raise ConfigError(f"{path}: {instead_of(raw[key])}")
        if key not in (*LOADERS, STAGES):
            raise ConfigError(f"{path}: unknown table {key!r}.{nearest(key, (*LOADERS, STAGES))}")
    if raw.get("algorithms") and os.environ.get("RANK", "0") == "0":
        logging.getLogger().warning(f"{path}: {instead_of(raw['algorithms'])}")
    if train_key not in raw:
        raise ConfigError(f"{path}: no data to train on; add a table [{TRAIN}], or llm-foundry's train_loader")
    eval_key = eval_sets.key_of(raw, eval_sets.KEYS, path) or eval_sets.ONE
    raw = interpolated(raw, [train_key, eval_key, STAGES], path)
    sets = eval_sets.sets_of(raw.get(eval_key) or {}, eval_key, path)
    evaluation = {label: _as_declared(loader) for label, loader in sets.items()}
    config = DataConfig(_as_declared(raw[train_key]), evaluation, str(path), raw.get(STAGES) or [])
    keys = [train_key, *(eval_sets.place(eval_key, label) for label in evaluation)]
    named = dict(zip(keys, (loader for _, loader in config.loaders()), strict=True))
    for key, loader in named.items():
        check_loader(loader, f"{path}: {key}")
    if raw.get(STAGES) is not None:
        dataset = config.train["dataset"]
        check_stages(raw[STAGES], dataset, streams_of(dataset), f"{path}: {STAGES}")
    _check_caches(named, str(path))
    return config


def check_loader(loader: Any, where: str) -> None:
    """Raise ConfigError for the first mistake in one loader config. `where` opens the message."""
    _check_table(loader, LOADER_KEYS, where)
    name = loader.get("name")
    if name == "contrastive_pairs":
        raise ConfigError(f"{where}.name: 'contrastive_pairs' does not train a language model. Use text or finetuning.")
    if name not in ("text", "finetuning"):
        raise ConfigError(f"{where}.name: {name!r} is no loader.{nearest(name, ['text', 'finetuning'])}")
    if not loader.get("dataset"):
        raise ConfigError(f"{where}.dataset: missing; it says where the shards are (streams, or local and remote)")
    dataset, where = loader["dataset"], f"{where}.dataset"
    _check_table(dataset, TEXT_KEYS if name == "text" else FINETUNING_KEYS, where)
    _check_refused(dataset, where)
    _check_streams(dataset, where)
    if name == "finetuning" and not (dataset.get("remote") or dataset.get("streams")):
        raise ConfigError(f"{where}: finetuning data needs remote or streams beside local; a local folder will do")


def streams_of(dataset: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The dataset's streams by name, each with the dataset's split, retries, time-out, hash and keep_zip filled in.

    A dataset without a `streams` table is one stream, called "data".
    """
    defaults = {key: dataset[key] for key in ("split", *_DOWNLOAD_KEYS) if dataset.get(key) is not None}
    streams = dataset.get("streams") or {"data": {key: dataset.get(key) for key in ("remote", "local")}}
    return {
        name: defaults | {key: value for key, value in stream.items() if value is not None}
        for name, stream in streams.items()
    }


_DOWNLOAD_KEYS = ("download_retry", "download_timeout", "validate_hash", "keep_zip")


def _as_declared(table: Any) -> Any:
    """A table with whole numbers where they are asked for, though written 1e5, and names of streams as text."""
    if not isinstance(table, dict):
        return table
    declared: dict[Any, Any] = {}
    for key, value in table.items():
        whole = isinstance(value, float) and value.is_integer() and TYPES.get(key) in (_INT, _SIZE)
        declared[key] = int(value) if whole else _as_declared(value)
    if isinstance(declared.get("streams"), dict):
        declared["streams"] = {str(name): stream for name, stream in declared["streams"].items()}
    return declared


def _check_table(table: Any, known: Iterable[str], where: str) -> None:
    if not isinstance(table, dict):
        raise ConfigError(f"{where}: expected a table, found {table!r}")
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}.{nearest(key, known)}")
        if value is not None:
            _check_value(value, key, where)


def _check_value(value: Any, key: str, where: str) -> None:
    types = TYPES.get(key)
    is_bool = isinstance(value, bool)
    if types and (not isinstance(value, types) or (is_bool and types is not _BOOL)):
        names = " or ".join({"dict": "table", "str": "text"}.get(kind.__name__, kind.__name__) for kind in types)
        raise ConfigError(f"{where}.{key}: expected {names}, found {value!r}")
    if key in SIZES:
        pattern, example = SIZES[key]
        if not (re.fullmatch(pattern, str(value).strip().lower()) and re.search("[1-9]", str(value))):
            raise ConfigError(f"{where}.{key}: expected a number above 0 or text like {example!r}, found {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where}.{key}: expected a finite number, found {value!r}")
    if key in AT_LEAST and value < AT_LEAST[key]:
        raise ConfigError(f"{where}.{key}: must be at least {AT_LEAST[key]}, found {value!r}")
    if key in AT_MOST and value > AT_MOST[key]:
        raise ConfigError(f"{where}.{key}: must be at most {AT_MOST[key]:,}, found {value!r}")
    if key in CHOICES and value not in CHOICES[key]:
        raise ConfigError(f"{where}.{key}: {value!r} is not one of its values.{nearest(value, CHOICES[key])}")


def _check_refused(dataset: Mapping[str, Any], where: str) -> None:
    """Keys that llm-foundry knows and that can't have their meaning here, each with what to do instead."""
    reasons = {
        "batch_size": "comes from training.local_batch_size in the job config",
        "replication": "comes from the job's parallel layout",
        "seq_parallel_replication": "comes from the job's parallel layout",
        "auto_packing_replication": "comes from the job's parallel layout",
        "packing_ratio": "packs sequences that only an attention mask can keep apart; TorchTitan's batches have none",
        "mlm_probability": "is for masked language models",
        "hf_name": "is not a stream; turn the data into MDS shards and name them in streams",
        "stream_config": "is for Stream classes of your own, which are not supported",
    }
    for key, reason in reasons.items():
        if dataset.get(key) not in (None, 1, {}):
            raise ConfigError(f"{where}.{key}: {dataset[key]!r} is refused: it {reason}")
    if dataset.get("decoder_only_format") is False:
        raise ConfigError(f"{where}.decoder_only_format: False is refused: it is for encoder-decoder models")
    if dataset.get("stream_name") not in (None, "stream"):
        raise ConfigError(f"{where}.stream_name: only 'stream' is supported, found {dataset['stream_name']!r}")
    if dataset.get("eos_token_id") is not None and dataset.get("bos_token_id") is not None:
        raise ConfigError(f"{where}: set eos_token_id or bos_token_id, not both")


def _check_streams(dataset: Mapping[str, Any], where: str) -> None:
    streams = dataset.get("streams")
    own = [key for key in ("remote", "local") if dataset.get(key)]
    if bool(streams) == bool(own):
        raise ConfigError(
            f"{where}: needs either streams, or local and/or remote; found {'both' if own else 'neither'}"
        )
    weights: dict[str, str | None] = {}
    for name, stream in (streams or {}).items():
        at = f"{where}.streams.{name}"
        _check_table(stream, STREAM_KEYS, at)
        if not (stream.get("remote") or stream.get("local")):
            raise ConfigError(f"{at}: needs local and/or remote")
        given = [key for key in ("proportion", "repeat", "choose") if stream.get(key) is not None]
        if len(given) > 1:
            raise ConfigError(f"{at}: set one of {', '.join(given)}, not {len(given)}")
        weights[name] = given[0] if given else None
    if "proportion" in weights.values() and set(weights.values()) != {"proportion"}:
        other = next(name for name, kind in weights.items() if kind != "proportion")
        raise ConfigError(f"{where}.streams.{other}: other streams set proportion, so this one must too")
    if streams and not any(streams[name][kind] if kind else True for name, kind in weights.items()):
        raise ConfigError(f"{where}.streams: all {next(iter(weights.values()))} are 0; at least one must be above 0")
    absolute = {"repeat", "choose"} & set(weights.values())
    if absolute and dataset.get("epoch_size"):
        raise ConfigError(f"{where}.epoch_size: does not go with {', '.join(sorted(absolute))}; use proportion")
    for at, stream in [(where, dataset), *((f"{where}.streams.{name}", one) for name, one in (streams or {}).items())]:
        for key in ("local", "remote"):
            check_path(f"{at}.{key}", stream.get(key) or "", address=key == "remote")
    _check_distinct([(name, stream) for name, stream in streams_of(dataset).items()], where)


def _check_distinct(streams: list[tuple[str, dict[str, Any]]], where: str) -> None:
    seen: dict[tuple[str, str], tuple[str, str | None]] = {}
    for name, stream in streams:
        if not stream.get("local"):
            continue
        folder = (str(Path(stream["local"]).absolute()), stream.get("split") or "")
        other, remote = seen.setdefault(folder, (name, stream.get("remote")))
        if remote != stream.get("remote"):
            raise ConfigError(f"{where}.streams: {other!r} and {name!r} share local {stream['local']!r} but not remote")


def _check_caches(loaders: Mapping[str, dict[str, Any]], path: str) -> None:
    """One folder is the cache of one remote over all loaders, and no cache lies where data do."""
    so_far: list[tuple[str, dict[str, Any]]] = []
    places = []
    for key, loader in loaders.items():
        streams = list(streams_of(loader["dataset"]).items())
        try:
            _check_distinct(so_far + streams, "")
        except ConfigError as error:
            other = "the training data" if len(loaders) == 2 else "another loader"
            raise ConfigError(
                f"{path}: {key} uses a local folder of {other} with another remote:"
                " give each its own local folder or split"
            ) from error
        so_far += streams
        places += [place_of(name, *map(stream.get, ("local", "remote", "split"))) for name, stream in streams]
    check_apart(places, f"{path}: ")
