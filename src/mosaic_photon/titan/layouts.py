"""How TorchTitan lays a model out on devices."""

from torchtitan.distributed import ParallelDims
from torchtitan.distributed.activation_checkpoint import apply_ac
from torchtitan.distributed.context_parallel import apply_cp_to_attention_module
from torchtitan.distributed.pipeline_parallel import generate_llm_fqn_per_model_part, pipeline_llm
from torchtitan.distributed.tensor_parallel import maybe_enable_async_tp
from torchtitan.models.llama3.infra.parallelize import (
    _op_sac_save_list as op_sac_save_list,
)
from torchtitan.models.llama3.infra.parallelize import (
    apply_compile,
    apply_ddp,
    disable_fsdp_gradient_division,
)

__all__ = [
    "ParallelDims",
    "apply_ac",
    "apply_compile",
    "apply_cp_to_attention_module",
    "apply_ddp",
    "disable_fsdp_gradient_division",
    "generate_llm_fqn_per_model_part",
    "maybe_enable_async_tp",
    "op_sac_save_list",
    "pipeline_llm",
]
