"""Records as jobs write them, made up: any number of rows, streams, sets, restarts, and numbers that are not finite."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from mosaic_photon.report.record import METRICS, RUN, VERSION, Attempt, Row

STREAMS = ("code", "web", "books")
BEGAN = 1_790_000_000.0
TOKENS = 8192
"""Of a step."""
SECONDS = 0.5
"""Of a step."""


def write_run(
    folder: Path,
    rows: int = 200,
    *,
    streams: Sequence[str] = STREAMS,
    sets: Sequence[str] = ("held_out", "code"),
    restarts: Iterable[int] = (),
    bad: Iterable[int] = (),
    lr: float = 3e-4,
) -> Path:
    """A record of `rows` reports in the folder, one every ten steps.

    Args:
        restarts: reports after which the job died; each next attempt goes on from five reports before.
        bad: reports whose loss is NaN.
        lr: the learning rate, which the losses depend on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chance, bad = random.Random(lr), set(bad)
    attempts, lines = [], []
    clock, first, stops = BEGAN, 0, [*restarts, rows]
    for number, stop in enumerate(stops, 1):
        attempts.append(_attempt(number, clock, first * 10, rows * 10, lr))
        lines.append(Row(attempt=number, step=first * 10, time=clock + 20, event="start", seconds=20.0))
        lines.append(Row(attempt=number, step=first * 10 + 1, time=clock + 28, event="compile", seconds=8.0))
        clock += 30
        for report in range(first + 1, stop + 1):
            step = report * 10
            clock += 10 * SECONDS
            common: dict[str, Any] = {"attempt": number, "step": step, "time": clock, "tokens": step * TOKENS}
            lines.append(Row(**common, metrics=_metrics(report, rows, streams, lr, report in bad, chance)))
            facts = {"steps": 10, "data_wait": 0.2}
            if report in bad:
                why = {"why": "its loss is not finite", "samples": "stream 'web', samples 0, 1", "loss": "NaN"}
                lines.append(Row(**common, event="skip", facts=why))
            lines.append(Row(**common, event="steps", seconds=10 * SECONDS, facts=facts))
            if report % max(1, rows // 10) == 0:
                clock += 4
                lines.append(Row(**{**common, "time": clock}, event="validation", seconds=3.0))
                lines.append(Row(**{**common, "time": clock}, metrics=_validation(report, rows, sets, lr)))
                lines.append(Row(**{**common, "time": clock}, event="checkpoint", seconds=1.0))
        first = max(0, stop - 5)
        clock += 60
    lines.append(Row(attempt=len(stops), step=rows * 10, time=clock - 59, event="stop", facts={"how": "ended"}))
    (folder / RUN).write_bytes(msgspec.json.encode({"version": VERSION, "attempts": attempts}))
    (folder / METRICS).write_bytes(msgspec.json.Encoder().encode_lines(lines))
    return folder


def _attempt(number: int, clock: float, step: int, steps: int, lr: float) -> Attempt:
    """The first with all its fields, later ones with what is new."""
    attempt = Attempt(attempt=number, time=clock, begin=f"step {step}" if step else "initial weights")
    if number > 1:
        return attempt
    attempt.config = {
        "training": {"steps": steps, "seq_len": 256},
        "optimizer": {"name": "AdamW", "lr": lr},
    }
    attempt.versions = {"torch": "2.11.0", "torchtitan": "0.2.2"}
    attempt.machine = {"host": "node-1", "device": "cpu"}
    attempt.layout = {"ranks": 2, "shard": 2}
    attempt.data = {"streams": {"code": 1000, "web": 2000}}
    attempt.command = ["mosaic-photon", "train", "job.toml", "data.toml"]
    attempt.table = [
        ("model", "llama3_mosaic debugmodel, 1,234,567 parameters"),
        ("optimizer", f"AdamW, peak lr {lr:g}"),
    ]
    return attempt


def _loss(done: float, lr: float) -> float:
    return 2.0 + 8.0 * math.exp(-6 * done) + abs(math.log10(lr / 3e-4)) * done


def _metrics(
    report: int, rows: int, streams: Sequence[str], lr: float, bad: bool, chance: random.Random
) -> dict[str, float | str]:
    done = report / rows
    loss = _loss(done, lr) * (1 + 0.03 * chance.gauss(0, 1))
    found: dict[str, float | str] = {
        "loss_metrics/global_avg_loss": "NaN" if bad else loss,
        "loss_metrics/global_max_loss": "NaN" if bad else loss * 1.2,
        "loss_metrics/bits_per_byte": "NaN" if bad else loss / 3,
        "grad_norm": "Infinity" if bad else 1 + chance.expovariate(1.0),
        "throughput(tps)": TOKENS / SECONDS * (1 + 0.01 * chance.gauss(0, 1)),
        "mfu(%)": 41 + chance.gauss(0, 0.5),
        "memory/max_active(GiB)": 31.5,
        "memory/max_reserved(GiB)": 36.0,
        "lr/matrices": lr * min(1.0, 10 * done) * (1 - 0.9 * done),
        "lr/vectors": 2 * lr * min(1.0, 10 * done) * (1 - 0.9 * done),
    }
    for place, name in enumerate(streams):
        found[f"loss/{name}"] = loss * (0.8 + 0.2 * place)
        share = (1 + place * done) / sum(1 + other * done for other in range(len(streams)))
        found[f"tokens/{name}"] = share * report * 10 * TOKENS
        found[f"epochs/{name}"] = done * (place + 1)
    return found


def _validation(report: int, rows: int, sets: Sequence[str], lr: float) -> dict[str, float | str]:
    loss = _loss(report / rows, lr)
    found: dict[str, float | str] = {}
    for place, name in enumerate(sets):
        stem = f"validation_metrics/{name}" if name else "validation_metrics"
        value = loss * (1.05 + 0.1 * place)
        found |= {f"{stem}/loss": value, f"{stem}/perplexity": math.exp(value), f"{stem}/bits_per_byte": value / 3}
    return found
