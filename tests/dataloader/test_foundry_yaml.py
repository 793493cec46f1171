"""llm-foundry's own training YAMLs as data configs: each shape that its repository has, and YAML as its reader has it.

The files are not in llm-foundry's wheel; the tables below have the keys and shapes of its `scripts/train/yamls`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.data_config import load_data_config

TEXT = """
variables:
  data_local: {data}
  data_remote:  # nothing: the shards are in data_local
  tokenizer_name: some/tokenizer
  max_seq_len: 64
  global_seed: 23
  run_name:
max_seq_len: ${{variables.max_seq_len}}
run_name: ${{variables.run_name}}
model: {{name: mpt_causal_lm, init_device: meta, d_model: 64, max_seq_len: "${{max_seq_len}}"}}
tokenizer:
  name: ${{variables.tokenizer_name}}
  kwargs:
    model_max_length: ${{max_seq_len}}
train_loader:
  name: text
  dataset:
    local: ${{variables.data_local}}
    remote: ${{variables.data_remote}}
    split: train
    shuffle: true
    max_seq_len: ${{variables.max_seq_len}}
    shuffle_seed: ${{variables.global_seed}}
  drop_last: true
  num_workers: 3
eval_loader:
  name: text
  dataset:
    local: ${{variables.data_local}}
    remote: ${{variables.data_remote}}
    split: val
    shuffle: false
    max_seq_len: ${{variables.max_seq_len}}
    shuffle_seed: ${{variables.global_seed}}
  drop_last: false
  num_workers: 3
scheduler: {{name: cosine_with_warmup, t_warmup: 7ba, alpha_f: 0.2}}
optimizer: {{name: decoupled_adamw, lr: 3.0e-4, betas: [0.8, 0.9], eps: 1.0e-08}}
max_duration: 40ba  # a comment
device_train_microbatch_size: auto
fsdp_config: {{sharding_strategy: FULL_SHARD}}
callbacks:
  lr_monitor: {{}}
"""
FINETUNING = """
max_seq_len: 64
train_loader:
  name: finetuning
  dataset:
{source}
    max_seq_len: ${{max_seq_len}}
    allow_pad_trimming: false
    shuffle: true
{more}
  drop_last: true
  num_workers: 0
  pin_memory: false
  prefetch_factor: 2
  persistent_workers: true
  timeout: 0
"""
STREAMS = """    streams:
      {name}:
        remote: {data}
        local: {cache}
        split: train"""
ALIASES = """
dataset: &source
  {kind}
train_loader: &train
  name: finetuning
  dataset:
    <<: *source
    split: train
    decoder_only_format: true
  drop_last: true
eval_loader:
  <<: *train
  dataset:
    <<: *source
    split: validation
"""


def load(tmp_path: Path, text: str) -> dict[str, Any]:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    return load_data_config(path).train


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, text)
    assert str(tmp_path / "job.yaml") in str(raised.value)
    return str(raised.value)


def test_pretraining_files_are_taken_as_they_are(tmp_path: Path) -> None:
    for text in (TEXT, TEXT.replace("variables:", "defaults:").replace("variables.", "defaults.")):
        train = load(tmp_path, text.format(data="/data/c4"))
        rest = {"remote": None, "split": "train", "shuffle": True, "max_seq_len": 64, "shuffle_seed": 23}
        assert train["dataset"] == {"local": "/data/c4", **rest}
    flat = "data_local: /data/c4\nmax_seq_len: 64\n" + TEXT[TEXT.index("train_loader:") : TEXT.index("eval_loader:")]
    flat = flat.replace("variables.data_remote", "oc.env:NO_SUCH_VARIABLE,null").replace(
        "variables.global_seed", "seed"
    )
    flat = flat.replace("variables.", "").format() + "seed: 9\n"
    train = load(tmp_path, flat)
    assert train["dataset"]["remote"] is None and train["dataset"]["shuffle_seed"] == 9


def test_finetuning_files_are_taken_or_say_what_differs(tmp_path: Path) -> None:
    decoder = "    decoder_only_format: true"
    for name in ("my_data", "0"):  # llm-foundry's file calls its stream 0
        source = STREAMS.format(name=name, data="/data", cache="/cache")
        train = load(tmp_path, FINETUNING.format(source=source, more=decoder))
        assert list(train["dataset"]["streams"]) == [name]
    hub = "    hf_name: some/dataset\n    split: train"
    said = refusal(tmp_path, FINETUNING.format(source=hub, more=decoder))
    assert "hf_name" in said and "turn the data into MDS shards" in said
    streams = STREAMS.format(name="a", data="/data", cache="/cache")
    said = refusal(tmp_path, FINETUNING.format(source=streams, more=decoder + "\n    packing_ratio: auto"))
    assert "packing_ratio" in said and "attention mask" in said
    said = refusal(tmp_path, FINETUNING.format(source=streams, more="    decoder_only_format: false"))
    assert "decoder_only_format" in said and "encoder-decoder" in said
    assert load(tmp_path, FINETUNING.format(source=streams, more=decoder + "\n    packing_ratio: null"))


@pytest.mark.parametrize("kind", ["text", "finetuning"])
def test_they_train(kind: str, tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """With nothing changed but paths and the length of a sequence."""
    from streaming import MDSWriter

    import jobs

    (_, job, *_) = jobs.write_job(tmp_path, prepared_data)
    if kind == "text":
        text = TEXT.format(data=prepared_data)
    else:
        remote = tmp_path / "remote"
        with MDSWriter(out=str(remote / "train"), columns={"prompt": "str", "response": "str"}) as writer:
            for number in range(16):
                writer.write({"prompt": f"{number} and {number}", "response": f"is {2 * number}"})
        source = STREAMS.format(name="0", data=remote, cache=tmp_path / "cache")
        text = FINETUNING.format(source=source, more="    decoder_only_format: true")
    (tmp_path / "job.yaml").write_text(text)
    code = jobs.run_here(["--config", job, "--mosaic-config", str(tmp_path / "job.yaml")], "--training.steps=2")
    assert code == 0, "".join(capfd.readouterr())


def test_merged_and_aliased_tables(tmp_path: Path) -> None:
    train = load(tmp_path, ALIASES.format(kind="remote: /data\n  local: /cache"))
    assert train["dataset"] == {"remote": "/data", "local": "/cache", "split": "train", "decoder_only_format": True}
    said = refusal(tmp_path, ALIASES.format(kind="hf_name: json\n  hf_kwargs: {data_dir: /data}"))
    assert "hf_name" in said or "hf_kwargs" in said


def test_a_misspelt_loader_is_known_in_both_spellings(tmp_path: Path) -> None:
    assert "Did you mean 'train_loader'?" in refusal(tmp_path, "train_loder: {name: text}")


def test_masked_language_models_are_refused(tmp_path: Path) -> None:
    text = TEXT.format(data="/data").replace("    split: train", "    split: train\n    mlm_probability: 0.15")
    assert "is for masked language models" in refusal(tmp_path, text)


def test_an_mcli_file_says_where_its_job_is(tmp_path: Path) -> None:
    body = TEXT.format(data="/data").strip().replace("\n", "\n  ")
    text = f"name: run\nimage: some/image\ncommand: |\n  cd scripts\ncompute: {{gpus: 8}}\nparameters:\n  {body}\n"
    assert "the table 'parameters'" in refusal(tmp_path, text)
    assert load(tmp_path, body.replace("\n  ", "\n"))["name"] == "text"


@pytest.mark.parametrize(
    ("written", "read"),
    [("1e5", 100_000), ("1_000", 1000), ("1.0e+3", 1000), ("2E3", 2000), ("0x10", 16), ("1e-3", None)],
)
def test_whole_numbers_in_any_spelling(tmp_path: Path, written: str, read: int | None) -> None:
    text = f"train_loader: {{name: text, dataset: {{local: /data, predownload: {written}, epoch_size: {written}}}}}"
    if read is None:
        assert "predownload: expected int, found 0.001" in refusal(tmp_path, text)
    else:
        dataset = load(tmp_path, text)["dataset"]
        assert dataset["predownload"] == dataset["epoch_size"] == read and type(dataset["predownload"]) is int


def test_numbers_with_an_exponent_and_no_point(tmp_path: Path) -> None:
    streams = "{a: {local: /a, proportion: 1e-3}, 1: {local: /b, proportion: 1.0}}"
    streams = load(tmp_path, f"train_loader: {{name: text, dataset: {{streams: {streams}}}}}")["dataset"]["streams"]
    assert streams == {"a": {"local": "/a", "proportion": 0.001}, "1": {"local": "/b", "proportion": 1.0}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{streams: {web: {local: /a}, web: {local: /b}}}", "the key 'web' is given twice, in lines 1 and 1"),
        ("{streams: {0: {local: /a}, 0: {local: /b}}}", "the key '0' is given twice"),
        ("{streams: {1: {local: /a}, '1': {local: /b}}}", "the key '1' is given twice"),
        ("{local: /a, local: /b}", "the key 'local' is given twice"),
        ("{local: '${variables.data}'}", "train_loader.dataset.local: Interpolation key 'variables.data' not found"),
        ("{local: '${oc.env:NO_SUCH_VARIABLE}'}", "Environment variable 'NO_SUCH_VARIABLE' not found"),
        ("{local: '${data'}", "train_loader.dataset.local: "),
        ("{local: '${path:data}'}", "Unsupported interpolation type path"),
        ("{local: '???'}", "train_loader.dataset.local: Missing mandatory value"),
        ("{local: '${.local}'}", "Recursive interpolation"),
        ("{local: [}", "malformed YAML"),
        ("{local: ~/data}", "train_loader.dataset.local = '~/data': '~' and '$' are a shell's"),
        ("{local: /data/$NAME}", "train_loader.dataset.local = '/data/$NAME'"),
        ("{local: 's3://bucket/c4'}", "must be a folder of a file system"),
        ("{streams: {a: {remote: $BUCKET/a, local: /a}}}", "train_loader.dataset.streams.a.remote = '$BUCKET/a'"),
        ("{local: *data}", "undefined alias"),
        ("{local: !!python/object:os.system x}", "malformed YAML"),
        ("{local: /a, predownload: !!int x}", "malformed YAML"),
        ("{local: /a, predownload: 0x_}", "malformed YAML"),
        ("{local: !!timestamp 2026-13-45}", "malformed YAML"),
        ("{[local, remote]: /a}", "malformed YAML"),
        ("{local: !!set {a}}", "train_loader.dataset.local: "),
    ],
)
def test_mistakes_of_yaml_have_a_message(tmp_path: Path, text: str, said: str) -> None:
    assert said in refusal(tmp_path, f"train_loader: {{name: text, dataset: {text}}}")


@pytest.mark.parametrize("text", ["- a\n- b", "only text", "a: 1\n---\nb: 2", "1: 2", "parameters: 5", "[" * 2000])
def test_yaml_that_is_no_job(tmp_path: Path, text: str) -> None:
    refusal(tmp_path, text)
