"""`mosaic-photon evaluate`: the job's own validation without a trainer, text, shards, and what is refused."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers import Tokenizer

import jobs
import mds_data
from mosaic_photon.cli import main
from mosaic_photon.cli.evaluate import show
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.use.checkpoint import job_model
from mosaic_photon.use.evaluate import Numbers, Score
from mosaic_photon.use.opened import open_in_transformers
from mosaic_photon.use.watch import watch


def evaluate(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["evaluate", *map(str, words), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_it_is_the_jobs_own_validation(trained_job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    validated = jobs.scalars(trained_job, "validation_metrics/loss")
    given = ["--job", trained_job / "job.toml", "--data", trained_job / "data.toml"]
    for step in (2, 4):
        found = evaluate(capsys, trained_job / f"out/checkpoint/step-{step}", *given)
        assert found["loss"] == pytest.approx(validated[step], rel=1e-5)
    newest = evaluate(capsys, *given)
    assert newest == found


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [
        "[mosaic]\nseparate_documents = true",
        'attn_type = "flex"\nattn_mask_type = "block_causal"',
    ],
    ids=["by the switch", "by the flavor"],
)
def test_documents_stay_apart_as_in_the_job(model: str, tmp_path: Path, capsys: Any) -> None:
    """Its validation keeps attention within documents, several in each row, and so does the model in transformers."""
    lines = (f"x{number} = {number % 7} * {number}\\n" * (1 + number % 3) for number in range(600))
    (tmp_path / "short.jsonl").write_text("".join(f'{{"text": "{line}"}}\n' for line in lines))
    words = ["prepare", tmp_path / "short.jsonl", "--out", tmp_path / "data", "--tokenizer", jobs.TOKENIZER]
    assert main([*map(str, words), "--val=0.5", "--seq-len=64", "--workers=1"]) == 0
    end = Tokenizer.from_file(str(jobs.TOKENIZER / "tokenizer.json")).token_to_id("<|eos|>")
    job = jobs.JOB.replace("n_heads = 4\n", "n_heads = 4\n" + model + "\n")
    data = jobs.DATA.replace("shuffle = ", f"eos_token_id = {end}\nshuffle = ")
    arguments = jobs.write_job(tmp_path, tmp_path / "data", job, data)
    flags = ["--checkpoint.enable=true", "--validation.enable=true", "--validation.freq=30", "--optimizer.lr=1e-2"]
    assert jobs.run_here(arguments, *flags, "--training.steps=30") == 0  # until it looks at what came before
    found = evaluate(capsys, "--job", tmp_path / "job.toml", "--data", tmp_path / "data.toml")
    validated = jobs.scalars(tmp_path, "validation_metrics/loss")[30]
    assert found["loss"] == pytest.approx(validated, rel=1e-5)
    crossing = (tmp_path / "job.toml").read_text().replace(model, "[mosaic]\nallow_model_change = true")
    (tmp_path / "job.toml").write_text(crossing)
    across = evaluate(capsys, "--job", tmp_path / "job.toml", "--data", tmp_path / "data.toml")
    assert abs(across["loss"] - validated) > 1e-4 * validated  # it would have been seen


def test_shards_and_text(trained_job: Path, prepared_data: Path, tmp_path: Path, capsys: Any) -> None:
    """Each folder of shards is a set; of text each token but the first is a label, and its bytes are the text's."""
    job = ["--job", trained_job / "job.toml"]
    validated = jobs.scalars(trained_job, "validation_metrics/loss")[4]
    sets = evaluate(capsys, *job, "--mds", prepared_data)
    assert sets["val"]["loss"] == pytest.approx(validated, rel=1e-5) and sets.keys() == {"checkpoint", "train", "val"}
    one = evaluate(capsys, *job, "--mds", prepared_data / "val")
    assert one == {"checkpoint": sets["checkpoint"], **sets["val"]}

    text = "def naïve(): return '東京'\n" * 9
    (tmp_path / "a.txt").write_text(text)
    documents = ["shorter than a row", ""]  # a loss has the first, and the second nothing
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    found = evaluate(capsys, *job, "--text", tmp_path)
    tokenizer = Tokenizer.from_file(str(jobs.TOKENIZER / "tokenizer.json"))
    begin, end = (tokenizer.token_to_id(name) for name in ("<|bos|>", "<|eos|>"))
    ids = [
        token
        for document in (text, "shorter than a row")
        for token in [begin, *tokenizer.encode(document, add_special_tokens=False).ids, end]
    ]
    model = open_in_transformers(job_model(str(trained_job / "job.toml"))).model
    rows = [ids[at : at + 65] for at in range(0, len(ids) - 1, 64)]
    with torch.no_grad():
        losses = [
            torch.nn.functional.cross_entropy(model(torch.tensor([row[:-1]])).logits[0], torch.tensor(row[1:]))
            * (len(row) - 1)
            for row in rows
        ]
    loss = float(sum(losses)) / (len(ids) - 1)
    assert len(rows) > 2 and found["tokens"] == len(ids) - 1
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    written = len((text + "shorter than a row").encode())
    assert found["bytes"] == written
    assert found["bits_per_byte"] == pytest.approx(float(sum(losses)) / math.log(2) / written, rel=1e-5)


@pytest.mark.parametrize(("encoding", "read"), [("ndarray:int32:64", 64), ("ndarray:int32:128", 65), ("bytes", 17)])
def test_shards_of_any_length(
    encoding: str, read: int, trained_job: Path, tmp_path: Path, capsys: Any, caplog: Any
) -> None:
    """llm-foundry's have as many tokens as the sequence; what is not read of longer ones is said."""
    mds_data.write_mds(tmp_path / "made", 6, encoding=encoding)
    found = evaluate(capsys, "--job", trained_job / "job.toml", "--mds", tmp_path / "made")
    assert found["tokens"] == 6 * (read - 1)
    assert ("of each sample's 128 tokens the first 65 are read" in caplog.text) == (read == 65)


def test_what_is_not_finite_is_null_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    for loss in (math.nan, math.inf):
        assert math.isnan(Score(math.nan, 2, 3).numbers()["perplexity"] or 0)
        show("step-1", {"val": Score(loss, 2, 3).numbers(), "train": Score(1.0, 2, 3).numbers()}, as_json=True)
        found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
        assert found["val"] == {"loss": None, "perplexity": None, "bits_per_byte": None, "tokens": 2, "bytes": 3}
        assert found["train"]["loss"] == 1.0


def copied(trained_job: Path, folder: Path) -> None:
    """The job in another folder, whose TensorBoard is its own."""
    shutil.copytree(trained_job, folder)
    written = (folder / "job.toml").read_text().replace(str(trained_job), str(folder))
    (folder / "job.toml").write_text(written)


def test_each_checkpoint_is_watched_once(trained_job: Path, prepared_data: Path, tmp_path: Path, capsys: Any) -> None:
    """Until the job's last step, its numbers in the run's TensorBoard; what is half-written waits."""
    copied(trained_job, tmp_path / "job")
    (tmp_path / "job/out/checkpoint/step-3").mkdir()
    words = ["--watch", "--job", tmp_path / "job/job.toml", "--mds", prepared_data / "val"]
    for _ in range(2):  # the second finds nothing to do
        assert main(["evaluate", *map(str, words)]) == 0
        events = EventAccumulator(str(tmp_path / "job/out/tb/evaluate"), purge_orphaned_data=False).Reload()
        found = [(event.step, event.value) for event in events.Scalars("evaluation/val/loss")]
        assert [step for step, _ in found] == [2, 4]
        validated = jobs.scalars(trained_job, "validation_metrics/loss")
        assert dict(found) == pytest.approx({step: validated[step] for step in (2, 4)}, rel=1e-5)


def test_a_last_save_in_another_format_ends_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job, seen = MosaicJobConfig(), []
    job.job.dump_folder, job.training.steps = str(tmp_path), 4
    for file in ("step-2/.metadata", "step-4/model.safetensors.index.json"):
        (tmp_path / "checkpoint" / file).parent.mkdir(parents=True)
        (tmp_path / "checkpoint" / file).touch()

    def evaluate(path: str) -> Numbers:
        seen.append(path)
        return {"val": {"loss": 1.0}}

    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it goes on to look for checkpoints"))
    watch(job, ["val"], evaluate)
    assert seen == [str(tmp_path / "checkpoint/step-2")]


TASK = """
task: endings
tag: few
dataset_path: json
dataset_kwargs: {{ data_files: {{ test: "{data}" }} }}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{ metric: acc }}, {{ metric: acc_norm }}, {{ metric: brier_score, higher_is_better: false }}]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one task of lm-eval's and its data."""
    folder = tmp_path_factory.mktemp("task")
    documents = [
        {"question": f"for {name} in", "choices": [" range(10):", " lambda x", f" {name}"], "answer": number % 3}
        for number, name in enumerate(["x", "key", "value", "i", "name", "self", "line"])
    ]
    (folder / "data.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    (folder / "endings.yaml").write_text(TASK.format(data=folder / "data.jsonl"))
    return folder


@pytest.mark.slow
def test_lm_evals_tasks_give_what_its_own_hf_model_gives(
    trained_job: Path, task: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    words = ["--job", trained_job / "job.toml", "--tasks", "endings", "--include-path", task]
    ours = evaluate(capsys, *words)
    opened = open_in_transformers(job_model(str(trained_job / "job.toml")))
    opened.model.save_pretrained(tmp_path / "exported")
    opened.tokenizer.save_pretrained(tmp_path / "exported")
    theirs = lm_eval.simple_evaluate(
        "hf",
        model_args={"pretrained": str(tmp_path / "exported"), "dtype": "float32"},
        tasks=["endings"],
        device="cpu",
        task_manager=TaskManager(include_path=str(task)),
    )["results"]["endings"]
    for metric in ("acc", "acc_norm", "brier_score"):
        assert ours[metric] == pytest.approx(theirs[f"{metric},none"], rel=1e-6)
    exported = evaluate(capsys, tmp_path / "exported", *words)
    assert exported["brier_score"] == pytest.approx(ours["brier_score"], rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("named", ["few", "end*"], ids=["tag", "pattern"])
def test_tasks_by_a_tag_or_pattern_are_watched_once(
    named: str, trained_job: Path, task: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    copied(trained_job, tmp_path / "job")
    words = ["--watch", "--job", tmp_path / "job/job.toml", "--tasks", named, "--include-path", task]
    for evaluated in (2, 0):
        capsys.readouterr()
        assert main(["evaluate", *map(str, words)]) == 0
        assert capsys.readouterr().out.count("endings: acc") == evaluated


def test_what_cannot_be_evaluated_is_one_message(
    trained_job: Path, prepared_data: Path, tmp_path: Path, capsys: Any
) -> None:
    job = ["--job", str(trained_job / "job.toml")]
    (tmp_path / "train_only.toml").write_text(jobs.DATA.partition("[mosaic_eval")[0].format(data=prepared_data))
    (tmp_path / "half/step-7").mkdir(parents=True)
    (tmp_path / "empty.txt").write_text("")
    for words, says in [
        ([], "say on what: --data DATA"),
        (["--data", str(tmp_path / "train_only.toml")], "has no eval loader"),
        (["--mds", str(tmp_path)], "there are no shards here"),
        (["--mds", "s3://bucket/data"], "no folder here; name an address in a data config"),
        (["--mds", str(mds_data.write_mds(tmp_path / "in/short", 4, encoding="ndarray:int32:32"))], "set seq_len = 32"),
        (["--text", str(tmp_path / "empty.txt")], "no text in"),
        ([str(tmp_path / "half"), "--mds", str(prepared_data / "val")], "no whole checkpoint"),
        ([str(tmp_path / "half"), "--watch", "--mds", str(prepared_data / "val")], "--watch takes the job's own"),
    ]:
        assert main(["evaluate", *words, *job]) == 1
        assert says in capsys.readouterr().err, says


@pytest.mark.slow  # lm-eval reads all of its own task files
def test_no_such_task_is_one_message(trained_job: Path, task: Path, capsys: Any) -> None:
    words = ["evaluate", "--job", str(trained_job / "job.toml"), "--tasks", "ending", "--include-path", str(task)]
    assert main(words) == 1
    assert "has no task 'ending'. Did you mean 'endings'?" in capsys.readouterr().err
