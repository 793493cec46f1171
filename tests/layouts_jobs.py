"""Layouts, the jobs that are run in each of them, and what a job's losses are compared with."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import jobs
import mds_data
from mosaic_photon.titan.releases import installed

LOSS, NORM = jobs.LOSS, "grad_norm"
TOLERANCE = {LOSS: 1e-4, NORM: 1e-3}
"""Largest relative difference from one process, in any step."""

STEPS = 10
STEPS_PER_LINK = 2


@dataclass(frozen=True)
class Layout:
    """How many processes, what each does, and in how many micro-batches the global batch of 8 is taken."""

    ranks: int
    flags: tuple[str, ...]


def layout(ranks: int, micro_batch: int, *flags: str, **degrees: int) -> Layout:
    """A layout with parallel degrees by their short names."""
    names = {"replicate": "data_parallel_replicate", "shard": "data_parallel_shard", "tp": "tensor_parallel"}
    names |= {"pp": "pipeline_parallel", "cp": "context_parallel"}
    given = [f"--parallelism.{names[name]}_degree={degree}" for name, degree in degrees.items()]
    return Layout(ranks, (f"--training.local_batch_size={micro_batch}", *given, *flags))


FULL, SELECTIVE = (f"--activation_checkpoint.mode={mode}" for mode in ("full", "selective"))
ONE = "one process"
LAYOUTS = {
    ONE: layout(1, 8),
    "2 accumulated": layout(1, 4),
    "4 accumulated": layout(1, 2),
    "FSDP2 ×2": layout(2, 4, shard=2),
    "FSDP2 ×2, 2 accumulated": layout(2, 2, shard=2),
    "DDP ×2": layout(2, 4, replicate=2, shard=1),
    "DDP ×2, 2 accumulated": layout(2, 2, replicate=2, shard=1),
    "HSDP 2×2": layout(4, 2, replicate=2, shard=2),
    "TP ×2": layout(2, 8, tp=2),
    "PP ×2": layout(2, 8, pp=2),
    "PP ×2, interleaved": layout(2, 8, "--parallelism.pipeline_parallel_schedule=Interleaved1F1B", pp=2),
    "PP ×2, 2 accumulated": layout(2, 4, pp=2),
    "FSDP2 ×2, TP ×2": layout(4, 4, shard=2, tp=2),
    "FSDP2 ×2, PP ×2": layout(4, 4, shard=2, pp=2),
    "TP ×2, PP ×2": layout(4, 8, tp=2, pp=2),
    "selective checkpointing": layout(1, 8, SELECTIVE),
    "FSDP2 ×2, full checkpointing": layout(2, 4, FULL, shard=2),
    "TP ×2, full checkpointing": layout(2, 8, FULL, tp=2),
    "PP ×2, selective checkpointing": layout(2, 8, SELECTIVE, pp=2),
    "compile": layout(1, 8, "--compile.enable"),
    "FSDP2 ×2, compile": layout(2, 4, "--compile.enable", shard=2),
    "FSDP2 ×2, selective checkpointing, compile": layout(2, 4, "--compile.enable", SELECTIVE, shard=2),
    "DDP ×2, selective checkpointing, compile": layout(2, 4, "--compile.enable", SELECTIVE, replicate=2, shard=1),
    "HSDP 2×2, full checkpointing": layout(4, 2, FULL, replicate=2, shard=2),
    "TP ×2, compile": layout(2, 8, "--compile.enable", tp=2),
    "PP ×2, compile": layout(2, 8, "--compile.enable", pp=2),
}
CP = {
    "CP ×2": layout(2, 8, cp=2),
    "FSDP2 ×2, CP ×2": layout(4, 4, shard=2, cp=2),
    "TP ×2, CP ×2": layout(4, 8, tp=2, cp=2),
    "PP ×2, CP ×2": layout(4, 8, pp=2, cp=2),
}
if ON_03 := installed().folder == "v03":  # the others do not have them on a CPU
    LAYOUTS |= {
        "DDP ×2, TP ×2": layout(4, 4, replicate=2, shard=1, tp=2),
        "DDP ×2, PP ×2": layout(4, 4, replicate=2, shard=1, pp=2),
        **CP,
    }
CHAIN = (
    ONE,
    "FSDP2 ×2",
    "DDP ×2",
    "TP ×2",
    "PP ×2",
    "HSDP 2×2",
    "FSDP2 ×2, TP ×2",
    "FSDP2 ×2, PP ×2",
    "4 accumulated",
)
"""Layouts of a run that changes its layout every two steps."""

JOB = (
    jobs.JOB.replace("total_steps = 1000", "total_steps = 20")
    .replace("global_batch_size = 4", "global_batch_size = 8")
    .replace("seq_len = 64\nmixed", "seq_len = 64\nmax_norm = 0.3\nmixed")  # every step's gradients are clipped
)
MPT = JOB.replace("llama3_mosaic", "mpt_mup_mosaic").replace(
    "dim = 64\nn_layers = 2\nn_heads = 4",
    "d_model = 64\nn_layers = 2\nn_heads = 4\nmax_seq_len = 64\ntie_word_embeddings = false\n"
    "attn_config = {{fused_qkv = false}}",
)
QHADOPT = 'name = "QHADOPT"\nweight_decay = 1e-4\ndecouple = true\n[optimizer.kwargs]\nbetas = [0.95, 0.99]'
WSD = """[lr_scheduler]
name = "constant_with_sqrt_cooldown_with_warmup"
[lr_scheduler.kwargs]
t_warmup = "3ba"
t_cooldown = "10ba"
t_max = "20ba"
"""
MUP = "\n[mup]\nenabled = true\nbase_width = 32\nbase_depth = 1\n"


def with_qhadopt(job: str) -> str:
    """QHADOPT and a warmup-stable-decay schedule in place of AdamW and TorchTitan's."""
    begin, end = job.index("[lr_scheduler]"), job.index("[training]")
    job = job[:begin] + WSD + job[end:]
    return job.replace('name = "AdamW"\nlr = 3e-3', f"lr = 3e-3\n{QHADOPT}")


DATA = jobs.DATA.replace('split = "train"', 'split = "train"\neos_token_id = 1')
"""The MPT without muP keeps documents apart."""
BY_STREAM = "\n[mosaic]\nloss_per_stream = true\n"
STREAMS = ("web__2026", "books")
"""Of the data of a job that ends so, see `mds_data.write_two_streams`."""
JOBS = {
    "llama3, AdamW": JOB + BY_STREAM,
    "llama3, QHADOPT": with_qhadopt(JOB),
    "MPT, AdamW": MPT.replace("fused_qkv = false", "fused_qkv = false, attn_uses_sequence_id = true"),
    "MPT muP, AdamW": MPT + MUP + BY_STREAM,
    "MPT muP, QHADOPT": with_qhadopt(MPT) + MUP,
}
LONG = "llama3, 256 tokens"
if ON_03:  # which shares sequences out in blocks of 128
    JOBS[LONG] = JOB.replace("seq_len = 64\nmax_norm", "seq_len = 256\nmax_norm") + BY_STREAM


def layouts_of(job: str) -> list[str]:
    """What a job is tried in beside one process."""
    return [name for name in LAYOUTS if name != ONE and (name in CP) == (job == LONG)]


CALLBACKS = """
[callbacks.optimizer_monitor]
interval = "1ba"
[callbacks."layouts_callbacks:Counter"]
"""


def entry(
    folder: Path, name: str, layout: Layout, job: str, data: Path, *flags: str, config: str = ""
) -> dict[str, object]:
    """One job of the driver's plan, with its configs written into `folder`; `config` is the data's, if not usual."""
    config = config or (mds_data.TWO_STREAMS if BY_STREAM in job else DATA)
    arguments = jobs.write_job(folder, data, job, config)
    return {
        "name": name,
        "ranks": layout.ranks,
        "arguments": [*arguments, "--", *layout.flags, *flags],
        "log": str(folder / "log"),
    }


def chain(folder: Path, job: str, layouts: tuple[str, ...], data: Path) -> list[dict[str, object]]:
    """A run in `folder` that goes on from its own checkpoint in the next layout every STEPS_PER_LINK steps."""
    flags = ("--checkpoint.enable", "--checkpoint.interval=1000")
    return [
        entry(folder, name, LAYOUTS[name], job, data, *flags, f"--training.steps={STEPS_PER_LINK * number}")
        for number, name in enumerate(layouts, 1)
    ]


def run_plan(plan: list[dict[str, object]], folder: Path, python: str = sys.executable) -> dict[str, object]:
    """Run the jobs one after the other; prints each job's seconds, and the log of one that fails.

    Returns each job's exit code by its name, or what its ranks failed of.

    Args:
        python: that of the environment to run them in.
    """
    (folder / "plan.json").write_text(json.dumps(plan))
    driver = [python, str(Path(__file__).parent / "layouts_driver.py"), str(folder / "plan.json")]
    settings, results = {"TORCHINDUCTOR_COMPILE_THREADS": "1"}, {}
    with (folder / "driver.log").open("w") as errors:
        process = subprocess.Popen(driver, env=os.environ | settings, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        for job, line in zip(plan, process.stdout, strict=False):
            print(line, end="", flush=True)
            results[str(job["name"])] = json.loads(line)["result"]
            if results[str(job["name"])] != 0:
                print(Path(str(job["log"])).read_text()[-4000:])
        process.wait()
    return results


def difference(folder: Path, reference: Path, tag: str, steps: int) -> float:
    """Largest relative difference of a metric between two runs over their first `steps` steps.

    Raises:
        AssertionError: one of the runs did not report every one of the steps.
    """
    ours, theirs = (
        {step: value for step, value in jobs.scalars(run, tag).items() if step <= steps} for run in (folder, reference)
    )
    wanted = list(theirs) if tag.startswith("loss/") else list(range(1, steps + 1))  # not all streams are in each step
    assert list(ours) == list(theirs) == wanted, f"{tag}: {list(ours)} and {list(theirs)}"
    return max(abs(ours[step] - theirs[step]) / abs(theirs[step]) for step in theirs)


def streams_as_in(folder: Path, reference: Path, steps: int) -> dict[str, float]:
    """Hold what a run reports of its streams to another one; returns the differences of their losses.

    Raises:
        AssertionError: they are not the same, the losses to 1e-5 at the first step and to 1e-4 at later ones.
    """
    tags = [f"loss/{stream}" for stream in STREAMS]
    first, found = ({tag: difference(folder, reference, tag, upto) for tag in tags} for upto in (1, steps))
    assert max(first.values()) <= 1e-5 and max(found.values()) <= 1e-4, (first, found)
    for tag in (f"{what}/{stream}" for what in ("tokens", "epochs") for stream in STREAMS):
        assert jobs.scalars(folder, tag) == jobs.scalars(reference, tag), tag
    tag = "loss_metrics/bits_per_byte"
    assert difference(folder, reference, tag, steps) <= TOLERANCE[LOSS], tag
    return found


def went_on(folder: Path, reference: Path, job: str, steps: int) -> dict[str, float]:
    """Hold a run in several parts to one that was not stopped; returns the differences of losses and norms.

    Raises:
        AssertionError: other tokens, another schedule, or another state of optimizer or callbacks.
    """
    found = {tag: difference(folder, reference, tag, steps) for tag in (LOSS, NORM)}
    assert all(found[tag] <= TOLERANCE[tag] for tag in found), found
    exact = ["n_tokens_seen", "n_loss_tokens_seen", "counted/batches", "counted/tokens"]
    if BY_STREAM in JOBS[job]:
        found |= streams_as_in(folder, reference, steps)
    if "muP" not in job:  # TorchTitan reports the first parameter group's, which is another one in later stages
        exact.append("lr")
    for tag in exact:
        assert jobs.scalars(folder, tag) == jobs.scalars(reference, tag), tag
    for moment in ("moment", "moment2"):
        tag = f"l2_norm/{moment}/global"
        assert jobs.scalars(folder, tag) == pytest.approx(jobs.scalars(reference, tag), rel=1e-3), tag
    return found
