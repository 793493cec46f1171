"""mosaic-photon doctor: exit code 0 where all is well; each thing in the way is named, and the rest still told."""

import json
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import torch

import jobs
from doctor_calls import failures, say_all
from mosaic_photon.cli import main
from mosaic_photon.doctor import job as job_checks
from mosaic_photon.doctor import machine
from mosaic_photon.titan import releases
from test_command_line import MISTAKES as COMMAND_LINE_MISTAKES
from test_data_mistakes import DATASET
from test_data_mistakes import MISTAKES as DATA_MISTAKES
from test_layout_checks import ACCEPTED as ACCEPTED_LAYOUTS
from test_layout_checks import REFUSED as LAYOUT_MISTAKES

ROOT = Path(__file__).parents[2]
TOKENIZER = str(ROOT / "tests" / "assets" / "tokenizer")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    texts = [f"document {number}: " + "some words to count " * (number % 7) for number in range(200)]
    source = root / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--tokenizer", TOKENIZER, "--seq-len", "32", "--val", "0.2", "--workers", "1"]
    assert main(["prepare", str(source), *words, "--out", str(root / "web")]) == 0
    return root


@pytest.fixture
def configs(data, tmp_path):
    """Writes a job and a data config with some words replaced; returns their paths."""

    def write(**replaced):
        job = {
            "model": f'name = "llama3_mosaic"\nflavor = "debugmodel"\nhf_assets_path = "{TOKENIZER}"',
            "job": f'dump_folder = "{tmp_path}/out"',
            "training": "steps = 30\nseq_len = 32\nlocal_batch_size = 2\nglobal_batch_size = 8",
        }
        remote = {"remote": f"{data}/web", "local": f"{tmp_path}/cache", "split": "train"} | replaced.pop("stream", {})
        job |= replaced
        (tmp_path / "job.toml").write_text("".join(f"[{name}]\n{text}\n" for name, text in job.items()))
        stream = "".join(f'{key} = "{value}"\n' for key, value in remote.items())
        (tmp_path / "data.toml").write_text(
            f'[mosaic_dataloader]\nname = "text"\n[mosaic_dataloader.dataset]\n{stream}'
        )
        return str(tmp_path / "job.toml"), str(tmp_path / "data.toml")

    return write


def doctor(capsys, *words):
    """Exit code, and the level and text of each finding by subject."""
    capsys.readouterr()
    code = main(["doctor", *words])
    lines = capsys.readouterr().out.splitlines()
    found = {}
    for line in lines[:-1]:
        level, rest = line[:4].strip(), line[6:]
        subject, text = rest.split(": ", 1)
        found[subject] = (level, text)
    return code, found


def test_a_machine_that_is_fit(configs, capsys):
    code, found = doctor(capsys, *configs())
    assert code == 0
    assert not [finding for finding in found.values() if finding[0] == "FAIL"]
    assert found["backend"][1].startswith("gloo on cpu") or found["backend"][1].startswith("nccl")
    assert "torch 2.11.0" in found["versions"][1]
    assert "shards to fetch" in found["train data"][1]
    assert "writes" in found["cache disk"][1]
    assert "4 micro-batches" in found["layout"][1]
    assert found["callbacks"] == ("ok", "none")
    assert found["model"][0] == "ok"
    assert "the job's 30 make 2.31 epochs" in found["dry run"][1]


@pytest.mark.parametrize(
    ("changes", "subject", "message"),
    [
        ({"parallelism": "tensor_parallel_degree = 2"}, "layout", "but the job has 1 process"),
        ({"training": "global_batch_size = 7\nlocal_batch_size = 2"}, "layout", "must be a multiple of"),
        ({"training": "seq_len = 64\nlocal_batch_size = 2"}, "dry run", "its samples have 33 tokens"),
        ({"stream": {"remote": "/nowhere"}}, "train data", "/nowhere/train/index.json"),
        ({"stream": {"split": "test"}}, "train data", "test/index.json"),
        ({"stream": {"cache_limit": "1kb"}}, "train data", "cache_limit: 1024 bytes is less than"),
        ({"model": 'name = "lama3_mosaic"\nhf_assets_path = "."'}, "model", "Did you mean 'llama3_mosaic'?"),
        ({"model": 'flavor = "debugmodel"\nhf_assets_path = "."'}, "tokenizer", "no tokenizer.json"),
        ({"optimizer": "lr = true"}, "job config", "optimizer.lr = True should be float"),
        ({"stream": {"shufle": "x"}}, "data config", "Did you mean 'shuffle'?"),
        ({"compile": "enable = true"}, "compiler", "needs no-such-compiler"),
        ({"job": 'dump_folder = "/etc/passwd/out"'}, "outputs", "/etc/passwd is not a folder"),
    ],
)
def test_what_is_in_the_way(configs, capsys, monkeypatch, changes, subject, message):
    monkeypatch.setenv("CXX", "no-such-compiler")
    code, found = doctor(capsys, *configs(**changes))
    assert code == 1
    assert found[subject][0] == "FAIL"
    assert message in found[subject][1]
    assert found["python"][0] == "ok"


@pytest.mark.parametrize("name", COMMAND_LINE_MISTAKES)
def test_each_mistake_of_the_command_line(name, tmp_path, prepared_data, monkeypatch, capsys):
    change_job, change_data, flags, expected = COMMAND_LINE_MISTAKES[name]
    arguments = jobs.write_job(tmp_path, prepared_data, change_job(jobs.JOB), change_data(jobs.DATA))
    code, said = say_all(arguments, flags, 1, monkeypatch, capsys)
    assert code == 1
    assert expected in failures(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", LAYOUT_MISTAKES)
def test_each_mistake_of_the_layout(name, tmp_path, prepared_data, monkeypatch, capsys):
    processes, flags, expected = LAYOUT_MISTAKES[name]
    code, said = say_all(jobs.write_job(tmp_path, prepared_data), flags, processes, monkeypatch, capsys)
    assert code == 1
    assert expected in failures(said)


@pytest.mark.parametrize("name", ["HSDP and TP", "PP with validation"])
def test_a_job_of_several_processes(name, tmp_path, prepared_data, monkeypatch, capsys):
    processes, flags = ACCEPTED_LAYOUTS[name]
    code, said = say_all(jobs.write_job(tmp_path, prepared_data), flags, processes, monkeypatch, capsys)
    assert (code, failures(said)) == (0, "")


@pytest.mark.parametrize("name", DATA_MISTAKES)
def test_each_mistake_of_the_data(name, tmp_path, monkeypatch, capsys):
    make, dataset, expected = DATA_MISTAKES[name]
    make(tmp_path / "shards")
    arguments = jobs.write_job(tmp_path, tmp_path / "shards", dataloader=jobs.DATA.replace(DATASET, dataset))
    code, said = say_all(arguments, [], 1, monkeypatch, capsys)
    assert code == 1
    assert expected in failures(said)


def test_a_mistake_of_the_eval_data(tmp_path, prepared_data, monkeypatch, capsys):
    flags = ["--validation.enable", "--validation.seq_len=65"]
    code, said = say_all(jobs.write_job(tmp_path, prepared_data), flags, 1, monkeypatch, capsys)
    assert code == 1
    assert "65" in failures(said)


def test_mistakes_that_can_be_told_apart_are(configs, capsys):
    """And each of them once, although the job's whole check finds the first again."""
    changes = {"model": 'flavor = "debugmodel"\nhf_assets_path = "."', "job": 'dump_folder = "/etc/passwd/out"'}
    code, found = doctor(capsys, *configs(**changes, **{"callbacks.lr_moniter": ""}))
    assert code == 1
    assert [subject for subject, (level, _) in found.items() if level == "FAIL"] == [
        "tokenizer",
        "outputs",
        "callbacks",
    ]


def test_one_broken_stream_does_not_hide_the_others(data, tmp_path, capsys):
    config = tmp_path / "data.yaml"
    streams = f"good: {{local: {data}/web, proportion: 0.5}}, bad: {{local: /nowhere, proportion: 0.5}}"
    config.write_text(f"train_loader: {{name: text, dataset: {{split: train, streams: {{{streams}}}}}}}")
    code, found = doctor(capsys, str(config))
    assert code == 1
    assert found["train good"][0] == "ok"
    assert found["train bad"][0] == "FAIL"
    assert "layout" not in found


def test_object_store(data, configs, capsys, monkeypatch):
    """Over HTTP from an S3 server: what is there is reached, what is not is said at once."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    try:
        url = "http://{}:{}".format(*server.get_host_and_port())
        for name, value in {"ENDPOINT_URL": url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "y"}.items():
            monkeypatch.setenv("S3_ENDPOINT_URL" if name == "ENDPOINT_URL" else f"AWS_{name}", value)
        client = boto3.client("s3", endpoint_url=url, region_name="us-east-1")
        client.create_bucket(Bucket="data")
        for file in (data / "web/train").iterdir():
            client.upload_file(str(file), "data", f"web/train/{file.name}")
        code, found = doctor(capsys, *configs(stream={"remote": "s3://data/web"}))
        assert (code, found["train data"][0]) == (0, "ok")
        assert found["train data"][1].startswith("s3://data/web/train: index in")
        code, found = doctor(capsys, *configs(stream={"remote": "s3://data/nothing", "local": f"{data}/other"}))
        assert (code, found["train data"][0]) == (1, "FAIL")
        assert "s3://data/nothing/train/index.json" in found["train data"][1]
    finally:
        server.stop()


@pytest.mark.parametrize("words", [["--nnodes", "0"], ["--nproc-per-node", "0"]])
def test_no_machine_and_no_process_is_a_mistake(capsys, words):
    assert main(["doctor", *words]) == 1
    assert "both must be at least 1" in capsys.readouterr().err


def test_a_remote_that_has_gone(data, configs, tmp_path, capsys):
    """Its cache alone is left: enough where it holds all shards."""
    shutil.copytree(data / "web", tmp_path / "remote")
    _, config = configs(stream={"remote": f"{tmp_path}/remote"})
    assert doctor(capsys, config)[1]["train data"][0] == "ok"
    (tmp_path / "remote").rename(tmp_path / "gone")
    code, found = doctor(capsys, config)
    assert (code, found["train data"][0]) == (1, "FAIL")
    assert "remote/train: can't be reached (FileNotFoundError: " in found["train data"][1]
    for shard in (tmp_path / "gone/train").glob("*.mds"):
        shutil.copy(shard, tmp_path / "cache/train")
    code, found = doctor(capsys, config)
    assert (code, found["train data"][0]) == (0, "warn")
    assert found["train data"][1].endswith(", 0 shards to fetch")


def test_data_config_alone_and_machine_alone(configs, capsys):
    code, found = doctor(capsys, configs()[1])
    assert (code, found["train data"][0], "model" in found) == (0, "ok", False)
    code, found = doctor(capsys)
    assert (code, "data config" in found) == (0, False)


def test_segments_that_nobody_uses(tmp_path):
    assert machine.check_left_overs(tmp_path).level == "ok"
    for name in ("used", "left"):
        (tmp_path / name).write_bytes(b"x" * 4096)
    mapped = torch.from_file(str(tmp_path / "used"), shared=True, size=4096, dtype=torch.uint8)  # keeps no descriptor
    found = machine.check_left_overs(tmp_path)
    assert found.level == "warn"
    assert "1 segment(s), 4.0 KiB" in found.text
    assert f"rm {tmp_path}/left" in found.text
    del mapped
    with open(tmp_path / "used"):
        assert "1 segment(s)" in machine.check_left_overs(tmp_path).text
    assert "2 segment(s)" in machine.check_left_overs(tmp_path).text


def test_segments_that_vanish_while_they_are_looked_at(tmp_path, monkeypatch):
    names = [tmp_path / "left", tmp_path / "vanished"]
    names[0].write_bytes(b"x")
    monkeypatch.setattr(type(tmp_path), "iterdir", lambda folder: iter(names))
    assert "1 segment(s), 1 B" in machine.check_left_overs(tmp_path).text


def test_thresholds(tmp_path, monkeypatch):
    """What is too little is said with the way out. The limits are moved, not the machine."""
    assert machine.check_shm(tmp_path).level == "ok"
    monkeypatch.setattr(machine, "SHM_ENOUGH", 1 << 60)
    assert "--shm-size" in machine.check_shm(tmp_path).text
    monkeypatch.setattr(machine, "FILES_ENOUGH", 1 << 40)
    assert "ulimit -n" in machine.check_open_files().text
    monkeypatch.setattr(job_checks, "PROBE_BYTES", 1 << 20)
    monkeypatch.setattr(job_checks, "SLOW_BYTES_PER_S", 0)
    assert job_checks.check_disk(tmp_path).level == "ok"
    monkeypatch.setattr(job_checks, "SLOW_BYTES_PER_S", 1e18)
    assert "set local to a faster disk" in job_checks.check_disk(tmp_path).text
    assert list(tmp_path.iterdir()) == []
    assert job_checks.check_room("cache", tmp_path, 1 << 60, None).level == "fail"
    assert job_checks.check_room("cache", tmp_path, 1 << 60, 1 << 10).level == "ok"


def test_versions(monkeypatch):
    """A package of another version is a warning, a missing one is in the way, a bound overridden on purpose is not."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    overrides = pyproject["tool"]["uv"]["override-dependencies"]
    assert {line.split("=")[0].rstrip("><!~") for line in overrides} == machine.OVERRIDDEN

    version = machine.metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda name: "1.0" if name == "transformers" else version(name))
    found = [finding for finding in machine.check_versions() if finding.level != "ok"]
    assert [(finding.level, "transformers is 1.0" in finding.text) for finding in found] == [("warn", True)]
    assert any("transformers" in finding.text for finding in machine.check_bounds() if finding.level == "warn")

    def missing(name):
        if name in ("torchtitan", "msgspec"):
            raise machine.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machine.metadata, "version", missing)
    monkeypatch.setattr(releases, "version", missing)
    releases.installed.cache_clear()
    found = [finding.text for finding in machine.check_versions() if finding.level == "fail"]
    assert [text.partition(":")[0] for text in found] == ["TorchTitan is not installed", "msgspec is not installed"]


@pytest.mark.parametrize(
    ("lacking", "level", "text"),
    [
        ((), "ok", "llm-foundry 0.22.0"),
        (("mosaicml",), "ok", "foundry.txt"),
        (("mlflow",), "warn", "they need mlflow:"),
    ],
)
def test_foundry(monkeypatch, lacking, level, text):
    """Where they are not, what they are for and the command are told; and what is missing of theirs."""
    version = machine.metadata.version

    def some(name):
        if name in lacking:
            raise machine.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(machine.metadata, "version", some)
    found = machine.check_foundry()
    assert found.level == level and text in found.text


def test_more_processes_than_cores_or_devices(capsys):
    code, found = doctor(capsys, "--nproc-per-node", "1000")
    level, text = found["devices"]
    assert (code, level) in [(0, "warn"), (1, "FAIL")]
    assert "OMP_NUM_THREADS" in text or "nproc_per_node" in text


SLURM = {
    # What Slurm's commands do to a batch script, without Slurm. srun's first call is the doctor's.
    "scontrol": '[ "$1" = show ] && echo node0 || echo "$@" >> calls',
    "scancel": 'kill -TERM "$(cat ranks)"',
}
SIGNALLED = """trap 'exit 143' TERM
echo $$ > ranks
kill -USR1 $PPID  # as --signal=B:USR1 does to the script
while :; do sleep 0.1; done"""


@pytest.mark.parametrize(
    ("ranks", "code", "calls"), [("exit 3", 3, ""), ("exit 0", 0, ""), (SIGNALLED, 143, "requeue 7\n")]
)
def test_the_slurm_script_ends_as_its_ranks_did(tmp_path, ranks, code, calls):
    script = re.search(r"```bash\n(.*?)```", (ROOT / "docs/launch.md").read_text(), re.DOTALL)[1]
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/activate").touch()
    for name, body in {**SLURM, "srun": f'[[ "$*" = *doctor* ]] && exit 0\n{ranks}'}.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_NNODES": "1"}
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, start_new_session=True, timeout=60)
    assert run.returncode == code
    assert ((tmp_path / "calls").read_text() if (tmp_path / "calls").exists() else "") == calls
