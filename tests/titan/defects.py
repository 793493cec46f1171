"""Shows upstream's defects without their workarounds, on two ranks: torchrun ... defects.py OUT.json NAME...

Rank 0 writes for each name whether the defect is still there, or what went wrong when it was looked for.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HANDLER = signal.getsignal(signal.SIGTERM)
import composer.callbacks  # noqa: E402
import composer.core  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402

from mosaic_photon.compat import cpu_device_type  # noqa: E402, F401  (before TorchTitan)

sys.path.append(str(Path(__file__).parent.parent))


def raises(kinds: type[Exception] | tuple[type[Exception], ...], call: Callable[..., Any], *args: Any) -> bool:
    try:
        call(*args)
    except kinds:
        return True
    return False


def has_no_state(callback: type) -> bool:
    return callback.state_dict is composer.core.Callback.state_dict


def composer_early_stopper() -> bool:
    return has_no_state(composer.callbacks.EarlyStopper)


def composer_node_rank() -> bool:
    os.environ["GROUP_RANK"] = "3"
    os.environ.pop("NODE_RANK", None)
    from composer.utils.dist import MissingEnvironmentError, get_node_rank

    return raises(MissingEnvironmentError, get_node_rank) or get_node_rank() != 3


def composer_signals() -> bool:
    return signal.getsignal(signal.SIGTERM) is not HANDLER


def foundry_fdiff_metrics() -> bool:
    from llmfoundry.callbacks import FDiffMetrics

    return has_no_state(FDiffMetrics)


def foundry_kill_loss_spike() -> bool:
    from llmfoundry.callbacks import KillLossSpike

    return has_no_state(KillLossSpike)


def foundry_layer_freezing() -> bool:
    from llmfoundry.callbacks import LayerFreezing

    freezing = LayerFreezing(["weight", "of another stage"])
    return raises(Exception, freezing.fit_start, SimpleNamespace(model=nn.Linear(2, 2)), None)


def foundry_lr_scaling() -> bool:
    from llmfoundry.callbacks import GlobalLRScaling

    group = {"lr": 0.0, "initial_lr": 1.0, "weight_decay": 0.1}
    optimizers = [SimpleNamespace(param_groups=[group])]
    GlobalLRScaling(1.0, wd_pct=0.1).fit_start(SimpleNamespace(optimizers=optimizers, schedulers=[]), None)
    return group["weight_decay"] != 0.1


def streaming_s3_retries() -> bool:
    from streaming.base.storage import S3Downloader

    return "config" not in inspect.signature(S3Downloader._create_s3_client).parameters


def cpu_flex_attention() -> bool:
    from torch.nn.attention.flex_attention import flex_attention

    q, k, v = torch.randn(3, 1, 1, 16, 16, requires_grad=True)
    return raises(NotImplementedError, lambda: flex_attention(q, k, v).sum().backward())


def cpu_metrics() -> bool:
    from torchtitan.components.metrics import DeviceMemoryMonitor

    return raises(AttributeError, DeviceMemoryMonitor, "cpu")


def cpu_pg_timeouts() -> bool:
    from torchtitan.distributed import utils

    dims: Any = SimpleNamespace(get_all_one_dimensional_meshes=dict)
    return raises(TypeError, utils.set_pg_timeouts, timedelta(seconds=100), dims)


def cpu_histogram() -> bool:
    return raises(RuntimeError, lambda: torch.histc(torch.tensor([1, 2]), bins=4, min=0, max=4))


def moe_load_balancing() -> bool:
    from torchtitan.components import optimizer

    build = optimizer.build_optimizers_with_moe_load_balancing
    takes = list(inspect.signature(build).parameters)
    hooks = [name for name in vars(optimizer) if "register" in name and "balanc" in name]
    return not hooks and not any("build" in name or "fn" in name for name in takes)


def grouped_mm() -> bool:
    if importlib.util.find_spec("torchtitan.models.common"):
        from torchtitan.models.common import moe

        return "for_loop" not in inspect.getsource(moe)
    from torchtitan.models.qwen3.model import args

    return "use_grouped_mm" not in inspect.getsource(args)


def shtab_rest() -> bool:
    import shtab

    parser = argparse.ArgumentParser("words")
    parser.add_argument("files", nargs="*", help="some").complete = shtab.FILE  # type: ignore[attr-defined]
    return '"(*):' in shtab.complete(parser, "zsh")


def reused_stager() -> bool:
    from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

    stager = DefaultStager(StagingOptions(False, False, False, False))
    stager.stage({"weight": torch.ones(2)})
    return raises(KeyError, stager.stage, {"weight": torch.ones(2)})


def titan_finite_loss() -> bool:
    from torchtitan.trainer import Trainer

    return "math.isfinite" in inspect.getsource(Trainer.train_step)


def tokenizer_end_token() -> bool:
    from torchtitan.components.tokenizer import HuggingFaceTokenizer

    import tokenizers_made

    with tempfile.TemporaryDirectory() as folder:
        made = tokenizers_made.byte_level(Path(folder) / "made")
        (made / "special_tokens_map.json").write_text(json.dumps({"eos_token": "</s>"}))
        return HuggingFaceTokenizer(tokenizer_path=str(made)).eos_id is None


def newer_checkpoints() -> bool:
    from torch.distributed.checkpoint.metadata import TensorProperties

    properties = TensorProperties()
    return raises(ValueError, properties.__setstate__, (*properties.__getstate__(), None))


def gloo_fsdp_reduction() -> bool:
    from torch.distributed.fsdp import fully_shard

    layer = nn.Linear(4, 4)
    fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
    layer.set_gradient_divide_factor(1.0)
    return raises(RuntimeError, lambda: layer(torch.ones(1, 4)).sum().backward())


def tensor_parallel_gradients() -> bool:
    from torch.distributed.tensor import DTensor, Partial

    gradient = DTensor.from_local(torch.ones(2), init_device_mesh("cpu", (2,)), [Partial()])
    torch._foreach_mul_([gradient], 0.5)
    return gradient.full_tensor().tolist() != [1.0, 1.0]


def layout_independent_init() -> bool:
    from torch.distributed.tensor import Shard, distribute_tensor

    torch.manual_seed(0)
    whole = nn.init.normal_(torch.empty(4, 2))
    torch.manual_seed(0)
    sharded = distribute_tensor(torch.empty(4, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    return not torch.equal(nn.init.normal_(sharded).full_tensor(), whole)


def main(out: str, *names: str) -> None:
    dist.init_process_group("gloo")
    found: dict[str, bool | str] = {}
    for name in names:
        try:
            found[name] = globals()[name]()
        except Exception:
            found[name] = traceback.format_exc()
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
