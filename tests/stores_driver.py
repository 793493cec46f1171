"""A store whose client is not in the development environment: `python stores_driver.py URL CORPUS DATA WORK`.

CORPUS is a folder with what is prepared, and beside it, in `out`, what came of that; DATA are shards to train on.
"""

import sys
from pathlib import Path

import jobs
from mosaic_photon import stores
from mosaic_photon.checkpoints.find import complete_steps
from mosaic_photon.cli import main
from mosaic_photon.errors import ConfigError
from prepare_calls import prepare, tree

PATTERN = "**/*.jsonl"


def functions(url: str) -> None:
    """What checkpoints need of a store."""
    stores.check_rights("checkpoint.folder", url)
    assert stores.names(url) == [] and stores.sizes(f"{url}/none") == {}
    for name, data in {"one/a": b"hello", "one/b/c": b"old", "one/.metadata": b"x"}.items():
        stores.write(f"{url}/{name}", data)
    stores.write(f"{url}/one/b/c", b"new one")
    assert stores.names(url) == ["one"]
    assert stores.sizes(f"{url}/one") == {"a": 5, "b": 0, ".metadata": 1}
    assert (stores.read(f"{url}/one/b/c"), stores.read(f"{url}/one/a", 1, 3)) == (b"new one", b"ell")
    assert [stores.is_file(f"{url}/one/{name}") for name in ("a", "b", "z")] == [True, False, False]
    assert [stores.is_folder(f"{url}/{name}") for name in ("one", "on", "one/b")] == [True, False, True]
    found = stores.matching(f"{url}/one", ["a", "b/*", "z*"])
    assert [name.rpartition("/one/")[2] for name in found] == ["a", "b/c"]
    for name in found:
        stores.remove(name)
        stores.remove(name)
    stores.remove_folder(f"{url}/one")
    stores.remove_folder(f"{url}/one")
    assert stores.names(url) == []
    try:
        stores.read(f"{url}/none")
    except FileNotFoundError:
        return
    raise AssertionError


def prepared(url: str, corpus: Path, work: Path) -> None:
    """In and out give the bytes of local files, and the result is taken for what it is."""
    for path in corpus.rglob("*"):
        if path.is_file():
            stores.write(f"{url}/corpus/{path.relative_to(corpus)}", path.read_bytes())
    sources, options = [f"{url}/corpus", f"{url}/corpus/{PATTERN}"], {"shard-mib": 1}
    expected = {name: data for name, data in tree(corpus.parent / "out").items() if name != "prepare.json"}
    assert prepare(*sources, out=work / "here", **options) == 0
    assert {name: data for name, data in tree(work / "here").items() if name != "prepare.json"} == expected
    assert prepare(*sources, out=f"{url}/made", **options) == 0
    made = {f"{split}/{name}" for split in ("train", "val") for name in stores.names(f"{url}/made/{split}")}
    assert {name: stores.read(f"{url}/made/{name}") for name in made} == expected
    assert prepare(*sources, out=f"{url}/made", **options) == 0
    assert prepare(*sources, "--overwrite", out=f"{url}/made", **options | {"seq-len": 31}) == 0
    assert stores.names(f"{url}/made.partial") == []


def trained(url: str, data: str, work: Path) -> None:
    """A job saves there and goes on from there; the doctor finds a bucket that is missing."""
    saves = (
        f'[checkpoint]\nenable = true\ninterval = 1\nkeep_latest_k = 2\nasync_mode = "async"\nfolder = "{url}/run"\n'
    )
    arguments = jobs.write_job(work / "job", Path(data), jobs.JOB.replace("[checkpoint]\n", saves))
    for steps in (2, 4):
        assert jobs.run_here(arguments, f"--training.steps={steps}") == 0
    assert list(complete_steps(f"{url}/run")) == [3, 4] == sorted(jobs.scalars(work / "job"))[-2:]
    nowhere = f"{url.partition('://')[0]}://nonesuch/run"
    arguments = jobs.write_job(
        work / "bad", Path(data), jobs.JOB.replace("[checkpoint]\n", saves.replace(f"{url}/run", nowhere))
    )
    assert main(["doctor", arguments[1], arguments[3]]) == 1


if __name__ == "__main__":
    url, corpus, data, work = sys.argv[1:]
    store, _ = stores.open_store(url)
    store.mkdir(url.split("/")[2])
    functions(f"{url}/functions")
    prepared(f"{url}/text", Path(corpus), Path(work))
    trained(f"{url}/runs", data, Path(work))
    try:
        stores.check_rights("checkpoint.folder", f"{url.partition('://')[0]}://nonesuch/run")
    except ConfigError as error:
        print("refused:", error)
