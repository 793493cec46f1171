"""What a job refuses, the doctor refuses too, in the same words; neither writes anything or shows a traceback.

Add a case to REFUSALS: what both must say, and in what its job config, data config or files differ from those of a job
that runs. In both texts {data} is a folder of shards that a job can train on, {tokenizer} the tests' tokenizer, {out}
the job's folder and {folder} the case's own, which `make` fills.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from streaming import MDSWriter

import jobs
import tokenizers_made
from doctor_calls import failures, say_all

Make = Callable[[Path], object]
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


def with_(more: str) -> str:
    return jobs.DATA.replace('split = "train"\n', f'split = "train"\n{more}\n')


def streams(batching: str, more: str = "") -> str:
    names = "".join(
        f'[mosaic_dataloader.dataset.streams.{name}]\nlocal = "{{folder}}/{name}"\n' for name in ("big", "small")
    )
    return f'{STREAMS}batching_method = "{batching}"\n{more}\n{names}'


OWN_TOKENIZER = jobs.JOB.replace("{tokenizer}", "{folder}/tokenizer")
FLEX = jobs.JOB.replace('"debugmodel"', '"debugmodel_flex_attn"')

REFUSALS: dict[str, Refusal] = {
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
}


@pytest.mark.parametrize("name", REFUSALS)
def test_job_and_doctor_refuse_alike(
    name: str,
    tmp_path: Path,
    prepared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    case = REFUSALS[name]
    (tmp_path / "case").mkdir()
    case.make(tmp_path / "case")
    job, data = (text.replace("{folder}", str(tmp_path / "case")) for text in (case.job, case.data))
    arguments = jobs.write_job(tmp_path, prepared_data, job, data)
    assert jobs.run_here(arguments, *case.flags) == 1
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and case.says in said[said.index(errors[0]) :], said
    assert "Traceback" not in said
    code, said = say_all(arguments, list(case.flags), 1, monkeypatch, capfd)
    assert code == 1 and case.says in failures(said), said
    assert not (tmp_path / "out").exists()
