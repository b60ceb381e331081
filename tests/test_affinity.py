"""Cores of ranks, by a stand-in for NVML; nobody is bound for real."""

from __future__ import annotations

import os
from typing import Any

import pynvml
import pytest

from fastssl import affinity
from fastssl.affinity import bind_to_gpu, cores_near, own_cores

# Two processors of 48 cores each, as two words and a half; four GPUs at the first, four at the second.
FIRST, SECOND = set(range(48)), set(range(48, 96))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[set[int]]:
    """96 cores and eight GPUs; what is bound comes into the list."""
    bound: list[set[int]] = []
    words = {name: sum(1 << core for core in cores) for name, cores in (("first", FIRST), ("second", SECOND))}

    def affinity_words(handle: str, num_words: int) -> list[int]:
        assert num_words == 2
        return [words[handle] & (1 << 64) - 1, words[handle] >> 64]

    def bind(pid: int, cores: Any) -> None:
        bound.append(set(cores))

    monkeypatch.setattr(affinity, "nvml_handle", lambda index: "first" if index < 4 else "second")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCpuAffinity", affinity_words)
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(96)))
    monkeypatch.setattr(os, "sched_setaffinity", bind)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    return bound


@pytest.mark.usefixtures("machine")
def test_cores_are_those_of_the_words() -> None:
    assert cores_near(0) == FIRST
    assert cores_near(7) == SECOND


def test_ranks_share_their_processor_s_cores(machine: list[set[int]]) -> None:
    for rank in range(8):
        bind_to_gpu(rank)
    assert [len(cores) for cores in machine] == [12] * 8
    assert set.union(*machine[:4]) == FIRST
    assert set.union(*machine[4:]) == SECOND


def test_whoever_is_bound_stays_there(machine: list[set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3, 4})
    bind_to_gpu(0)
    assert not machine


def test_ranks_of_torch_s_launchers_share_the_cores_of_their_container(
    machine: list[set[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """These bind nobody, so that each would have as many threads as all have cores."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(32)))
    for rank in range(4):
        bind_to_gpu(rank)
    assert [len(cores) for cores in machine] == [8] * 4
    assert set.union(*machine) == set(range(32))


def test_without_an_answer_nobody_is_bound(machine: list[set[int]], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetCpuAffinity", refuse)
    bind_to_gpu(0)
    monkeypatch.setattr(affinity, "nvml_handle", lambda index: None)
    bind_to_gpu(0)
    assert not machine


def test_parts_differ_by_one_core_at_most() -> None:
    near = [set(range(7))] * 3
    parts = [own_cores(near, rank) for rank in range(3)]
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert set.union(*parts) == set(range(7))
