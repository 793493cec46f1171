"""Every callback of Composer and llm-foundry, tried in a job or refused; docs/callbacks.md's table comes from here.

python tests/callbacks/test_which_callbacks.py      writes the table into docs/callbacks.md
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest

import jobs
from mosaic_photon.callbacks.refused import REFUSED, refusal
from mosaic_photon.callbacks.registry import build_callbacks, find_class
from mosaic_photon.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "callbacks.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


@dataclass(frozen=True)
class Works:
    """How a callback is tried, and the metric that shows that it ran; None for those that log nothing here."""

    shows: str | None
    arguments: dict[str, Any] = field(default_factory=dict)
    note: str = ""


WORKS = {
    "activation_monitor": Works(
        "activations/l2_norm/layers.0.attention.wq_output.0", {"interval": "2ba"}, "not of complex tensors"
    ),
    "early_stopper": Works(
        None,
        {"monitor": "LanguageCrossEntropy", "dataloader_label": "eval", "comp": "lt", "patience": "9ba"},
        "`train` and `eval` have LanguageCrossEntropy and LanguagePerplexity",
    ),
    "env_logging": Works(
        None, {"log_git": False, "log_docker": False, "log_system": True}, "printed; log_git needs /workspace"
    ),
    "fdiff_metrics": Works("loss/train/total_fdiff", {"diff_train_metrics": True}),
    "free_outputs": Works(None),
    "global_lr_scaling": Works(None, {"lr_scale": 0.5}),
    "kill_loss_spike": Works(None, {"window_size": 2}),
    "layer_freezing": Works(None, {"layer_names": ["output.weight"]}),
    "lr_monitor": Works("lr-AdamW/group0"),
    "memory_monitor": Works(None, note="GPUs only"),
    "memory_snapshot": Works(None, {"remote_file_name": None}, "GPUs only"),
    "nan_monitor": Works(None),
    "oom_observer": Works(None, {"remote_file_name": None}, "GPUs only"),
    "optimizer_monitor": Works(
        "l2_norm/moment2/layers.1.feed_forward.w1.weight", {"interval": "2ba"}, "this project's"
    ),
    "quasi_hyperbolic_parameter_monitor": Works("quasi_hyperbolic/AdamW/group0/beta2", note="this project's"),
    "run_timeout": Works(None, {"timeout": 1800}),
    "runtime_estimator": Works("time/remaining_estimate", {"time_unit": "seconds"}),
    "scheduled_gc": Works(None, {"batch_interval": 2}),
    "speed_monitor": Works("throughput/tokens_per_sec", {"window_size": 2}, "the FLOPs are TorchTitan's count"),
    "system_metrics_monitor": Works("cpu_percentage"),
    "threshold_stopper": Works(
        None, {"monitor": "LanguageCrossEntropy", "dataloader_label": "train", "threshold": 0.1, "comp": "lt"}
    ),
}


def registered() -> dict[str, type]:
    """Name -> class of every callback in llm-foundry's registries."""
    import llmfoundry.callbacks  # noqa: F401  (fills them)
    from llmfoundry import registry

    registries = (registry.callbacks, registry.callbacks_with_config)
    return {name: one.get(name) for one in registries for name in one.get_all()}


def all_classes() -> dict[str, type]:
    """Every callback that the two packages export, registered or not: name in a job -> class."""
    import composer.callbacks
    import llmfoundry.callbacks

    names = {base: name for name, cls in registered().items() for base in cls.__mro__[:2]}
    classes = dict(registered())
    for package in (composer.callbacks, llmfoundry.callbacks):
        for exported in package.__all__:
            cls = getattr(package, exported)
            if cls not in names and exported != "OptimizerMonitor":  # ours takes its name
                classes[f"{package.__name__}:{exported}"] = cls
    return classes


def table() -> str:
    """The docs' table, sorted: works first."""
    lines = ["| callback | class | |", "|---|---|---|"]
    classes = all_classes()
    for name in sorted(classes, key=lambda name: (refusal(classes[name]) is not None, name)):
        cls = classes[name]
        reason = refusal(cls)
        verdict = f"refused: {reason}" if reason else "works" + (f"; {WORKS[name].note}" if WORKS[name].note else "")
        lines.append(f"| `{name}` | {cls.__module__.split('.')[0]} `{cls.__name__}` | {verdict} |")
    return "\n".join(lines) + "\n"


def test_every_callback_is_sorted_and_the_docs_say_how():
    classes = all_classes()
    refused = {name for name, cls in classes.items() if refusal(cls)}
    assert refused | set(WORKS) == set(classes)
    assert len(refused) == len(REFUSED)
    text = DOCS.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


def test_all_that_work_run_together(tmp_path, prepared_data):
    arguments = jobs.write_job(tmp_path, prepared_data)
    with (tmp_path / "job.toml").open("a") as job:
        for name, works in WORKS.items():
            job.write(f"[callbacks.{name}]\n")
            job.writelines(f"{key} = {toml(value)}\n" for key, value in works.arguments.items())
    flags = ("--training.steps=4", "--validation.enable=true", "--validation.steps=2", "--checkpoint.enable=true")
    assert jobs.run_here(arguments, *flags) == 0
    for name, works in WORKS.items():
        if works.shows is not None:
            logged = jobs.scalars(tmp_path, works.shows)
            assert logged, name
            assert set(logged) <= {0, 1, 2, 3, 4}, name
    assert set(jobs.scalars(tmp_path, "l2_norm/grad/global")) == {2, 4}
    assert set(jobs.scalars(tmp_path, "lr-AdamW/group0")) == {1, 2, 3, 4}
    assert jobs.scalars(tmp_path, "l2_norm/param/output.weight") == {}  # frozen


def test_a_job_with_a_frozen_layer_resumes(tmp_path, prepared_data):
    arguments = jobs.write_job(tmp_path, prepared_data)
    with (tmp_path / "job.toml").open("a") as job:
        job.write('[callbacks.layer_freezing]\nlayer_names = ["output.weight"]\n')
    for steps in (2, 4):
        flags = (f"--training.steps={steps}", "--checkpoint.enable=true", "--checkpoint.interval=100")
        assert jobs.run_here(arguments, *flags) == 0
    assert set(jobs.scalars(tmp_path)) == {1, 2, 3, 4}


def toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value).replace("'", '"').replace("None", '""')


@pytest.mark.parametrize("name", ["generate_callback", "hf_checkpointer", "composer.callbacks:CheckpointSaver"])
def test_refused_callbacks_say_why_before_they_are_built(name):
    reason = refusal(find_class(name))
    with pytest.raises(ConfigError, match="is refused") as error:
        build_callbacks({name: {"whatever": 1}})
    assert reason is not None
    assert reason in str(error.value)


if __name__ == "__main__":
    text = DOCS.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    DOCS.write_text(before + table() + after)
