"""One stager serves all of a job's asynchronous checkpoints."""

import torch
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from mosaic_photon.compat import reused_stager


def test_a_stager_serves_more_than_one_checkpoint() -> None:
    reused_stager.apply()
    stager = DefaultStager(StagingOptions(False, False, False, False))
    weight = torch.zeros(3)
    for step in range(3):
        weight.fill_(step)
        staged = stager.stage({"model": {"weight": weight}, "step": step})
        assert isinstance(staged, dict)
        assert staged["model"]["weight"].tolist() == [step] * 3 and staged["step"] == step
        assert staged["model"]["weight"].data_ptr() != weight.data_ptr()
