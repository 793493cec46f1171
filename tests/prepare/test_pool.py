"""How the work is cut into parts and handed out: bounded, whatever the corpus."""

import itertools
import pickle
import random

import numpy as np
import pytest

from mosaic_photon.cli import main
from mosaic_photon.prepare.parts import PART_FILES, parts_of
from mosaic_photon.prepare.pool import Processes, in_flight
from mosaic_photon.prepare.run import Tally
from mosaic_photon.prepare.sources import TextSource
from mosaic_photon.prepare.tokenization import Count


def test_no_more_calls_are_made_than_are_in_flight():
    made, done, limit = [], [], [3]

    def calls():
        for number in range(200):
            made.append(number)
            yield (number,)

    def ended(pending):
        assert len(pending) <= limit[0]
        limit[0] = random.Random(len(done)).randint(1, 7)  # as a cluster shrinks and grows
        limit[0] = max(limit[0], len(pending) - 1)
        return pending[-1:]

    for position, handle in in_flight(calls(), lambda: limit[0], lambda call: f"handle {call[0]}", ended):
        assert handle == f"handle {position}"
        done.append(position)
        assert len(made) - len(done) <= 7
    assert sorted(done) == list(range(200))


def test_processes_do_all_calls_and_tell_each():
    results = {}
    Processes(2).run(pow, ((number, 2) for number in range(50)), results.__setitem__)
    assert results == {number: number**2 for number in range(50)}


def sources(sizes, kind="jsonl"):
    return [
        TextSource(f"s3://bucket/folder/{number:07}.{kind}", kind, "", size, "1") for number, size in enumerate(sizes)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_parts_are_ranges_that_hold_each_byte_once(kind):
    rng = np.random.default_rng(3)
    given = sources(rng.integers(1, 90 << 20, 40).tolist(), kind)
    total = sum(source.size for source in given)
    parts = list(parts_of(given, total, cuttable=True))
    pieces = [piece for part in parts for piece in part]
    for source in given:
        own = [piece for piece in pieces if piece.path == source.path]
        bounds = [0] + [piece.stop for piece in own]
        assert [(piece.start, piece.stop) for piece in own] == list(itertools.pairwise(bounds))
        assert bounds[-1] == source.size
    assert max(sum(piece.stop - piece.start for piece in part) for part in parts) <= 37 << 20
    assert max(len({piece.path for piece in part}) for part in parts) == max(map(len, parts))  # one range a file


def test_a_parts_record_does_not_grow_with_the_corpus():
    largest = []
    for files in (1_000, 5_000):
        given = sources([9_000] * files)
        parts = parts_of(given, 9_000 * files, cuttable=True)
        largest.append(max(len(pickle.dumps((number, part))) for number, part in enumerate(parts)))
    assert largest[1] <= PART_FILES * 80
    huge = sources([4 << 40])
    assert len(pickle.dumps(next(parts_of(huge, 4 << 40, cuttable=True)))) < 500


def test_the_tally_of_a_part_is_its_tokens():
    tally = Tally(1000)
    for number in range(1000):
        tally.add(number, Count({"train": number, "val": 1}, {"train": 2, "val": 0}, bad=number % 2))
    assert tally.tokens["train"].sum() == 499_500
    assert (tally.documents["train"], tally.bad, len(tally.with_bad_lines)) == (2000, 500, 500)
    assert len(pickle.dumps(tally.tokens)) < 1000 * 2 * 8 + 500


def test_ray_that_is_not_installed_is_one_message(tmp_path, monkeypatch, capsys):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["prepare", "--ray", "auto", "--tokenizer", "x", "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'mosaic-photon[ray]'" in capsys.readouterr().err
