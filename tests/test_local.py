"""What `make demo` says before it begins."""

import os

import pytest

from flows import local


def test_a_machine_half_as_fast_takes_twice_the_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(local, "probe_s", lambda: 2 * local.PROBE_S)
    assert local.expected_s() == 2 * local.DEMO_S
    assert f"about {2 * local.DEMO_S / 60:.0f} minutes" in local.announcement(None, [])


def test_one_core_takes_longer_than_two_and_sixteen_no_less(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "probe_s", lambda: local.PROBE_S)
    seconds = {}
    for cores in (1, 2, 16):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)))
        seconds[cores] = local.expected_s()
    assert seconds[1] > seconds[2] == seconds[16] == local.DEMO_S


def test_nothing_is_promised_of_parameters_that_nobody_measured():
    assert "minutes" not in local.announcement("my.yaml", [])
    assert "minutes" not in local.announcement(None, ["bootstrap.steps=9"])


def test_the_probe_is_short():
    assert 0 < local.probe_s(1) < 60
