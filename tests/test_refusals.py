"""What a job refuses, the doctor refuses too, in the same words; neither writes anything or shows a traceback.

Add a case to CHANGES, where a line of a config is wrong, or to REFUSALS: what both must say, and in what its job
config, data config or files differ from those of a job that runs. In both texts {data} is a folder of shards that a job
can train on, {tokenizer} the tests' tokenizer, {out} the job's folder and {folder} the case's own, which `make` fills.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from streaming import MDSWriter

import jobs
import tokenizers_made
from doctor_calls import failures, say_all
from mosaic_photon.dataloader.dataset import ShardedDataset

Make = Callable[[Path], object]
MOE = jobs.JOB.replace("llama3_mosaic", "qwen3_mosaic").replace('"debugmodel"', '"debugmodel_moe"')
LOCAL, SPLIT = 'local = "{data}"\n', 'split = "train"\n'
STREAMS = '[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\nshuffle = true\n'
CHAT = """[mosaic_dataloader]
name = "finetuning"
[mosaic_dataloader.dataset]
max_seq_len = 65
decoder_only_format = true
[mosaic_dataloader.dataset.streams.chat]
local = "{folder}/shards"
"""
TOKENS = STREAMS + 'local = "{folder}/shards"\n'


@dataclass(frozen=True)
class Refusal:
    """What must be said, and what brings it about."""

    says: str
    job: str = jobs.JOB
    data: str = jobs.DATA
    make: Make = lambda folder: None
    flags: tuple[str, ...] = ()


def write(folder: Path, columns: dict[str, str], rows: list[dict[str, object]], name: str = "shards") -> None:
    with MDSWriter(out=str(folder / name), columns=columns) as writer:
        for row in rows:
            writer.write(row)


def tokens_as_bytes(folder: Path, dtype: str, length: int) -> None:
    rows = [((np.arange(length) * 7 + number) % 1900 + 10).astype(dtype).tobytes() for number in range(32)]
    write(folder, {"tokens": "bytes"}, [{"tokens": row} for row in rows])


def two_streams(folder: Path, big: int, small: int) -> None:
    for name, count in (("big", big), ("small", small)):
        rows = [{"tokens": np.full(65, 3 + number, np.int32)} for number in range(count)]
        write(folder, {"tokens": "ndarray:int32:65"}, rows, name)


def chats(folder: Path, bad: dict[str, str], at: int = 0) -> None:
    rows = [bad if number == at else {"prompt": "what?", "response": " this"} for number in range(40)]
    write(folder, {"prompt": "str", "response": "str"}, rows)


def tokenized_chats(folder: Path) -> None:
    rows = [np.full(30, 5000 if number == 5 else 7) for number in range(40)]
    columns = {"input_ids": "ndarray", "labels": "ndarray"}
    write(folder, columns, [{"input_ids": row, "labels": row} for row in rows])


def texts(folder: Path) -> None:
    write(folder, {"text": "str"}, [{"text": f"document {number}"} for number in range(40)])


def tables(folder: Path) -> None:
    write(folder, {"tokens": "ndarray:int32:5,13"}, [{"tokens": np.ones((5, 13), np.int32)}] * 40)


def floats(folder: Path) -> None:
    write(folder, {"tokens": "ndarray"}, [{"tokens": np.ones(65, np.float32)}] * 40)


def without_pad(folder: Path) -> None:
    texts(folder)
    tokenizers_made.byte_level(folder / "tokenizer", bos_token="<s>", eos_token="</s>")


def without_end(folder: Path) -> None:
    tokenizers_made.byte_level(folder / "tokenizer", ["<s>"], bos_token="<s>")


def nothing(folder: Path) -> None:
    write(folder, {"tokens": "ndarray:int32:65"}, [])


def eval_sets(*tables: str) -> str:
    """Training data, and after each of these headers, with what belongs there, a set to validate on."""
    train = jobs.DATA.partition("[mosaic_eval_dataloader]")[0]
    dataset = 'dataset = {{local = "{data}", split = "val"}}'
    return train + "".join(f'{table}\nname = "text"\n{dataset if "dataset" not in table else ""}\n' for table in tables)


def second_set(dataset: str) -> str:
    """Two sets to validate on, of which the second, `web`, has this dataset."""
    web = f"[mosaic_eval_dataloaders.web]\ndataset = {{{{{dataset}}}}}"
    return eval_sets("[mosaic_eval_dataloaders.code]", web)


def with_(more: str) -> str:
    return jobs.DATA.replace('split = "train"\n', f'split = "train"\n{more}\n')


def streams(batching: str, more: str = "") -> str:
    names = "".join(
        f'[mosaic_dataloader.dataset.streams.{name}]\nlocal = "{{folder}}/{name}"\n' for name in ("big", "small")
    )
    return f'{STREAMS}batching_method = "{batching}"\n{more}\n{names}'


CHANGES: dict[str, tuple[str, str, str, str]] = {
    # name: (file, what is there, what is put in its place, what must be said)
    "an odd sequence": ("job", "seq_len = 64", "seq_len = 63", "must be a multiple of 2"),
    "samples that are too short": ("job", "seq_len = 64", "seq_len = 128", "set training.seq_len = 64"),
    "heads of an odd size": ("job", "dim = 64", "dim = 68", "dim / n_heads = 17 must be even"),
    "heads that do not divide": ("job", "dim = 64", "dim = 66", "must be a multiple of its n_heads"),
    "no such override": ("job", "dim = 64", "dims = 64", "have no such field. Did you mean 'dim'?"),
    "a deep override": ("moe", "dim = 64", "moe_args = {{ topk = 2 }}", "the fields of moe_args have no such field"),
    "experts": ("moe", "dim = 64", "moe_args = {{ top_k = 99 }}\nn_kv_heads = 4", "there are 64 experts"),
    "an attention kernel": ("job", '"debugmodel"', '"debugmodel_varlen_attn"', "which needs an accelerator"),
    "an unknown kernel": ("job", "dim = 64", "attn_type = 'x'\ndim = 64", "Unknown attention type: x"),
    "a model for other machines": ("job", "dim = 64", "dim = 1048576", "its weights and gradients take"),
    "images": ("job", "llama3_mosaic", "flux_mosaic", "is no language model"),
    "a batch for no machine": (
        "job",
        "global_batch_size = 4",
        "global_batch_size = 5",
        "be a multiple of local_batch_size",
    ),
    "clipping to nothing": ("job", "seq_len = 64", "seq_len = 64\nmax_norm = 0", "max_norm = 0: must be above 0"),
    "a skip that ends first": ("job", "[debug]", '[mosaic]\nskip_batches = ["3-2"]\n[debug]', "ends before it begins"),
    "a skip outside the run": ("job", "[debug]", '[mosaic]\nskip_batches = ["5"]\n[debug]', "'5' is outside the run"),
    "a skip of no batch": ("job", "[debug]", '[mosaic]\nskip_batches = ["two"]\n[debug]', 'named as "1500" or "12'),
    "skips as numbers": ("job", "[debug]", "[mosaic]\nskip_batches = [3]\n[debug]", "skip_batches = [3] should be"),
    "a home": ("job", '"{out}"', '"~/out"', "'~' and '$' are a shell's"),
    "an address": ("job", '"{out}"', '"s3://bucket/out"', "must be a folder of a file system"),
    "a folder for a file": ("job", '"{out}"', '"{out}"\nsave_config_file = "../"', "is a folder, not a file"),
    "a seed of too many bits": ("job", "seed = 3", "seed = 99999999999999999999", "must be a number of 64 bits"),
    "a field that nothing reads": (
        "job",
        "[debug]",
        '[experimental]\ncustom_args_module = "a"\n[debug]',
        "does not read it",
    ),
    "a home in the data": ("data", LOCAL, 'local = "~/data"\n', "'~' and '$' are a shell's"),
    "a variable": ("data", LOCAL, 'local = "/data/$USER"\n', "local = '/data/$USER'"),
    "nodes beyond number": (
        "data",
        "num_canonical_nodes = 4",
        "num_canonical_nodes = 9_999_999",
        "must be at most 1,048,576",
    ),
    "a monitor in compiled modules": (
        "job",
        "[metrics]",
        "[compile]\nenable = true\n[callbacks.activation_monitor]\n[metrics]",
        'which compile.enable = true compiles; set compile.components = ["loss"]',
    ),
    "a layer that is not there": (
        "job",
        "[metrics]",
        "[callbacks.layer_freezing]\nlayer_names = ['layers.0.attention.wq']\n[metrics]",
        "layer_names: the model has no parameter 'layers.0.attention.wq'. Did you mean 'layers.0.attention.wq.weight'?",
    ),
    "no folder of repositories": (
        "job",
        "[metrics]",
        "[callbacks.env_logging]\n[metrics]",
        "workspace_dir = '/workspace', which is no folder",
    ),
    "another's format": ("data", SPLIT, f"{SPLIT}decoder_only_format = false\n", "unknown key 'decoder_only_format'"),
    "a key twice": ("data", SPLIT, SPLIT + SPLIT, "Cannot overwrite a value"),
    "a list of streams": ("data", LOCAL, 'streams = [{{ local = "a" }}]\n', "streams: expected table"),
}


def changed(file: str, old: str, new: str, says: str) -> Refusal:
    """The refusal of a job in whose config `old` is replaced by `new`."""
    text = {"job": jobs.JOB, "moe": MOE, "data": jobs.DATA}[file]
    assert old in text
    return Refusal(says, **{"data" if file == "data" else "job": text.replace(old, new, 1)})


def another_cache(folder: Path) -> None:
    """A cache of one remote, for a job that names another."""
    for name, token in (("one", 3), ("two", 4)):
        rows = [{"tokens": np.full(65, token, np.int32)} for _ in range(40)]
        write(folder, {"tokens": "ndarray:int32:65"}, rows, name)
    ShardedDataset({"remote": str(folder / "one"), "local": str(folder / "cache")})


def another_program(folder: Path) -> None:
    another_cache(folder)
    shutil.rmtree(folder / "cache")
    (folder / "cache").mkdir()
    (folder / "cache" / "thesis.tex").write_text("mine")


def another_model(folder: Path) -> None:
    dcp.save({"vision.weight": torch.ones(2)}, checkpoint_id=folder / "step-2", no_dist=True)


def half_a_checkpoint(folder: Path) -> None:
    (folder / "step-2").mkdir()


def begins_from(flag: str) -> tuple[str, str]:
    return "--checkpoint.enable", f"--checkpoint.{flag}"


EARLY_STEPS = ("--training.global_batch_size=-1", "--optimizer.early_step_in_backward")
CACHE = TOKENS.replace("/shards", "/cache") + 'remote = "{folder}/two"\n'
OWN_TOKENIZER = jobs.JOB.replace("{tokenizer}", "{folder}/tokenizer")
FLEX = jobs.JOB.replace('"debugmodel"', '"debugmodel_flex_attn"')

ONE_NAME = "".join(
    f'[mosaic_dataloader.dataset.streams."{name}"]\nlocal = "{{data}}"\nsplit = "{split}"\n'
    for name, split in (("a b", "train"), ("a:b", "val"))
)

REFUSALS: dict[str, Refusal] = {name: changed(*change) for name, change in CHANGES.items()} | {
    "a monitor of gradients that are gone": Refusal(
        "callbacks.optimizer_monitor is refused: it measures gradients",
        job=jobs.JOB + "[callbacks.optimizer_monitor]\n",
        flags=EARLY_STEPS,
    ),
    "streams that would be one in metrics": Refusal(
        "loss_per_stream = true: streams 'a b' and 'a:b' would both be 'a_b' in metrics; rename one",
        data=STREAMS + ONE_NAME,
        flags=("--mosaic.loss_per_stream",),
    ),
    "a guard that comes too late": Refusal(
        "is refused: it holds back optimizer steps, and optimizer.early_step_in_backward = true has made them",
        job=jobs.JOB + '[callbacks."mosaic_photon.callbacks:SpikeGuard"]\n',
        flags=EARLY_STEPS,
    ),
    "an end token that is another": Refusal(
        "eos_token_id: 5 is not the tokenizer's eos token, which is 1: set eos_token_id = 1",
        data=with_("eos_token_id = 5"),
    ),
    "a begin token that is another": Refusal(
        "bos_token_id: 7 is not the tokenizer's bos token, which is 0", data=with_("bos_token_id = 7")
    ),
    "documents apart without an end token": Refusal(
        "keeps documents apart by the tokenizer's end token",
        job=FLEX.replace("{tokenizer}", "{folder}/tokenizer"),
        make=without_end,
    ),
    "bytes of a narrower type": Refusal(
        "set token_encoding_type = 'int32'", data=TOKENS, make=partial(tokens_as_bytes, dtype="int32", length=65)
    ),
    "bytes of a type that fits in number": Refusal(
        "set token_encoding_type = 'uint16'", data=TOKENS, make=partial(tokens_as_bytes, dtype="uint16", length=512)
    ),
    "bytes of a wider type": Refusal(
        "set token_encoding_type = 'int64'",
        data=TOKENS + 'token_encoding_type = "int32"\n',
        make=partial(tokens_as_bytes, dtype="int64", length=65),
    ),
    "a sample without an answer": Refusal(
        "stream 'chat', shard.00000.mds, sample 0: llm-foundry cannot use it",
        data=CHAT,
        make=partial(chats, bad={"prompt": "what?", "response": ""}),
    ),
    "a prompt that is too long": Refusal(
        "stream 'chat', shard.00000.mds, sample 0: llm-foundry cannot use it (ValueError: Truncating",
        data=CHAT,
        make=partial(chats, bad={"prompt": "what? " * 200, "response": "this"}),
    ),
    "chats that are not there": Refusal(
        "stream 'chat'",
        data=CHAT.replace(
            'local = "{folder}/shards"', 'remote = "{folder}/none"\ndownload_retry = 0\nlocal = "{folder}/cache"'
        ),
    ),
    "chats of another tokenizer": Refusal(
        "token id 5000 is outside the vocabulary of 2048 tokens", data=CHAT, make=tokenized_chats
    ),
    "columns of other data": Refusal(
        "stream 'chat', shard.00000.mds, sample 0: llm-foundry cannot use it", data=CHAT, make=texts
    ),
    "tokens in tables": Refusal("shape 5,13, not rows of token ids", data=TOKENS, make=tables),
    "tokens that are no numbers of tokens": Refusal("its tokens are float32 of shape (65,)", data=TOKENS, make=floats),
    "text without a pad token": Refusal("pad_token", job=OWN_TOKENIZER, data=TOKENS, make=without_pad),
    "a shuffle block too small for a stream": Refusal(
        "shuffle_block_size: 4 leaves stream 'small'",
        data=streams("stratified", "shuffle_block_size = 4"),
        make=partial(two_streams, big=40, small=3),
    ),
    "a batch too small to stratify": Refusal(
        "of 4 samples none is left for stream 'small'",
        data=streams("stratified"),
        make=partial(two_streams, big=100, small=2),
    ),
    "a stream that fills no batch": Refusal(
        "takes 4 samples of stream 'small', which has 3",
        data=streams("per_stream"),
        make=partial(two_streams, big=40, small=3),
    ),
    "more canonical nodes than samples": Refusal(
        "num_canonical_nodes: 16 nodes can't share the 8 samples of stream 'small'",
        data=streams("per_stream", 'num_canonical_nodes = 16\nshuffle_algo = "py1e"'),
        make=partial(two_streams, big=40, small=8),
    ),
    "the cache of another remote": Refusal("a cache of {folder}/one, but stream ", data=CACHE, make=another_cache),
    "a folder of another program": Refusal("no cache of {folder}/two", data=CACHE, make=another_program),
    "a cache in the data": Refusal(
        "lies in the data of stream 'a'",
        data=STREAMS
        + '[mosaic_dataloader.dataset.streams.a]\nlocal = "{data}"\nsplit = "train"\n'
        + '[mosaic_dataloader.dataset.streams.b]\nlocal = "{data}/train/cache"\nremote = "s3://bucket/b"\n',
    ),
    "a checkpoint of another model": Refusal(
        "is not a checkpoint of this model: it has vision.weight",
        flags=begins_from("initial_load_path={folder}/step-2"),
        make=another_model,
    ),
    "half a checkpoint": Refusal(
        "initial_load_path = '{folder}/step-2'",
        flags=begins_from("initial_load_path={folder}/step-2"),
        make=half_a_checkpoint,
    ),
    "a step that was never saved": Refusal("checkpoint.load_step = 7", flags=begins_from("load_step=7")),
    "a state that is not there": Refusal(
        "there is no state 'dataloder'. Did you mean 'dataloader'",
        flags=begins_from("exclude_from_loading=dataloder"),
    ),
    "two sets of one label": Refusal(
        "mosaic_eval_dataloader: two loaders have the label '1'; give each its own",
        data=eval_sets('[[mosaic_eval_dataloader]]\nlabel = "1"', "[[mosaic_eval_dataloader]]\nlabel = 1"),
    ),
    "a set without a label beside another": Refusal(
        "mosaic_eval_dataloader[1] has no label; each loader of a list needs one",
        data=eval_sets('[[mosaic_eval_dataloader]]\nlabel = "web"', "[[mosaic_eval_dataloader]]"),
    ),
    "a label that is no metric's name": Refusal(
        "mosaic_eval_dataloaders: the label 'the web' cannot be part of a metric's name",
        data=eval_sets('[mosaic_eval_dataloaders."the web"]'),
    ),
    "sets in two tables": Refusal(
        "has both mosaic_eval_dataloader and mosaic_eval_dataloaders; all of it belongs into one of them",
        data=eval_sets("[mosaic_eval_dataloader]", "[mosaic_eval_dataloaders.web]"),
    ),
    "a key of one of several sets": Refusal(
        "mosaic_eval_dataloaders.web: unknown key 'label'.",
        data=eval_sets("[mosaic_eval_dataloaders.code]", "[mosaic_eval_dataloaders.web]\nlabel = 1"),
    ),
    "one of several sets without samples": Refusal(
        "{folder}/shards/index.json: the dataset is empty",
        data=second_set('local = "{folder}/shards"'),
        make=nothing,
        flags=("--validation.enable",),
    ),
    "one of several sets longer than positions": Refusal(
        "mosaic_eval_dataloaders.web.dataset.max_seq_len: 129 does not fit validation.seq_len 64",
        data=second_set('local = "{data}", split = "val", max_seq_len = 129'),
        flags=("--validation.enable",),
    ),
    "a cache of one set in the data of another": Refusal(
        "give the cache (local) a folder of its own",
        data=second_set('local = "{data}/val/cache", remote = "s3://bucket/web"'),
    ),
    "validation beyond the model's positions": Refusal(
        "the model's positions end at", flags=("--validation.enable", "--validation.seq_len=65536")
    ),
    "a patience below nothing": Refusal("download_patience_seconds", flags=("--mosaic.download_patience_seconds=-1",)),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_job_and_doctor_refuse_alike(
    name: str,
    tmp_path: Path,
    prepared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case, folder = REFUSALS[name], tmp_path / "case"
    folder.mkdir()
    case.make(folder)
    job, data, says = (text.replace("{folder}", str(folder)) for text in (case.job, case.data, case.says))
    flags = [flag.replace("{folder}", str(folder)) for flag in case.flags]
    arguments = jobs.write_job(tmp_path, prepared_data, job, data)
    monkeypatch.chdir(tmp_path)
    before = files_of(tmp_path)
    capfd.readouterr()
    assert jobs.run_here(arguments, *flags) == 1
    said = "".join(capfd.readouterr())
    assert said.count("error: ") == 1 and says in said and "Traceback" not in said, said
    code, said = say_all(arguments, flags, 1, monkeypatch, capfd)
    assert code == 1 and says in failures(said) and "Traceback" not in said, said
    assert files_of(tmp_path) == before


def files_of(folder: Path) -> list[Path]:
    """All paths there, but for what was fetched into a case's own caches."""
    return sorted(path for path in folder.rglob("*") if folder / "case" not in path.parents)
