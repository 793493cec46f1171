"""What is said of attention at the ends of documents."""

from typing import Any

from mosaic_photon.job.documents import in_words
from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.titan.llama3_mup import TransformerModelArgs


def job(separate: bool, **separator: int) -> MosaicJobConfig:
    config = MosaicJobConfig()
    config.mosaic.dataloader = {"dataset": separator}
    config.mosaic.separate_documents = separate
    return config


def test_a_trainer_that_parts_by_the_end_token_is_not_said_to_part_by_the_first() -> None:
    args: Any = TransformerModelArgs(attn_type="flex", attn_mask_type="block_causal")
    assert (
        in_words(job(False, bos_token_id=1), args) == "attention stays within each (by the end token of the tokenizer)"
    )
    assert in_words(job(False, eos_token_id=2), args) == "attention stays within each (eos_token_id = 2)"
    assert in_words(job(True, bos_token_id=1), args) == "attention stays within each (bos_token_id = 1)"
