"""mosaic-photon prepare on a cluster of Ray: a head and two nodes, each of processes of its own, on this machine."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from mosaic_photon.cli import main
from mosaic_photon.prepare.sources import stdlib_files
from prepare_calls import TOKENIZER, tree, write_jsonl

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
BIN = Path(sys.executable).parent
LIMITS = ["--object-store-memory", str(100 << 20), "--memory", str(2 << 30), "--disable-usage-stats"]
WAIT_S = 240


class Node:
    """One of a cluster, in the foreground of a process group of its own."""

    def __init__(self, *words, cpus=1, **environment):
        self.command = [str(BIN / "ray"), "start", "--block", f"--num-cpus={cpus}", *LIMITS, *words]
        self.environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", **environment}
        self.start()

    def start(self):
        with open(os.devnull, "w") as null:
            self.process = subprocess.Popen(
                self.command, stdout=null, stderr=null, env=self.environment, start_new_session=True
            )

    def begun(self, condition):
        """Whether the condition holds; begins anew if Ray gave up, which leaves a node 30 s to start."""
        if self.process.poll() is not None:
            self.start()
        return condition()

    def below(self):
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self):
        if self.process.poll() is None:
            for process in [*self.below(), psutil.Process(self.process.pid)]:
                with_suppressed(process.kill)
        self.process.wait(60)


def with_suppressed(call):
    with contextlib.suppress(psutil.NoSuchProcess):
        call()


def wait_for(condition, process=None):
    end = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < end
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module", autouse=True)
def token(tmp_path_factory):
    """Ray leaves one in the user's home for a cluster made here, and asks for it at the next that begins."""
    file = tmp_path_factory.mktemp("token") / "token"
    file.write_text(secrets.token_hex(32))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
        yield


@pytest.fixture(scope="module")
def cluster():
    """(address, the nodes that work)"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    folder = tempfile.mkdtemp(prefix="ray")  # a short path, as sockets lie in it
    nodes = [
        Node("--head", f"--port={address.split(':')[1]}", "--include-dashboard=false", f"--temp-dir={folder}", cpus=0)
    ]
    try:
        wait_for(lambda: nodes[0].begun(lambda: len(alive(address)) == 1))
        for number in (2, 3):
            nodes.append(Node(f"--address={address}"))
            wait_for(lambda number=number: nodes[-1].begun(lambda: len(alive(address)) == number))
        yield address, nodes
    finally:
        for node in reversed(nodes):
            node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def alive(address):
    code = "import ray, sys; ray.init(sys.argv[1], logging_level='ERROR', log_to_driver=False)\n"
    code += "print([node['NodeID'] for node in ray.nodes() if node['Alive']])"
    command = [sys.executable, "-c", code, address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    return json.loads(done.stdout.replace("'", '"')) if done.returncode == 0 else []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A file that is read by many, and others; beside them what one process makes of them."""
    folder = tmp_path_factory.mktemp("corpus")
    texts = [Path(file).read_text("utf-8") for file in stdlib_files()]
    (folder / "in").mkdir()
    write_jsonl(folder / "in/large.jsonl", texts)
    for number in range(8):
        write_jsonl(folder / f"in/{number}.jsonl", texts[number::8])
    assert main(words(folder, "one", "--workers", "1")) == 0
    return folder


def words(folder, out, *more):
    base = ["prepare", str(folder / "in"), "--out", str(folder / out), "--tokenizer", TOKENIZER]
    return [*base, "--seq-len", "63", "--shard-mib", "2", *more]


def call(folder, out, address):
    command = [str(BIN / "mosaic-photon"), *words(folder, out, "--ray", address)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def notes(folder, out):
    return list((folder / f"{out}.partial/tokens").glob("[0-9]*.json"))


def test_a_killed_driver_worker_and_node_change_no_byte(cluster, corpus):
    address, nodes = cluster
    driver = call(corpus, "ray", address)
    wait_for(lambda: notes(corpus, "ray"), driver)
    driver.kill()
    driver.communicate()
    first = len(notes(corpus, "ray"))
    assert 0 < first < 15
    driver = call(corpus, "ray", address)
    wait_for(lambda: len(notes(corpus, "ray")) > first, driver)
    nodes.pop().kill()
    workers = wait_for(lambda: [one for one in nodes[1].below() if "ray::_one_thread" in title(one)], driver)
    with_suppressed(workers[0].kill)
    output, _ = driver.communicate(timeout=WAIT_S)
    assert driver.returncode == 0, output
    assert tree(corpus / "ray") == tree(corpus / "one")
    assert sorted(os.listdir(corpus)) == ["in", "one", "ray"]


def title(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def test_a_node_without_the_package_is_named(cluster, corpus, tmp_path):
    address, nodes = cluster
    (tmp_path / "mosaic_photon").mkdir()
    (tmp_path / "mosaic_photon/__init__.py").write_text("raise ModuleNotFoundError('no such package here')")
    before = set(alive(address))
    nodes.append(Node(f"--address={address}", PYTHONPATH=str(tmp_path)))
    wait_for(lambda: nodes[-1].begun(lambda: set(alive(address)) - before))
    driver = call(corpus, "lacking", address)
    output, _ = driver.communicate(timeout=WAIT_S)
    nodes.pop().kill()
    assert driver.returncode == 1
    assert "the cluster cannot do this work: node" in output
    assert "cannot import mosaic-photon (no such package here)" in output
    assert "Traceback" not in output
    assert not notes(corpus, "lacking")


def test_what_a_node_lacks(tmp_path, monkeypatch):
    from mosaic_photon.prepare.on_ray import Needs

    source, record = write_jsonl(tmp_path / "a.jsonl", ["a"]), tmp_path / "prepare.json"
    record.write_text("{}")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # of nothing
    (tmp_path / "tokenizer.json").write_bytes(b"")
    tokenizer = str(tmp_path / "tokenizer.json"), digest
    needs = Needs({}, tokenizer, [(str(source), source.stat().st_size)], str(record))
    assert needs.missing() is None
    assert "has tokenizers" in replace(needs, versions={"tokenizers": "0"}).missing()
    assert "has no tokenizer at" in replace(needs, tokenizer=("/nowhere", digest)).missing()
    assert "has another tokenizer at" in replace(needs, tokenizer=(str(source), digest)).missing()
    assert "has another file at" in replace(needs, sources=[(str(source), 1)]).missing()
    assert "where all nodes see them" in replace(needs, record=str(tmp_path / "none")).missing()


def test_no_cluster_and_another_python(corpus, monkeypatch, capsys):
    import ray

    assert main(words(corpus, "none", "--ray", "127.0.0.1:1")) == 1
    assert "--ray 127.0.0.1:1: no connection to a cluster (this one is Python" in capsys.readouterr().err

    def other_python(**_):
        raise RuntimeError("Version mismatch: The cluster was started with: Python: 3.9.1")

    monkeypatch.setattr(ray, "init", other_python)
    assert main(words(corpus, "none", "--ray", "auto")) == 1
    assert "Python: 3.9.1" in capsys.readouterr().err


def test_a_cluster_made_here(corpus):
    before = {process.pid for process in psutil.process_iter()}
    assert main(words(corpus, "local", "--ray", "local", "--workers", "2")) == 0
    assert tree(corpus / "local") == tree(corpus / "one")
    time.sleep(1)
    left = [process for process in psutil.Process().children(recursive=True) if process.pid not in before]
    assert not [process for process in left if "raylet" in title(process)]
