"""The data config file: what is read, and the message for each mistake."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from mosaic_photon.errors import ConfigError
from mosaic_photon.job import data_config as config_module
from mosaic_photon.job.data_config import load_data_config, streams_of

GOOD = """
[mosaic_dataloader]
name = "text"
drop_last = true
num_workers = 0
[mosaic_dataloader.dataset]
local = "data"
split = "train"
"""
FOUNDRY = """
variables:
  data_local: /data/c4
  max_seq_len: 128
  global_seed: 17
max_duration: 10ba
model: {name: mpt_causal_lm, d_model: 8}
train_loader:
  name: text
  dataset:
    local: ${variables.data_local}
    remote:
    split: train
    shuffle: true
    max_seq_len: ${variables.max_seq_len}
    shuffle_seed: ${variables.global_seed}
  drop_last: true
  num_workers: 8
eval_loader:
  - label: c4
    name: text
    dataset: {local: "${variables.data_local}", split: val, max_seq_len: 128}
    drop_last: false
    num_workers: 8
"""


def write(tmp_path: Path, text: str, name: str = "data.toml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_toml_table_is_taken_verbatim(tmp_path: Path) -> None:
    config = load_data_config(write(tmp_path, GOOD))
    dataset = {"local": "data", "split": "train"}
    assert config.train == {"name": "text", "drop_last": True, "num_workers": 0, "dataset": dataset}
    assert config.eval == {}


def test_a_whole_llm_foundry_yaml_works_with_its_variables(tmp_path: Path) -> None:
    config = load_data_config(write(tmp_path, FOUNDRY, "train.yaml"))
    assert config.train["dataset"]["local"] == "/data/c4" and config.train["dataset"]["shuffle_seed"] == 17
    assert (
        list(config.eval) == ["c4"]
        and config.eval["c4"]["dataset"]["split"] == "val"
        and "label" not in config.eval["c4"]
    )


def test_eval_sets_have_llm_foundrys_labels_or_a_table_each(tmp_path: Path) -> None:
    second = '  - {label: 7, name: text, dataset: {local: "${variables.data_local}", split: other}}\n'
    config = load_data_config(write(tmp_path, FOUNDRY + second, "two.yaml"))
    assert {label: loader["dataset"]["split"] for label, loader in config.eval.items()} == {"c4": "val", "7": "other"}
    assert [name for name, _ in config.loaders()] == ["train", "eval/c4", "eval/7"]
    one = GOOD.partition("[mosaic_dataloader.dataset]")[2]
    tables = "".join(
        f"[mosaic_eval_dataloaders.{label}]\nname = 'text'\n[mosaic_eval_dataloaders.{label}.dataset]\n{one}"
        for label in ("web", "'code/py'")
    )
    assert list(load_data_config(write(tmp_path, GOOD + tables)).eval) == ["web", "code/py"]
    assert (
        load_data_config(write(tmp_path, FOUNDRY.partition("eval_loader:")[0] + "eval_loader: []", "a.yaml")).eval == {}
    )
    with pytest.raises(ConfigError, match="web uses a local folder of another loader with another remote"):
        load_data_config(write(tmp_path, GOOD + tables.replace("web.dataset]", "web.dataset]\nremote = 's3://b/c'")
                               .replace("[mosaic_eval_dataloaders.web]", "[mosaic_eval_dataloaders.a]\nname = 'text'\n"
                                        "dataset = {local = 'there'}\n[mosaic_eval_dataloaders.web]")))  # fmt: skip


def test_streams_inherit_the_datasets_settings() -> None:
    streams = {"a": {"local": "x"}, "b": {"local": "y", "split": "own", "keep_zip": True}}
    assert streams_of({"streams": streams, "split": "train", "download_retry": 5}) == {
        "a": {"local": "x", "split": "train", "download_retry": 5},
        "b": {"local": "y", "split": "own", "download_retry": 5, "keep_zip": True},
    }
    assert streams_of({"local": "x", "remote": None}) == {"data": {"local": "x"}}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "[mosaic_dataloader",
            "[mosaic_dataloadr",
            "unknown table 'mosaic_dataloadr'. Did you mean 'mosaic_dataloader'?",
        ),
        ("split =", "splt =", "dataset: unknown key 'splt'. Did you mean 'split'?"),
        ("num_workers", "num_worker", "unknown key 'num_worker'. Did you mean 'num_workers'?"),
        ('"text"', '"txt"', "name: 'txt' is no loader. Did you mean 'text'?"),
        ('"text"', '"contrastive_pairs"', "Use text or finetuning"),
        ('"text"', '"finetuning"', "finetuning data needs remote or streams beside local"),
        ("num_workers = 0", 'num_workers = "0"', "num_workers: expected int, found '0'"),
        ("num_workers = 0", "num_workers = -1", "num_workers: must be at least 0, found -1"),
        ('split = "train"', "shuffle = 1", "shuffle: expected bool, found 1"),
        ('split = "train"', "shuffle_seed = true", "shuffle_seed: expected int, found True"),
        ('split = "train"', 'shuffle_algo = "py1"', "shuffle_algo: 'py1' is not one of its values."),
        ('split = "train"', "batch_size = 4", "comes from training.local_batch_size"),
        ('split = "train"', "packing_ratio = 3", "unknown key 'packing_ratio'"),
        ('split = "train"', "replication = 2", "comes from the job's parallel layout"),
        ('split = "train"', "mlm_probability = 0.15", "is for masked language models"),
        ('local = "data"', "", "needs either streams, or local and/or remote; found neither"),
        ('split = "train"', 'streams.a.local = "x"', "found both"),
        (
            'split = "train"',
            'epoch_size = "abc"',
            "epoch_size: expected a number above 0 or text like '10k', found 'abc'",
        ),
        ('split = "train"', 'epoch_size = "-5"', "epoch_size: expected a number above 0"),
        ('split = "train"', "epoch_size = 0", "epoch_size: expected a number above 0"),
        ('split = "train"', 'cache_limit = "1.2.3gb"', "cache_limit: expected a number above 0 or text like '100gb'"),
        ('split = "train"', "num_canonical_nodes = 2_000_000", "num_canonical_nodes: must be at most 1,048,576"),
        ('split = "train"', "shuffle_block_size = 1e30", "shuffle_block_size: must be at most"),
        ('split = "train"', "download_timeout = inf", "download_timeout: expected a finite number, found inf"),
        (
            'local = "data"',
            'streams.a = {local = "x", proportion = nan}',
            "streams.a.proportion: expected a finite number",
        ),
        ('local = "data"', 'streams.a = {local = "x", proportion = 0}', "streams: all proportion are 0"),
        ('local = "data"', 'streams.a = {local = "x", choose = 0}', "streams: all choose are 0"),
        ('local = "data"', 'streams.a.splt = "x"', "streams.a: unknown key 'splt'"),
        ('local = "data"', 'streams.a.split = "x"', "streams.a: needs local and/or remote"),
        ('local = "data"', 'streams.a = {local = "x", repeat = 1, choose = 2}', "set one of repeat, choose, not 2"),
        (
            'local = "data"',
            'streams.a = {local = "x", proportion = 0.5}\nstreams.b.local = "y"',
            "streams.b: other streams set proportion, so this one must too",
        ),
        (
            'local = "data"',
            'streams.a = {local = "x", remote = "s3://a"}\nstreams.b = {local = "x", remote = "s3://b"}',
            "share local 'x' but not remote",
        ),
        ("[mosaic_dataloader.dataset]", "dataset = 3\n[mosaic_eval_dataloader]", "dataset: expected table, found 3"),
        ('local = "data"', 'local = "data', "malformed TOML"),
    ],
)
def test_each_mistake_has_a_message_with_file_and_key(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ConfigError) as caught:
        load_data_config(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "number"),
    [
        ("epoch_size", "1.5K", 1500),
        ("epoch_size", "2 m", 2_000_000),
        ("epoch_size", "70", 70),
        ("epoch_size", 70, 70),
        ("cache_limit", "2b", 2),
        ("cache_limit", ".5 kb", 512),
        ("cache_limit", "1GB", 2**30),
    ],
)
def test_sizes_are_what_streaming_takes_for_one(key: str, value: int | str, number: int) -> None:
    from streaming.base.util import bytes_to_int, number_abbrev_to_int

    config_module.check_loader({"name": "text", "dataset": {"local": "x", key: value}}, "here")
    assert (number_abbrev_to_int if key == "epoch_size" else bytes_to_int)(value) == number


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for name, text, message in [
        ("no.toml", None, "cannot read the data config: No such file"),
        ("data.json", "{}", "ends in .toml, .yaml or .yml"),
        ("bad.yaml", "a: [1", "malformed YAML"),
        ("list.yaml", "- 1", "expected tables, found list"),
        ("empty.yaml", "max_duration: 1ba\ntrain_loader:", "expected a table, found None"),
        ("scalar.yaml", "size: 7\ntrain_loader: ${size}", "expected a table, found 7"),
        ("free.yaml", FOUNDRY.replace("${variables.data_local}", "${variables.nothing}"), "variables.nothing"),
    ]:
        if text is not None:
            write(tmp_path, text, name)
        with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
            load_data_config(tmp_path / name)


def test_training_and_validation_may_not_share_a_cache_of_different_remotes(tmp_path: Path) -> None:
    evaluation = GOOD.replace("mosaic_dataloader", "mosaic_eval_dataloader").replace(
        "split", 'remote = "s3://x"\nsplit'
    )
    with pytest.raises(ConfigError, match="give each its own local folder or split"):
        load_data_config(write(tmp_path, GOOD + evaluation))


def test_the_names_written_down_are_the_upstreams() -> None:
    """So that an upgrade that adds, renames or drops an argument is noticed."""
    from llmfoundry.data.finetuning import dataloader as finetuning
    from llmfoundry.data.finetuning.tasks import StreamingFinetuningDataset
    from llmfoundry.data.text_data import StreamingTextDataset, build_text_dataloader
    from streaming import Stream, StreamingDataset
    from streaming.base import batching, partition, shuffle

    def names(function: object) -> set[str]:
        kept = set(inspect.signature(function).parameters) - {"kwargs", "tokenizer"}  # type: ignore[arg-type]
        return kept - {"device_batch_size", "allowed_dataset_keys"}

    assert names(build_text_dataloader) | {"name"} == config_module.LOADER_KEYS
    assert names(finetuning.build_finetuning_dataloader) | {"name"} == config_module.LOADER_KEYS
    assert names(Stream) == config_module.STREAM_KEYS
    assert names(StreamingDataset) == config_module.STREAMING_KEYS
    assert names(StreamingTextDataset) <= config_module.TEXT_KEYS
    known = names(StreamingFinetuningDataset) | names(finetuning._validate_config) | finetuning._ALLOWED_DATASET_KEYS
    assert known <= config_module.FINETUNING_KEYS
    choices = config_module.CHOICES
    assert set(choices["batching_method"]) == set(batching.batching_methods)
    assert set(choices["shuffle_algo"]) == set(shuffle.algos)
    assert set(choices["partition_algo"]) == set(partition.algos)


def test_reading_a_config_imports_neither_torch_nor_streaming(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    code = f"""
import sys
from mosaic_photon.job.data_config import load_data_config
import mosaic_photon.dataloader.shards.index
load_data_config({str(path)!r})
print([name for name in ("torch", "streaming", "torchtitan", "llmfoundry", "numpy", "yaml") if name in sys.modules])
"""
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
