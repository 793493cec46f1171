"""Documents in concatenated text are told apart as llm-foundry does, and a model that asks is told of them."""

from pathlib import Path

import pytest
import torch
from llmfoundry.data.text_data import ConcatenatedSequenceCollatorWrapper

import jobs
from layouts_jobs import MPT
from mosaic_photon.documents import Separator

DOCUMENTS = MPT.replace("fused_qkv = false", "fused_qkv = false, attn_uses_sequence_id = true")
EOS = 'split = "train"\neos_token_id = 1'


@pytest.mark.parametrize("name", ["eos_token_id", "bos_token_id"])
def test_documents_are_counted_as_llm_foundry_counts_them(name: str) -> None:
    tokens = torch.randint(0, 4, (16, 50), generator=torch.Generator().manual_seed(0))
    theirs = ConcatenatedSequenceCollatorWrapper(lambda rows: {"input_ids": torch.stack(rows)}, **{name: 1})
    ours = Separator(1, begins=name == "bos_token_id").sequence_ids(tokens)
    assert torch.equal(ours, theirs(list(tokens))["sequence_id"])


def test_a_model_that_keeps_documents_apart_needs_to_know_what_parts_them(
    tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert jobs.run_here(jobs.write_job(tmp_path, prepared_data, DOCUMENTS)) == 1
    assert "set eos_token_id or bos_token_id" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_attention_stays_within_documents(tmp_path: Path, prepared_data: Path) -> None:
    data = jobs.DATA.replace('split = "train"', EOS)
    losses = []
    for name, job in (("apart", DOCUMENTS), ("together", MPT)):
        assert jobs.run_here(jobs.write_job(tmp_path / name, prepared_data, job, data)) == 0
        losses.append(jobs.scalars(tmp_path / name))
    assert losses[0].keys() == losses[1].keys()
    assert all(losses[0][step] != losses[1][step] for step in losses[0])
