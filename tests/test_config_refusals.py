"""What is wrong in a config is refused by the job and by the doctor, in the same words, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import jobs
from mosaic_photon.cli import main
from mosaic_photon.doctor import job as job_checks
from mosaic_photon.doctor import machine

MOE = jobs.JOB.replace("llama3_mosaic", "qwen3_mosaic").replace('"debugmodel"', '"debugmodel_moe"')
LOCAL, SPLIT = 'local = "{data}"\n', 'split = "train"\n'

CASES: dict[str, tuple[str, str, str, str]] = {
    # name: (file, what is there, what is put in its place, what must be said)
    "an odd sequence": ("job", "seq_len = 64", "seq_len = 63", "must be a multiple of 2"),
    "samples that are too short": ("job", "seq_len = 64", "seq_len = 128", "set training.seq_len = 64"),
    "heads of an odd size": ("job", "dim = 64", "dim = 68", "dim / n_heads = 17 must be even"),
    "heads that do not divide": ("job", "dim = 64", "dim = 66", "must be a multiple of its n_heads"),
    "no such override": ("job", "dim = 64", "dims = 64", "have no such field. Did you mean 'dim'?"),
    "a deep override": ("moe", "dim = 64", "moe_args = {{ topk = 2 }}", "the fields of moe_args have no such field"),
    "experts": ("moe", "dim = 64", "moe_args = {{ top_k = 99 }}\nn_kv_heads = 4", "there are 64 experts"),
    "an attention kernel": ("job", '"debugmodel"', '"debugmodel_varlen_attn"', "which needs an accelerator"),
    "an unknown kernel": ("job", "dim = 64", "attn_type = 'x'\ndim = 64", "Unknown attention type: x"),
    "a model for other machines": ("job", "dim = 64", "dim = 1048576", "its weights and gradients take"),
    "images": ("job", "llama3_mosaic", "flux_mosaic", "is no language model"),
    "a batch for no machine": (
        "job",
        "global_batch_size = 4",
        "global_batch_size = 5",
        "be a multiple of local_batch_size",
    ),
    "clipping to nothing": ("job", "seq_len = 64", "seq_len = 64\nmax_norm = 0", "max_norm = 0: must be above 0"),
    "a home": ("job", '"{out}"', '"~/out"', "'~' and '$' are a shell's"),
    "an address": ("job", '"{out}"', '"s3://bucket/out"', "must be a folder of a file system"),
    "a folder for a file": ("job", '"{out}"', '"{out}"\nsave_config_file = "../"', "is a folder, not a file"),
    "a seed of too many bits": ("job", "seed = 3", "seed = 99999999999999999999", "must be a number of 64 bits"),
    "a field that nothing reads": (
        "job",
        "[debug]",
        '[experimental]\ncustom_args_module = "a"\n[debug]',
        "does not read it",
    ),
    "a home in the data": ("data", LOCAL, 'local = "~/data"\n', "'~' and '$' are a shell's"),
    "a variable": ("data", LOCAL, 'local = "/data/$USER"\n', "local = '/data/$USER'"),
    "nodes beyond number": (
        "data",
        "num_canonical_nodes = 4",
        "num_canonical_nodes = 9_999_999",
        "must be at most 1,048,576",
    ),
    "another's format": ("data", SPLIT, f"{SPLIT}decoder_only_format = false\n", "unknown key 'decoder_only_format'"),
    "a key twice": ("data", SPLIT, SPLIT + SPLIT, "Cannot overwrite a value"),
    "a list of streams": ("data", LOCAL, 'streams = [{{ local = "a" }}]\n', "streams: expected table"),
}


@pytest.mark.parametrize("name", CASES)
def test_job_and_doctor_say_the_same(
    name: str,
    tmp_path: Path,
    prepared_data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file, old, new, says = CASES[name]
    texts = {"job": MOE if file == "moe" else jobs.JOB, "data": jobs.DATA}
    changed = "job" if file == "moe" else file
    assert old in texts[changed]
    texts[changed] = texts[changed].replace(old, new, 1)
    arguments = jobs.write_job(tmp_path, prepared_data, texts["job"], texts["data"])
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    assert jobs.run_here(arguments) == 1
    said = "".join(capfd.readouterr())
    assert said.count("error: ") == 1 and says in said and "Traceback" not in said, said

    monkeypatch.setattr(machine, "check_machine", lambda *_: ())
    monkeypatch.setattr(job_checks, "PROBE_BYTES", 1)
    assert main(["doctor", arguments[1], arguments[3], "--nproc-per-node=1"]) == 1
    said = "".join(capfd.readouterr())
    assert "FAIL" in said and says in said and "Traceback" not in said, said
    assert sorted(tmp_path.rglob("*")) == before
