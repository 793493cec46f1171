"""Documents in concatenated text are told apart, and a model that asks is told of them."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import jobs
from layouts_jobs import MPT
from mosaic_photon.dataloader.documents import document_counter

DOCUMENTS = MPT.replace("fused_qkv = false", "fused_qkv = false, attn_uses_sequence_id = true")
EOS = 'split = "train"\neos_token_id = 1'


@pytest.mark.parametrize(("name", "documents"), [("eos_token_id", [0, 0, 1, 1, 2]), ("bos_token_id", [0, 1, 1, 2, 2])])
def test_a_separator_ends_a_document_or_begins_one(name: str, documents: list[int]) -> None:
    asks = SimpleNamespace(attn_config={"attn_uses_sequence_id": True})
    count = document_counter(asks, {name: 1})
    assert count is not None and count(torch.tensor([[5, 1, 5, 1, 5]])).tolist() == [documents]
    assert document_counter(SimpleNamespace(), {name: 1}) is None


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
