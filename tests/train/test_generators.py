"""Random numbers: a resume goes on with them; ranks draw as Composer's do, tensor-parallel ones alike."""

import json
import logging
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

import jobs
from generators_callback import digest
from layouts_jobs import Layout, layout, run_plan
from mosaic_photon.train.generators import seed_all, seed_of

JOB = (
    jobs.JOB.replace('name = "llama3_mosaic"', 'name = "mpt_mup_mosaic"')
    .replace(
        "dim = 64",
        "d_model = 64\nmax_seq_len = 64\ntie_word_embeddings = false\nresid_pdrop = 0.2\nemb_pdrop = 0.2\n"
        "attn_config = {{ fused_qkv = false, attn_pdrop = 0.2 }}",
    )
    .replace("freq = 2", "freq = 1\nenable = true\nsteps = 2")
    + '\n[callbacks."generators_callback:Told"]\nfolder = "{out}/told"\n'
)
SAVE = ("--checkpoint.enable=true", "--checkpoint.interval=2")


def told(folder: Path, rank: int) -> dict[int, list[dict[str, str]]]:
    """Step -> the generators of each time that it was made."""
    steps: dict[int, list[dict[str, str]]] = {}
    for line in (folder / f"out/told/{rank}.jsonl").read_text().splitlines():
        states = json.loads(line)
        steps.setdefault(states.pop("step"), []).append(states)
    return steps


def test_a_resumed_run_draws_what_one_without_a_stop_draws(
    tmp_path: Path, prepared_data: Path, capfd: pytest.CaptureFixture
) -> None:
    whole, legs = (jobs.write_job(tmp_path / name, prepared_data, JOB) for name in ("whole", "legs"))
    assert jobs.run_here(whole) == 0
    assert jobs.run_here(legs, *SAVE, "--training.steps=2") == 0
    assert jobs.run_here(legs, *SAVE) == 0
    losses = jobs.scalars(tmp_path / "whole")
    assert list(losses) == [1, 2, 3, 4]
    assert jobs.scalars(tmp_path / "legs") == losses
    assert told(tmp_path / "legs", 0) == told(tmp_path / "whole", 0)
    assert "random generators" not in capfd.readouterr().out
    # of a checkpoint without generators, as releases before wrote them: neither the first steps' again nor in silence
    flags = ("--checkpoint.load_step=2", "--training.steps=3", "--checkpoint.exclude_from_loading=generators")
    assert jobs.run_here(legs, *SAVE, *flags) == 0
    assert "is not in the checkpoint: dropout goes on from step 2" in capfd.readouterr().out
    steps = told(tmp_path / "legs", 0)
    assert steps[3][1] not in (steps[3][0], *steps[1], *steps[2])


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "DDP, whole": (layout(2, 2, "--training.steps=4", replicate=2, shard=1),),
    "DDP": (
        layout(2, 2, "--training.steps=2", replicate=2, shard=1),
        layout(2, 2, "--training.steps=4", replicate=2, shard=1),
    ),
    "TP, then another": (
        layout(2, 4, "--training.steps=2", tp=2),
        layout(2, 2, "--training.steps=3", shard=2),
        layout(1, 4, "--training.steps=4"),
    ),
    "PP": (layout(2, 4, "--training.steps=1", "--validation.local_batch_size=4", pp=2),),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, prepared_data: Path) -> Path:
    root = tmp_path_factory.mktemp("runs")
    plan: list[dict[str, object]] = []
    for name, legs in LAYOUTS.items():
        for number, leg in enumerate(legs):
            arguments = jobs.write_job(root / name, prepared_data, JOB)
            flags = [*leg.flags, *SAVE, "--checkpoint.interval=1000"]
            log = str(root / name / f"log{number}")
            plan.append({"name": name, "ranks": leg.ranks, "arguments": [*arguments, "--", *flags], "log": log})
    run_plan(plan, root)
    return root


def composers(rank: int) -> dict[str, str]:
    """The generators of Composer's rank at the first step."""
    from composer.utils import reproducibility

    logging.getLogger("composer").setLevel(logging.WARNING)
    reproducibility.seed_all(3 + rank)
    return digest()


def test_each_data_parallel_rank_draws_as_composers_does(runs: Path) -> None:
    for rank in (0, 1):
        assert told(runs / "DDP, whole", rank)[1] == [composers(rank)]


def test_ranks_go_on_each_with_its_own(runs: Path) -> None:
    assert jobs.scalars(runs / "DDP") == jobs.scalars(runs / "DDP, whole")
    for rank in (0, 1):
        assert told(runs / "DDP", rank) == told(runs / "DDP, whole", rank)


def test_a_tensor_parallel_group_draws_the_same_and_stages_do_not(runs: Path) -> None:
    first, second = (told(runs / "TP, then another", rank) for rank in (0, 1))
    assert [first[step] for step in (1, 2)] == [second[step] for step in (1, 2)]
    assert told(runs / "PP", 0)[1] != told(runs / "PP", 1)[1]


def test_another_layout_is_said_once_and_draws_anew(runs: Path) -> None:
    folder = runs / "TP, then another"
    first, second = (told(folder, rank) for rank in (0, 1))
    drawn = [*first[1], *first[2], *first[3], *second[3], *first[4]]
    assert all(drawn.count(states) == 1 for states in drawn)
    for leg, layout_before in ((1, "'tp': 2"), (2, "'dp_shard': 2")):
        log = (folder / f"log{leg}").read_text()
        assert log.count("random generators is of another layout") == 1, log
        assert layout_before in log


def test_a_rank_adds_little_to_what_every_rank_reads(runs: Path) -> None:
    metadata = dcp.FileSystemReader(runs / "DDP, whole/out/checkpoint/step-4").read_metadata()
    keys = sorted(key for key in metadata.state_dict_metadata if key.startswith("generators."))
    assert keys == ["generators.rank_0", "generators.rank_1"]
    tables = ("state_dict_metadata", "storage_data", "planner_data")
    entries = [entry for table in tables for entry in getattr(metadata, table).items() if keys[1] in repr(entry[0])]
    assert len(entries) == 3
    assert len(pickle.dumps(entries)) < 500


def test_seeds() -> None:
    assert [seed_of(3, 0, rank) for rank in (0, 1, 2)] == [3, 4, 5]
    assert len({seed_of(3, step, rank) for step in range(20) for rank in range(20)}) == 400
    assert len({seed_of(seed, 7, 0) for seed in (-1, 0, 1, 2**63 - 1)}) == 4


def test_a_seed_beyond_numpys() -> None:
    seed_all(2**63)
    assert torch.initial_seed() == 2**63
