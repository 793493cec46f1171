"""Hugging Face's store, and Google's and Azure's on their emulators: what is S3's is in test_stores.py."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import pytest

from hub_server import REPOSITORY, Hub
from jobs import free_port
from prepare_calls import documents, prepare, tree, write_jsonl
from s3_server import stop

TESTS = Path(__file__).parent.parent
INSTALLED = TESTS.parent / "build" / "stores"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""Azurite's, which are the same everywhere and no secret."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text of several kinds, and beside it, in `out`, what prepare makes of it."""
    import pyarrow
    import pyarrow.parquet

    folder, texts = tmp_path_factory.mktemp("stores") / "corpus", documents(120)
    (folder / "a" / "b").mkdir(parents=True)
    write_jsonl(folder / "z.jsonl", texts[:40])
    write_jsonl(folder / "a/b/c.jsonl", texts[40:60])
    (folder / "a/t.txt").write_text("\n".join(texts))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts[60:]}), folder / "p.parquet", row_group_size=20)
    with contextlib.chdir(folder.parent):
        assert prepare("corpus", "corpus/**/*.jsonl", out="out", **{"shard-mib": 1}) == 0
    return folder


@pytest.fixture
def hub(corpus, monkeypatch):
    hub = Hub(corpus)
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": hub.url})
    yield f"hf://datasets/{REPOSITORY}"
    hub.close()


def test_text_on_hugging_face_is_that_of_local_files(corpus, hub, tmp_path, capsys):
    assert prepare(hub, f"{hub}/**/*.jsonl", out=tmp_path / "out", **{"shard-mib": 1}) == 0
    made, expected = tree(tmp_path / "out"), tree(corpus.parent / "out")
    assert {**made, "prepare.json": b""} == {**expected, "prepare.json": b""}
    says = {
        f"{hub}/none": "does not exist",
        f"{hub}/*.zip": "no file matches the pattern",
        "hf://datasets/user/none/x": "there is no hf://datasets/user/none",
    }
    for source, message in says.items():
        assert prepare(source, out=tmp_path / "no") == 1
        assert message in capsys.readouterr().err


def emulator(name: str, port: int) -> tuple[list[str], dict[str, str]]:
    """The command that starts it, and the environment in which its client finds it."""
    if name == "gs":
        command = [
            sys.executable,
            str(INSTALLED / "bin/gcp-storage-emulator"),
            "start",
            "--in-memory",
            f"--port={port}",
        ]
        return command, {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}", "FSSPEC_GS": '{"token": "anon"}'}
    command = [str(INSTALLED / "node_modules/.bin/azurite-blob"), "--inMemoryPersistence", "--skipApiVersionCheck"]
    place = f"BlobEndpoint=http://127.0.0.1:{port}/{ACCOUNT};"
    account = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};{place}"
    return [*command, f"--blobPort={port}"], {"AZURE_STORAGE_CONNECTION_STRING": account}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gs", "az"])
def test_text_and_checkpoints_in_another_store(name, corpus, prepared_data, tmp_path):
    if not (INSTALLED / "installed").exists():
        pytest.fail("the stores' clients and emulators are not installed: make stores")
    port = free_port()
    command, found = emulator(name, port)
    paths = f"{INSTALLED}:{TESTS}:{os.environ.get('PYTHONPATH', '')}"
    environment = os.environ | found | {"PYTHONPATH": paths}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(port)
        driver = [sys.executable, str(TESTS / "stores_driver.py"), f"{name}://tests"]
        driver += [str(corpus), str(prepared_data), str(tmp_path)]
        done = subprocess.run(driver, env=environment, capture_output=True, text=True, timeout=400)
    finally:
        stop(server)
    assert done.returncode == 0, done.stdout + done.stderr
    missing = f"checkpoint.folder = '{name}://nonesuch/run': cannot list it (FileNotFoundError"
    assert done.stdout.count(missing) == 2 and "Traceback" not in done.stderr


def wait_for(port: int) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 5).close()
            return
        time.sleep(0.1)
    raise TimeoutError
