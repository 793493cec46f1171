"""`[mosaic] separate_documents`: a row of several documents trains as each of them in a row of its own does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from composer.core import Callback, State
from composer.loggers import Logger
from streaming import MDSWriter

import jobs
from doctor_calls import failures, say_all
from mosaic_photon.titan.releases import installed

BOS, EOS, PAD, S = 0, 1, 2, 64
LENGTHS = (17, 5, 30, 12)
"""Of the documents in each row; S together."""
ROWS = 8
JOB = jobs.JOB.replace("global_batch_size = 4\n", "") + f'[callbacks."{__name__}:Tokens"]\nfolder = "{{out}}"\n'
JOBS = {
    "llama3": JOB,
    "MPT": JOB.replace('"llama3_mosaic"', '"mpt_mup_mosaic"').replace(
        "dim = 64",
        "d_model = 64\ntie_word_embeddings = false\nattn_config.fused_qkv = false\nattn_config.rope = true",
    ),
}
FLAGS = ("--checkpoint.enable", "--checkpoint.interval=1", "--training.steps=3", "--checkpoint.keep_latest_k=0")
PACKED, APART = "--training.local_batch_size=2", f"--training.local_batch_size={2 * len(LENGTHS)}"
ASKED = "--mosaic.separate_documents"


class Tokens(Callback):
    """Writes each token's loss at each step."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def after_forward(self, state: State, logger: Logger) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        labels = state.batch["labels"].flatten()
        losses = torch.nn.functional.cross_entropy(state.outputs.flatten(0, 1).float(), labels, reduction="none")
        torch.save(losses[labels != -100].detach(), self.folder / f"tokens-{int(state.timestamp.batch)}.pt")


def rows(begin: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Rows of several documents, and a row for each document; a label is the next token in both.

    Args:
        begin: the token that documents begin with; None: they end with EOS.
    """
    draw = np.random.default_rng(1)
    packed, apart = [], []
    for _ in range(ROWS):
        row = draw.integers(3, 2000, S + 1).astype(np.int32)
        ends = np.cumsum(LENGTHS)
        row[ends - 1 if begin is None else ends - LENGTHS] = EOS if begin is None else begin
        packed.append(row)
        for end, length in zip(ends, LENGTHS, strict=True):
            alone = np.full(S + 1, PAD, np.int32)
            alone[: length + 1] = row[end - length : end + 1]
            apart.append(alone)
    return packed, apart


@pytest.fixture(scope="module", params=["eos_token_id", "bos_token_id"])
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folders of both, and the data config's line that says what is between documents."""
    folder = tmp_path_factory.mktemp("documents")
    name = request.param
    for kind, samples in zip(("packed", "apart"), rows(None if name == "eos_token_id" else BOS), strict=True):
        with MDSWriter(out=str(folder / kind / "train"), columns={"tokens": f"ndarray:int32:{S + 1}"}) as writer:
            for sample in samples:
                writer.write({"tokens": sample})
    return folder, f"{name} = {EOS if name == 'eos_token_id' else BOS}"


def config(separator: str) -> str:
    text = jobs.DATA[: jobs.DATA.index("[mosaic_eval")].replace("shuffle = true", "shuffle = false")
    return text.replace("num_canonical_nodes = 4", f"num_canonical_nodes = 1\n{separator}")


def train(folder: Path, data: Path, job: str, separator: str, *flags: str) -> Path:
    assert jobs.run_here(jobs.write_job(folder, data, job, config(separator)), *FLAGS, *flags) == 0
    return folder


def tokens(folder: Path, step: int) -> torch.Tensor:
    return torch.load(folder / f"out/tokens-{step}.pt")


@pytest.mark.parametrize("model", JOBS)
def test_a_row_of_documents_trains_as_a_row_for_each(
    model: str, data: tuple[Path, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, separator = data
    if "bos" in separator and model != "MPT" and installed().folder == "v02":
        arguments = jobs.write_job(tmp_path, folder / "packed", JOBS[model], config(separator))
        assert jobs.run_here(arguments, ASKED) == 1
        assert "TorchTitan 0.2.2 knows documents by the token at their end, and" in capfd.readouterr().err
        return
    apart = train(tmp_path / "apart", folder / "apart", JOBS[model], separator, APART)
    said = capfd.readouterr().err
    assert said.count(f"attention crosses their ends ({separator})") == 1, said
    packed = train(tmp_path / "packed", folder / "packed", JOBS[model], separator, PACKED, ASKED)
    assert f"attention stays within each ({separator})" in capfd.readouterr().err
    for step in range(3):
        torch.testing.assert_close(tokens(packed, step), tokens(apart, step), rtol=1e-4, atol=1e-5)
    for tag in (jobs.LOSS, "grad_norm"):
        assert jobs.scalars(packed, tag) == pytest.approx(jobs.scalars(apart, tag), rel=1e-5)
    ours, theirs = jobs.whole_state(packed, 1), jobs.whole_state(apart, 1)
    moments = [name for name in theirs if name.endswith(".exp_avg")]  # a tenth of the first gradients
    assert len(moments) > 10
    for name in moments:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6 * float(theirs[name].abs().max()))


@pytest.mark.parametrize("data", ["eos_token_id"], indirect=True)
def test_without_it_attention_crosses(data: tuple[Path, str], tmp_path: Path) -> None:
    folder, separator = data
    apart = train(tmp_path / "apart", folder / "packed", JOB, separator, PACKED, ASKED)
    across = train(tmp_path / "across", folder / "packed", JOB, separator, PACKED)
    first, second = tokens(apart, 0).view(2, S), tokens(across, 0).view(2, S)
    same = LENGTHS[0]  # nothing comes before the first document
    torch.testing.assert_close(first[:, :same], second[:, :same], rtol=1e-4, atol=1e-5)
    assert (first[:, same:] - second[:, same:]).abs().mean() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("data", ["eos_token_id"], indirect=True)
def test_in_layouts(data: tuple[Path, str], tmp_path: Path) -> None:
    """On two ranks each: halves of each layer's heads, and halves of the layers."""
    folder, separator = data
    whole = train(tmp_path / "whole", folder / "packed", JOB, separator, PACKED, ASKED)
    for degree in ("tensor", "pipeline"):
        arguments = jobs.write_job(tmp_path / degree, folder / "packed", jobs.JOB, config(separator))
        flags = ("--training.global_batch_size=2", "--training.steps=3", PACKED, ASKED)
        jobs.launch(arguments, *flags, f"--parallelism.{degree}_parallel_degree=2", ranks=2)
        for tag, tolerance in ((jobs.LOSS, 1e-4), ("grad_norm", 1e-3)):
            expected = pytest.approx(jobs.scalars(whole, tag), rel=tolerance)
            assert jobs.scalars(tmp_path / degree, tag) == expected, (degree, tag)


def test_a_command_on_checkpoints_has_the_same_model_without_data(prepared_data: Path, tmp_path: Path) -> None:
    from mosaic_photon.use.checkpoint import job_model

    arguments = jobs.write_job(tmp_path, prepared_data, jobs.JOB + "[mosaic]\nseparate_documents = true\n")
    assert job_model(arguments[1]).args.attn_mask_type == "block_causal"


REFUSED = {
    "no separator": ("llama3", "", "data.toml does not say which token is between documents: set eos_token_id or"),
    "an MPT's switch": ("MPT", "attn_config.attn_uses_sequence_id = false", "needs attn_config.attn_uses_sequence"),
    "a mask": ("llama3", 'attn_mask_type = "causal"', "needs attn_mask_type = 'block_causal', and [model.overr"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_contradicts_it_is_said_by_job_and_doctor(
    case: str, prepared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, override, says = REFUSED[case]
    separator = "" if case == "no separator" else f"eos_token_id = {EOS}"
    job = JOBS[model].replace("n_layers = 2", f"n_layers = 2\n{override}")
    arguments = jobs.write_job(tmp_path, prepared_data, job, config(separator))
    assert jobs.run_here(arguments, ASKED) == 1
    assert says in capsys.readouterr().err
    code, said = say_all(arguments, [ASKED], 1, monkeypatch, capsys)
    assert code == 1 and says in failures(said).replace("\n", " ")
    assert not (tmp_path / "out").exists()
