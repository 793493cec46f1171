"""How each callback of Composer and llm-foundry is tried, and what shows that it is right in a layout."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from layouts_jobs import FULL, LAYOUTS, ONE, layout

LAYOUT_OF = {
    "selective": LAYOUTS["selective checkpointing"],
    "full": layout(1, 8, FULL),
    "compile": LAYOUTS["compile"],
    "accumulation": LAYOUTS["2 accumulated"],
    "FSDP 2": LAYOUTS["FSDP2 ×2"],
    "TP 2": LAYOUTS["TP ×2"],
    "PP 2": LAYOUTS["PP ×2"],
    "resume": LAYOUTS[ONE],
}
"""Recomputation, torch.compile, a batch in two micro-batches, layouts of two processes; an interrupted plain run."""
COLUMNS = tuple(LAYOUT_OF)


@dataclass(frozen=True)
class Works:
    """A callback that works."""

    arguments: Mapping[str, Any] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    """What tags begin with whose numbers are to be those of one process; `watch/` are of layouts_callbacks.Watch."""
    there: tuple[str, ...] = ()
    """Tags of numbers that hang on the clock or the machine: they are to be reported at the same steps."""
    prints: str = ""
    """Pattern of what it prints in place of numbers."""
    anew: bool = False
    """After a resume it has no number for the first step."""
    idle: bool = False
    """It says that it has nothing to do on a machine without a GPU."""
    refused: tuple[str, ...] = ()
    """Columns in which it is refused before the model is built."""
    note: str = ""


LOSS = {"monitor": "LanguageCrossEntropy", "dataloader_label": "train"}
WORKS = {
    "activation_monitor": Works(
        {"interval": "2ba"},
        same=("activations/",),
        refused=("compile", "TP 2"),
        note="this project's, see above",
    ),
    "early_stopper": Works(
        LOSS | {"comp": "gt", "patience": "5ba"},
        same=("watch/best",),
        note="`train` and `eval` have LanguageCrossEntropy and LanguagePerplexity; patience goes on after a resume",
    ),
    "env_logging": Works(
        {"log_git": False, "log_docker": False, "log_system": True},
        prints='"environment_data"',
        note="printed; log_git needs workspace_dir",
    ),
    "fdiff_metrics": Works(
        {"diff_train_metrics": True},
        same=("loss/train/", "metrics/train/", "metrics/eval/"),
        note="goes on after a resume",
    ),
    "free_outputs": Works(same=("watch/logits_kept",)),
    "global_lr_scaling": Works(
        {"lr_scale": 0.5, "wd_pct": 0.1},
        same=("watch/decay", "lr"),
        note="decay is wd_pct of the peak rate, for groups with decay; llm-foundry's: of the first step's, for all",
    ),
    "kill_loss_spike": Works(
        {"window_size": 3}, same=("watch/spike_window",), note="a given window slides, and goes on after a resume"
    ),
    "layer_freezing": Works(
        {"layer_names": ["output.weight", "layers.0.feed_forward.w1.weight"]},
        same=("watch/frozen", "grad_norm"),
        note="unknown layers are found at the start",
    ),
    "lr_monitor": Works(
        same=("lr-AdamW/group0",), note="the rate that the step was made with; Composer's is the next step's"
    ),
    "memory_monitor": Works(prints="memory monitor only works on CUDA", idle=True, note="GPUs only"),
    "memory_snapshot": Works(
        {"remote_file_name": None},
        prints="memory snapshot only works on CUDA",
        idle=True,
        note="GPUs only; a resume needs overwrite = true",
    ),
    "nan_monitor": Works(same=("loss_metrics/global_avg_loss",)),
    "oom_observer": Works(
        {"remote_file_name": None},
        prints="OOMObserver only works on CUDA",
        idle=True,
        note="GPUs only; after an OOM a resume needs overwrite = true",
    ),
    "optimizer_monitor": Works(
        {"interval": "2ba"}, same=("l2_norm/", "max/moment2/", "min/moment2/"), note="this project's"
    ),
    "quasi_hyperbolic_parameter_monitor": Works(same=("quasi_hyperbolic/AdamW/group0/",), note="this project's"),
    "run_timeout": Works({"timeout": 1800}, same=("watch/timer",)),
    "runtime_estimator": Works(
        {"time_unit": "seconds"}, there=("time/remaining_estimate",), anew=True, note="begins anew after a resume"
    ),
    "scheduled_gc": Works({"batch_interval": 2}, same=("watch/garbage_collected",)),
    "speed_monitor": Works(
        {"window_size": 1},
        anew=True,
        same=("derived/",),
        there=("throughput/tokens_per_sec", "throughput/flops_per_sec", "time/total"),
        note="the FLOPs are TorchTitan's count; a window begins anew after a resume",
    ),
    "spike_guard": Works(
        same=("spike_guard/held_back",), note="this project's, see above; its means go on after a resume"
    ),
    "system_metrics_monitor": Works(there=("cpu_percentage", "cpu_memory_used")),
    "threshold_stopper": Works(
        LOSS | {"threshold": 0.1, "comp": "lt", "stop_on_batch": True}, same=("loss_metrics/global_avg_loss",)
    ),
}


def tables(works: Mapping[str, Works], **arguments: Mapping[str, Any]) -> str:
    """The job's tables of these callbacks, some with other arguments."""
    lines = []
    for name, one in works.items():
        lines.append(f"[callbacks.{name}]\n")
        given = {**one.arguments, **arguments.get(name, {})}
        lines += [f"{key} = {toml(value)}\n" for key, value in given.items()]
    return "".join(lines)


def toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"').replace("None", '""')
