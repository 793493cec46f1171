"""On four ranks: norms of whole parameters in every layout, agreed stops, and a failure on one rank that ends all."""

import subprocess
import sys
from pathlib import Path

import jobs

WORKER = Path(__file__).parent / "distributed_worker.py"


def test_four_ranks(tmp_path, prepared_data):
    ports = [str(jobs.free_port()) for _ in range(7)]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4", str(WORKER)]
    run = subprocess.run(
        [*command, str(tmp_path), str(prepared_data), *ports],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-8000:]
    assert all(f"rank {rank} agrees" in run.stdout for rank in range(4))
