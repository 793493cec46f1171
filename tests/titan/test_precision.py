"""The dtype that the summary and the doctor name is the one that the layers compute in, in every layout."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torchtitan.distributed.utils import maybe_enable_amp

from mosaic_photon.job.tables import MosaicJobConfig
from mosaic_photon.models import MPTMuPModelArgs, TitanComposerMPTMuP
from mosaic_photon.models.mpt_mup import parallelize_mpt
from mosaic_photon.titan.config import TORCH_DTYPE_MAP
from mosaic_photon.titan.layouts import ParallelDims, compute_dtype, parallel_dims, precision_line

SIZE = {"d_model": 32, "n_heads": 2, "n_layers": 1, "vocab_size": 64, "max_seq_len": 16}
LAYOUTS: dict[str, tuple[int, dict[str, int]]] = {
    "one process": (1, {}),
    "FSDP": (2, {}),
    "DDP": (2, {"data_parallel_replicate_degree": 2}),
    "HSDP": (4, {"data_parallel_replicate_degree": 2}),
    "TP": (2, {"tensor_parallel_degree": 2}),
    "TP and FSDP": (4, {"tensor_parallel_degree": 2}),
    "PP": (2, {"pipeline_parallel_degree": 2}),
    "PP and FSDP": (4, {"pipeline_parallel_degree": 2}),
}


def observed(job: MosaicJobConfig, dims: ParallelDims, args: MPTMuPModelArgs) -> str:
    """The dtype that a block's feed-forward gives, in a world whose other ranks never answer."""
    model: nn.Module = TitanComposerMPTMuP(args).to(TORCH_DTYPE_MAP[job.training.dtype])
    seen = []
    model.layers["0"].ffn.down_proj.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    model = parallelize_mpt(model, dims, job)
    with torch.no_grad(), maybe_enable_amp(dims, job.training.mixed_precision_param, "cpu"):
        model(torch.zeros(2, 16, dtype=torch.long))
    return str(seen[0]).removeprefix("torch.")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LAYOUTS)
def test_the_dtype_that_is_named_is_the_one_that_layers_compute_in(name):
    from torch.testing._internal.distributed import fake_pg  # noqa: F401  (the backend "fake")

    world_size, degrees = LAYOUTS[name]
    for dtype, mixed in (("float32", "bfloat16"), ("float32", "float32"), ("bfloat16", "float32")):
        job = MosaicJobConfig()
        job.training.dtype, job.training.mixed_precision_param = dtype, mixed
        job.training.seq_len, job.training.local_batch_size = 16, 2
        job.activation_checkpoint.mode = "none"
        for field, degree in degrees.items():
            setattr(job.parallelism, field, degree)
        args = MPTMuPModelArgs(**SIZE, attn_config={"fused_qkv": False}, tie_word_embeddings=False)
        dist.init_process_group("fake", store=dist.HashStore(), rank=0, world_size=world_size)
        try:
            dims = parallel_dims(job, world_size)
            dims.build_mesh()
            assert compute_dtype(job, dims) == observed(job, dims, args), (dtype, mixed)
        finally:
            dist.destroy_process_group()
        line = precision_line(job, dims)
        assert line.startswith(compute_dtype(job, dims))
        assert ("not training.mixed_precision_param" in line) == (compute_dtype(job, dims) != mixed)
