"""Every callback of Composer and llm-foundry works or is refused; docs/callbacks.md's table comes from here.

python tests/callbacks/test_which_callbacks.py      writes the table into docs/callbacks.md

`test_in_layouts.py` runs those that work.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import pytest
from works import COLUMNS, WORKS, Works

import jobs
from mosaic_photon.callbacks.refused import REFUSED, refusal
from mosaic_photon.callbacks.registry import build_callbacks, find_class
from mosaic_photon.errors import ConfigError

DOCS = Path(__file__).parents[2] / "docs" / "callbacks.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


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
    """The docs' two tables: what works, in which layouts, and what is refused."""
    classes = all_classes()
    works = [[classified(name, classes), *cells(one), one.note] for name, one in sorted(WORKS.items())]
    reasons = {name: reason for name, cls in sorted(classes.items()) if (reason := refusal(cls))}
    refused = [[classified(name, classes), reason] for name, reason in reasons.items()]
    return "\n".join([*rows(["works", *COLUMNS, ""], works), "", *rows(["refused", "because"], refused)]) + "\n"


def rows(head: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *body)]


def classified(name: str, classes: dict[str, type]) -> str:
    return f"`{name}` ({classes[name].__module__.split('.')[0]} `{classes[name].__name__}`)"


def cells(one: Works) -> list[str]:
    """What a callback does in each layout."""
    return ["refused" if column in one.refused else "idle" if one.idle else "✓" for column in COLUMNS]


def test_every_callback_is_sorted_and_the_docs_say_how():
    classes = all_classes()
    refused = {name for name, cls in classes.items() if refusal(cls)}
    assert refused | set(WORKS) == set(classes)
    assert len(refused) == len(REFUSED)
    text = DOCS.read_text()
    assert text[text.index(BEGIN) + len(BEGIN) : text.index(END)] == table()


def test_a_job_with_a_frozen_layer_resumes(tmp_path, prepared_data):
    arguments = jobs.write_job(tmp_path, prepared_data)
    with (tmp_path / "job.toml").open("a") as job:
        job.write('[callbacks.layer_freezing]\nlayer_names = ["output.weight"]\n')
    for steps in (2, 4):
        flags = (f"--training.steps={steps}", "--checkpoint.enable=true", "--checkpoint.interval=100")
        assert jobs.run_here(arguments, *flags) == 0
    assert set(jobs.scalars(tmp_path)) == {1, 2, 3, 4}


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
