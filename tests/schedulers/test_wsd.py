"""The pure schedule and time strings."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mosaic_photon.errors import ConfigError
from mosaic_photon.job.run_length import Duration, RunLength, common_unit, parse
from mosaic_photon.schedulers.catalog import build_multiplier
from mosaic_photon.schedulers.wsd import WarmupStableDecay

RUN = RunLength(steps=100, batch_samples=8, batch_tokens=512, epoch_batches=25)
SQRT = "constant_with_sqrt_cooldown_with_warmup"
LINEAR = "constant_with_linear_cooldown_with_warmup"
SWITCH = "constant_with_sqrt_cooldown_with_warmup_and_switch"


@given(
    warmup=st.integers(0, 40),
    stable=st.integers(0, 40),
    cooldown=st.integers(0, 40),
    shape=st.sampled_from(["linear", "sqrt"]),
    scale=st.sampled_from([1.0, 0.5, 2.0]),
)
def test_every_step_is_the_closed_form(warmup, stable, cooldown, shape, scale):
    total = warmup + stable + cooldown
    schedule = WarmupStableDecay(warmup, cooldown, total, shape, scale)
    for t in range(total + 3):
        if t < warmup:
            expected = t / warmup
        elif t < total - cooldown or not cooldown:
            expected = scale
        else:
            s = min(1.0, (t - (total - cooldown)) / cooldown)
            expected = scale * (1 - (s if shape == "linear" else s**0.5))
        assert schedule(t) == pytest.approx(expected, abs=1e-12)


def test_the_boundaries():
    schedule = WarmupStableDecay(warmup=10, cooldown=20, total=100, shape="sqrt")
    at = {t: schedule(t) for t in (0, 9, 10, 79, 80, 81, 99, 100, 101)}
    assert at == {
        0: 0.0,
        9: 0.9,
        10: 1.0,
        79: 1.0,
        80: 1.0,  # the cooldown's own clock starts here, at s = 0
        81: 1 - math.sqrt(1 / 20),
        99: 1 - math.sqrt(19 / 20),
        100: 0.0,
        101: 0.0,
    }


@pytest.mark.parametrize("times", [(60, 41, 100), (-1, 0, 10), (0, 0, -1)])
def test_times_that_do_not_fit_are_refused(times):
    with pytest.raises(ValueError, match=r"longer than the schedule|negative"):
        WarmupStableDecay(*times)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("100ba", Duration(100, "ba")),
        ("1e9tok", Duration(10**9, "tok")),
        ("3_000sp", Duration(3000, "sp")),
        ("2EP", Duration(2, "ep")),
        ("0.25dur", Duration(0.25, "dur")),
    ],
)
def test_time_strings_are_composers(text, expected):
    from composer.core import Time

    assert parse(text) == expected
    theirs = Time.from_timestring(text)
    assert (theirs.value, theirs.unit.value) == (expected.value, expected.unit)


@pytest.mark.parametrize("text", ["100", "ba", "-5ba", "nandur", "1.5ba", "5sec", "1h30m", "3iter", "ten ba", ""])
def test_what_is_not_a_time_of_a_run_is_refused(text):
    with pytest.raises(ConfigError, match="time "):
        parse(text)


def test_times_convert_through_the_step():
    assert Duration(10, "ba").to("tok", RUN) == 5120
    assert Duration(80, "sp").to("ba", RUN) == 10
    assert Duration(2, "ep").to("sp", RUN) == 400
    assert Duration(0.1, "dur").to("tok", RUN) == 5120
    assert common_unit([Duration(1, "ba"), Duration(0.1, "dur")]) == "ba"
    assert common_unit([Duration(1, "ba"), Duration(1, "tok"), Duration(1, "sp")]) == "tok"


@pytest.mark.parametrize(
    "times",
    [
        {"t_warmup": "10ba", "t_cooldown": "20ba"},
        {"t_warmup": "80sp", "t_cooldown": "160sp"},
        {"t_warmup": "5120tok", "t_cooldown": "10240tok"},
        {"t_warmup": "0.1dur", "t_cooldown": "0.2dur"},
        {"t_warmup": "10ba", "t_cooldown": "10240tok", "t_max": "4ep"},
        {"t_warmup": "80sp", "t_cooldown": "0.2dur", "t_max": "100ba"},
    ],
    ids=str,
)
def test_one_schedule_in_any_mixture_of_units(times):
    expected = WarmupStableDecay(10, 20, 100, "sqrt")
    multiplier = build_multiplier(SQRT, times, RUN)
    assert [multiplier(t) for t in range(101)] == pytest.approx([expected(t) for t in range(101)])


def test_a_schedule_longer_than_the_run_is_cut_off():
    multiplier = build_multiplier(LINEAR, {"t_warmup": "10ba", "t_cooldown": "100ba", "t_max": "200ba"}, RUN)
    assert multiplier(100) == 1.0


def test_switch_scale_spares_the_warm_up():
    multiplier = build_multiplier(SWITCH, {"t_warmup": "10ba", "t_cooldown": "20ba", "switch_scale": 0.5}, RUN)
    assert [multiplier(t) for t in (5, 10, 79, 80, 85, 100)] == [0.5, 0.5, 0.5, 0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    ("name", "kwargs", "run", "message"),
    [
        (SQRT, {"t_warmup": "60ba", "t_cooldown": "0.5dur"}, RUN, "longer than the schedule, 100 .*in ba"),
        (SQRT, {"t_warmup": "10ba", "t_cooldown": "10ba", "t_max": "90ba"}, RUN, "shorter than the run, 100ba"),
        (SQRT, {"t_warmup": "10ba"}, RUN, "must give t_cooldown"),
        (SQRT, {"t_warmup": "1ba", "t_cooldown": "1ba", "t_wramup": "1ba"}, RUN, "not take 't_wramup'. Did you mean"),
        (SQRT, {"t_warmup": "1ba", "t_cooldown": "1ba", "switch_scale": 2}, RUN, "does not take 'switch_scale'"),
        (SWITCH, {"t_warmup": "1ba", "t_cooldown": "1ba", "switch_scale": -1}, RUN, "switch_scale"),
        (SQRT, {"t_warmup": "10tok", "t_cooldown": "10ba"}, RunLength(100), "does not know its tok"),
        (SQRT, {"t_warmup": "1ep", "t_cooldown": "10ba"}, RunLength(100), "does not know how long an epoch is"),
        (SQRT, {"t_warmup": "60sec", "t_cooldown": "10ba"}, RUN, "cannot run on the clock"),
        (SQRT, {"t_warmup": "1h", "t_cooldown": "10ba"}, RUN, "cannot run on the clock"),
        (SQRT, {"t_warmup": 10, "t_cooldown": "10ba"}, RUN, "time 10"),
    ],
)
def test_a_mistake_says_where_and_what(name, kwargs, run, message):
    with pytest.raises(ConfigError, match=message) as error:
        build_multiplier(name, kwargs, run)
    assert f"lr_scheduler.name = '{name}'" in str(error.value)


def test_the_mathematics_imports_neither_composer_nor_titan():
    modules = "mosaic_photon.schedulers, mosaic_photon.schedulers.wsd, mosaic_photon.schedulers.catalog"
    code = f"import sys, {modules}, mosaic_photon.optimizers; "
    code += "m = mosaic_photon.schedulers.catalog.build_multiplier"
    code += f"('{SQRT}', dict(t_warmup='1ba', t_cooldown='1ba'), mosaic_photon.schedulers.catalog.RunLength(9)); "
    code += "print(m(0), sorted({'composer', 'llmfoundry', 'torchtitan', 'streaming'} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[0] == "0.0 []"
