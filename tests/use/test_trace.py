"""`mosaic-photon trace`: a step's samples, a sample's steps, what a step came to, all as the job itself has it."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from tokenizers import Tokenizer

import jobs
import tokenizers_made
from mds_data import ASSETS, flat, numbers, write_mds
from mosaic_photon.cli import main
from mosaic_photon.dataloader.tokens import IGNORED
from mosaic_photon.job.load import load_job
from mosaic_photon.use.trace import open_run
from mosaic_photon.use.trace_losses import losses_of, worst_first
from mosaic_photon.use.trace_text import LONGEST, NO_CHARACTER, Matcher, find_text, pieces_of

KEYS = ["stream", "shard", "index", "sample", "rank", "micro_batch", "tokens", "text"]
FLAGS = ("--checkpoint.enable=true", "--checkpoint.interval=2")


def trace(folder: Path, *words: str, flags: tuple[str, ...] = FLAGS, expect: int = 0) -> int:
    code = main(["trace", str(folder / "job.toml"), str(folder / "data.toml"), *words, "--", *flags])
    assert code == expect
    return code


def listed(folder: Path, capsys: pytest.CaptureFixture[str], *words: str, flags: tuple[str, ...] = FLAGS) -> Any:
    capsys.readouterr()
    trace(folder, *words, "--json", flags=flags)
    return json.loads(capsys.readouterr().out)


def test_a_step_s_samples_are_listed(trained_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = listed(trained_job, capsys, "--step", "2-3")
    assert [(step["step"], step["batch"]) for step in steps] == [(2, 2), (3, 3)]
    for step in steps:
        assert [list(sample) for sample in step["samples"]] == [KEYS] * 4
        assert [(sample["rank"], sample["micro_batch"]) for sample in step["samples"]] == [(0, 0)] * 2 + [(0, 1)] * 2
        assert all(sample["tokens"] == 65 and sample["stream"] == "data" for sample in step["samples"])
    (full,) = listed(trained_job, capsys, "--step", "3", "--full")
    for short, long in zip(steps[1]["samples"], full["samples"], strict=True):
        assert long["text"].startswith(short["text"]) and len(short["text"]) == 80 < len(long["text"])

    trace(trained_job, "--step", "3")
    heading, names, *rows = capsys.readouterr().out.splitlines()
    assert heading == "step 3: 4 samples"
    assert names.split() == [key.replace("_", "-") for key in ("rank", "micro_batch", *KEYS[:4], *KEYS[6:])]
    for row, sample in zip(rows, full["samples"], strict=True):
        assert row.split()[2:6] == ["data", sample["shard"], str(sample["index"]), str(sample["sample"])]


def test_a_listing_imports_no_training_code(trained_job: Path) -> None:
    words = ["trace", str(trained_job / "job.toml"), str(trained_job / "data.toml"), "--step", "1", "--", *FLAGS]
    code = (
        f"import sys; from mosaic_photon.cli import main; code = main({words}); "
        "print(code, sorted({'torchtitan', 'composer', 'llmfoundry'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 []"
    assert done.stderr == ""


def test_losses_of_a_checkpoint_are_those_of_the_step_after_it(
    trained_job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All samples have as many labels, so their mean is the loss that the run logged, worst first."""
    (step,) = listed(trained_job, capsys, "--step", "3", "--checkpoint", str(trained_job / "out/checkpoint/step-2"))
    losses = [sample["loss"] for sample in step["samples"]]
    assert [list(sample) for sample in step["samples"]] == [[*KEYS, "loss"]] * 4
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4
    assert np.mean(losses) == pytest.approx(jobs.scalars(trained_job)[3], rel=1e-6)


def test_a_replayed_step_has_the_run_s_numbers(trained_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One thread: to the last bit. Nothing of the run is touched."""
    files = {path: path.stat().st_mtime_ns for path in trained_job.rglob("*")}
    found = listed(trained_job, capsys, "--step", "3-4", "--replay", flags=(*FLAGS, "--debug.deterministic=true"))
    losses, norms = jobs.scalars(trained_job), jobs.scalars(trained_job, "grad_norm")
    assert found == [{"step": step, "loss": losses[step], "grad_norm": norms[step]} for step in (3, 4)]
    assert {path: path.stat().st_mtime_ns for path in trained_job.rglob("*")} == files


def test_steps_that_see_a_sample_or_a_text(trained_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (step,) = listed(trained_job, capsys, "--step", "3", "--full")
    sample = step["samples"][2]
    (found,) = listed(trained_job, capsys, "--sample", f"data:{sample['sample']}", "--full")
    assert found == {"step": 3, "batch": 3, "samples": [sample]}
    for text in (sample["text"], sample["text"][11:60]):
        steps = listed(trained_job, capsys, "--text", text, "--full")
        assert {"step": 3, "batch": 3, "samples": [sample]} in steps
        assert all(text in one["text"] for seen in steps for one in seen["samples"])

    seen = {one["sample"] for step in listed(trained_job, capsys, "--step", "1-4") for one in step["samples"]}
    unseen = min(set(range(100)) - seen)
    trace(trained_job, "--sample", f"data:{unseen}", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out) == []
    assert printed.err == f"none of the job's 4 steps sees stream 'data', shard.00000.mds, sample {unseen}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--step", "5"], "step 5: the job has the steps 1 to 4 (training.steps)."),
        (["--step", "0"], "step 0: the job has the steps 1 to 4"),
        (["--step", "3-9"], "step 9: the job has the steps 1 to 4"),
        (["--step", "3-2"], "--step 3-2: ends before it begins."),
        (["--step", "last"], "--step 'last': expected a step, e.g. 1200, or several, e.g. 1200-1210."),
        (["--step", "5", "--replay"], "step 5: the job has the steps 1 to 4"),
        (["--sample", "data:1", "--replay"], "--replay takes --step alone"),
        (["--text", "", "--replay"], "--replay takes --step alone"),
        (["--sample", "dta:1"], "--sample 'dta:1': there is no stream 'dta'. Did you mean 'data'?"),
        (["--sample", "data"], "--sample 'data': expected STREAM:N, e.g. data:0."),
        (["--sample", "data:99999999"], "numbered from 0 to "),
        (["--text", "these words are nowhere"], "--text 'these words are nowhere' is nowhere in the "),
        (["--text", ""], "--text is empty"),
        (["--text", "\udcff"], "--text '\\udcff' is not UTF-8."),
        (["--step", "1", "--nproc-per-node", "3"], "training.global_batch_size = 4 does not divide"),
        (["--step", "1", "--nnodes", "0"], "--nnodes 0 --nproc-per-node"),
        (["--step", "1", "--checkpoint", "/nowhere"], "/nowhere: there is no such folder of checkpoints."),
    ],
)
def test_what_cannot_be_traced_is_said_in_one_line(
    trained_job: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    trace(trained_job, *words, expect=1)
    printed = capsys.readouterr()
    assert message in printed.err.splitlines()[-1]
    assert printed.out == ""


def test_a_checkpoint_of_another_job_is_refused(trained_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    another = (*FLAGS, "--model.overrides.n_layers=1")
    trace(
        trained_job, "--step", "3", "--checkpoint", str(trained_job / "out/checkpoint/step-2"), flags=another, expect=1
    )
    assert "is of another model than the job" in capsys.readouterr().err
    trace(trained_job, "--step", "3", "--replay", flags=another, expect=1)
    assert "is a checkpoint of another job" in capsys.readouterr().err


@pytest.fixture(scope="module")
def mds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two streams, of 40 and 23 samples."""
    folder = tmp_path_factory.mktemp("mds")
    write_mds(folder / "a", 40)
    write_mds(folder / "b", 23, start=100)
    return folder


DATA = """
[mosaic_dataloader]
name = "text"
[mosaic_dataloader.dataset]
shuffle = true
shuffle_seed = 5
num_canonical_nodes = 2
[mosaic_dataloader.dataset.streams]
a = {{local = "{data}/a"}}
b = {{local = "{data}/b"}}
"""


@pytest.mark.parametrize("skipped", ["", "5-20,30"])
def test_every_pass_of_a_sample_is_found(
    skipped: str, tmp_path: Path, mds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over 40 steps of 4, of 63 samples: each list of steps is the listing's, turned round."""
    jobs.write_job(tmp_path, mds, jobs.JOB.replace("seq_len = 64", "seq_len = 16"), DATA)
    flags = ("--training.steps=40", f"--mosaic.skip_batches={skipped}")
    seen: dict[str, list[int]] = {}
    for step in listed(tmp_path, capsys, "--step", "1-40", "--nproc-per-node", "2", flags=flags):
        for sample in step["samples"]:
            seen.setdefault(f"{sample['stream']}:{sample['sample']}", []).append(step["step"])
    assert len(seen) == 63 and {name.split(":")[0] for name in seen} == {"a", "b"}
    for name in random.Random(0).sample(sorted(seen), 5):
        steps = listed(tmp_path, capsys, "--sample", name, flags=flags)
        assert [step["step"] for step in steps] == list(dict.fromkeys(seen[name]))
        assert len(steps) in (range(1, 5) if skipped else (2, 3))


def test_batches_that_are_passed_over_are_no_step_s(
    tmp_path: Path, mds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps behind them have later batches, and who saw only those, no step."""
    jobs.write_job(tmp_path, mds, jobs.JOB.replace("seq_len = 64", "seq_len = 16"), DATA)
    flags = ("--training.steps=10", "--mosaic.skip_batches=3-4,7")
    whole = listed(tmp_path, capsys, "--step", "1-13", flags=("--training.steps=13",))
    left = listed(tmp_path, capsys, "--step", "1-10", flags=flags)
    assert [(step["step"], step["batch"]) for step in left] == list(enumerate([1, 2, 5, 6, *range(8, 14)], 1))
    assert [step["samples"] for step in left] == [whole[step["batch"] - 1]["samples"] for step in left]
    for batch, steps in ((3, []), (8, [5])):
        one = whole[batch - 1]["samples"][0]
        found = listed(tmp_path, capsys, "--sample", f"{one['stream']}:{one['sample']}", flags=flags)
        assert [step["step"] for step in found] == steps


def test_a_text_is_found_in_every_shard_by_several_processes(tmp_path: Path, mds: Path) -> None:
    jobs.write_job(tmp_path, mds, jobs.JOB.replace("seq_len = 64", "seq_len = 16"), DATA)
    run = open_run(load_job(tmp_path / "job.toml", tmp_path / "data.toml", []), 1, None)
    assert len(run.dataset.shards) > 4
    texts = [run.read(sample)[1] for sample in range(63)]
    looked: list[int] = []
    for wanted in (texts[50], texts[3][2:9]):
        found = find_text(run, wanted, looked.append)
        assert found == [sample for sample, text in enumerate(texts) if wanted in text] != []
    assert sum(looked) == 2 * 63
    run.close()


def test_shards_appended_since_the_checkpoint_are_not_in_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's data state says what it reads, to the job that goes on and here."""
    data = DATA.split("[mosaic_dataloader.dataset.streams]")[0] + 'local = "{data}"\n'
    jobs.write_job(tmp_path, tmp_path / "mds", jobs.JOB.replace("seq_len = 64", "seq_len = 16"), data)
    write_mds(tmp_path / "mds", 36)
    before = listed(tmp_path, capsys, "--step", "1-30", flags=("--training.steps=30",))
    loader = open_run(load_job(tmp_path / "job.toml", tmp_path / "data.toml", []), 1, None).loader
    for _ in zip(range(6), loader, strict=False):  # three steps
        pass
    state = {"dataloader": loader.state_dict(), "lr_scheduler": {"last_epoch": 3}}
    loader.close()
    dcp.save(state, checkpoint_id=tmp_path / "out/checkpoint/step-3", no_dist=True)
    shutil.rmtree(tmp_path / "mds")
    write_mds(tmp_path / "mds", 72)  # two shards more
    assert listed(tmp_path, capsys, "--step", "1-30", flags=("--training.steps=30",)) != before
    flags = ("--training.steps=30", "--checkpoint.enable")
    assert listed(tmp_path, capsys, "--step", "1-30", flags=flags) == before


def test_data_that_changed_at_a_checkpoint_are_known_from_there_on(
    tmp_path: Path, mds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another seed from step 4 on: the state of step 5 says where the order began, and earlier steps are refused."""
    jobs.write_job(tmp_path, mds, jobs.JOB.replace("seq_len = 64", "seq_len = 16"), DATA)
    state: dict[str, Any] = {}
    for steps in (3, 2):
        allowed = [f"--mosaic.allow_data_change={'true' if state else 'false'}"]
        loader = open_run(load_job(tmp_path / "job.toml", tmp_path / "data.toml", allowed), 1, None).loader
        loader.load_state_dict(state)
        read = [numbers(batch) for batch, _ in zip(loader, range(2 * steps), strict=False)]
        state = loader.state_dict()
        loader.close()
        (tmp_path / "data.toml").write_text(DATA.format(data=mds).replace("seed = 5", "seed = 6"))
    saved = {"dataloader": state, "lr_scheduler": {"last_epoch": 5}}
    dcp.save(saved, checkpoint_id=tmp_path / "out/checkpoint/step-5", no_dist=True)
    flags = ("--training.steps=9", "--checkpoint.enable")
    steps = listed(tmp_path, capsys, "--step", "4-5", flags=flags)
    found = [one["sample"] + 100 * (one["stream"] == "b") for step in steps for one in step["samples"]]
    assert found == flat(read)
    trace(tmp_path, "--step", "3", flags=flags, expect=1)
    assert "read before the data were changed" in capsys.readouterr().err
    trace(tmp_path, "--sample", "a:0", "--json", flags=flags)
    assert "the first 3 batches" in capsys.readouterr().err


STAGES = """
[[mosaic_stages]]
duration = "6ba"
proportion = {{ a = 0.9, b = 0.1 }}
[[mosaic_stages]]
duration = "8ba"
ramp = true
proportion = {{ a = 0.2, b = 0.8 }}
[[mosaic_stages]]
proportion = {{ a = 0.5, b = 0.5 }}
"""


def test_a_run_that_went_on_in_stages_is_known_before_and_behind_them(
    tmp_path: Path, mds: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three steps without, then over a ramp: as the loader reads it, and each list of steps is the listing's."""
    job, flags = jobs.JOB.replace("seq_len = 64", "seq_len = 16"), ("--training.steps=30", "--checkpoint.enable")
    jobs.write_job(tmp_path, mds, job, DATA)
    before = listed(tmp_path, capsys, "--step", "1-3", flags=flags)
    loader = open_run(load_job(tmp_path / "job.toml", tmp_path / "data.toml", []), 1, None).loader
    for _ in zip(range(6), loader, strict=False):
        pass
    state = {"dataloader": loader.state_dict(), "lr_scheduler": {"last_epoch": 3}}
    loader.close()
    dcp.save(state, checkpoint_id=tmp_path / "out/checkpoint/step-3", no_dist=True)
    jobs.write_job(tmp_path, mds, job, DATA + STAGES)
    run = open_run(load_job(tmp_path / "job.toml", tmp_path / "data.toml", list(flags)), 1, None)
    read = [numbers(batch) for batch, _ in zip(run.loader, range(2 * 27), strict=False)]
    run.close()
    steps = listed(tmp_path, capsys, "--step", "1-30", flags=flags)
    assert steps[:3] == before
    samples = [(step["step"], f"{one['stream']}:{one['sample']}") for step in steps for one in step["samples"]]
    assert [int(name[2:]) + 100 * (name[0] == "b") for step, name in samples if step > 3] == flat(read)
    wanted = samples[-1][1]
    seen = [step["step"] for step in listed(tmp_path, capsys, "--sample", wanted, flags=flags)]
    assert seen == list(dict.fromkeys(step for step, name in samples if name == wanted))
    jobs.write_job(tmp_path, mds, job, DATA + STAGES[: STAGES.rindex("[[")])
    trace(tmp_path, "--step", "30", flags=flags, expect=1)
    assert "the stages end after step 17, the run after step 30" in capsys.readouterr().err


TOKENIZERS = {
    "byte-level": lambda folder: ASSETS,
    "byte-level, made": tokenizers_made.byte_level,
    "SentencePiece's kind": tokenizers_made.metaspace,
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_row_with_the_text_is_missed_and_few_others_are_taken(tmp_path: Path, name: str) -> None:
    """Hundreds of texts cut out of decoded rows of random tokens, and as many that are nowhere."""
    tokenizer = Tokenizer.from_file(str(TOKENIZERS[name](tmp_path / "tokenizer") / "tokenizer.json"))
    pieces, rng = pieces_of(tokenizer), random.Random(1)
    assert pieces is not None
    tokens = np.array([[rng.randrange(len(pieces)) for _ in range(30)] for _ in range(50)])
    rows = [tokenizer.decode(row, skip_special_tokens=False) for row in tokens.tolist()]
    for _ in range(50):
        row = rng.choice(rows)
        begin = rng.randrange(len(row) - 1)
        text = row[begin : begin + rng.randrange(1, 25)]
        if NO_CHARACTER in text:
            continue
        for wanted in (text, text + "§"):
            hits = Matcher(wanted.encode()[:LONGEST], pieces).hits(tokens)
            holds = np.array([wanted in row for row in rows])
            assert not (holds & ~hits).any(), wanted
            assert (hits & ~holds).sum() <= 1, wanted  # but for a first space


def test_a_decoder_that_writes_more_than_its_tokens_is_asked_itself(tmp_path: Path) -> None:
    folder = tokenizers_made.word_piece(tmp_path / "tokenizer")
    assert pieces_of(Tokenizer.from_file(str(folder / "tokenizer.json"))) is None


def test_a_sample_that_breaks_the_model_is_the_worst_and_one_without_labels_has_no_loss() -> None:
    rows = torch.zeros(3, 4, dtype=torch.int64)
    labels, logits = rows.clone(), torch.zeros(3, 4, 8)
    labels[1], logits[2] = IGNORED, math.nan
    data = SimpleNamespace(make_batch=lambda ids: ({"input": rows[ids]}, labels[ids]))
    run = SimpleNamespace(data=data, loader=SimpleNamespace(layout=SimpleNamespace(local_batch=2)))
    opened = SimpleNamespace(logits=lambda inputs: logits[: len(inputs)] if len(inputs) == 2 else logits[2:])
    losses = losses_of(cast(Any, run), cast(Any, SimpleNamespace(ids=np.arange(3))), cast(Any, opened))
    assert losses[:2] == [pytest.approx(math.log(8)), None] and math.isnan(cast(float, losses[2]))
    worst = worst_first([{"sample": number} for number in range(3)], losses)
    assert [sample["sample"] for sample in worst] == [2, 0, 1]
