"""Every layout initialises and computes as the unsharded model; one launch of two processes runs them all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LAYOUTS = [
    "FSDP, tied", "FSDP, untied, rope, norms, muP", "FSDP, selective checkpointing", "FSDP, full checkpointing, alibi",
    "FSDP, compile", "DDP", "TP, tied", "TP, untied, GLU, muP", "TP, alibi, qk norm, norms",
    "TP, GQA, rope, full checkpointing", "PP", "PP, documents",
]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    out = tmp_path_factory.mktemp("layouts") / "results.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [str(HERE / "mpt_layouts.py"), str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(out.read_text())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_the_unsharded_model(results, layout):
    for rank in results:
        figures = rank[layout]
        assert figures["init"] == 0
        assert figures["logits"] < 1e-5
        assert figures["gradient"] < 1e-5


def test_pipeline_stages_share_the_parameters_out(results):
    first, second = (rank["PP"]["parameters"] for rank in results)
    assert first + second == results[0]["FSDP, untied, rope, norms, muP"]["parameters"] - 4 * 2 * 2 - 2
