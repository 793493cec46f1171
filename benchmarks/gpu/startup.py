"""Start to the first step's report of the Llama 3 sample job."""

from __future__ import annotations

import time

from gpu.jobs import STEP, Job, sizes
from gpu.rows import Options, Rows


def run(options: Options, rows: Rows) -> None:
    for name, flags in {"": (), ", compiled blocks": ("--compile.enable=true",)}.items():
        if name and options.tiny:
            continue
        job = Job(
            options, "startup", "mosaic_job.toml", options.device, ("--training.steps=3", *sizes(options), *flags)
        )
        begun = time.perf_counter()
        process = job.start()
        assert process.stdout is not None
        printed = []
        for line in process.stdout:
            printed.append(line)
            if (match := STEP.search(line)) and match[1] == "1":
                rows.figure(f"start to first step{name}", time.perf_counter() - begun, "s")
        if process.wait():
            rows.failed(f"start to first step{name}", "".join(printed)[-300:])
