"""The bound on open shards, counted in /proc, and what is read while shards are let go."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import random
import resource
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from analytic_rooms import RoomSource

from fastssl.errors import MachineError, ShardError
from fastssl.shards import JPEG, ShardSet, descriptors, pack
from fastssl.shards.descriptors import OpenShard, OpenShards, Owner, most_kept, most_open


@pytest.fixture(scope="module")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of one room each."""
    out = tmp_path_factory.mktemp("packed") / "singles"
    pack(RoomSource(Path("rooms"), 12), out, size=32, samples_per_shard=1)
    return out


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> OpenShards:
    """The process's shards, of which four may be open."""
    gc.collect()
    pool = OpenShards(lambda: 4)
    monkeypatch.setattr("fastssl.shards.reader.open_shards", pool)
    return pool


def open_tars() -> list[str]:
    """Paths of the archives that this process has open."""
    paths = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            paths.append(str(link.readlink()))
        except FileNotFoundError:
            continue  # of the listing itself
    return [path for path in paths if path.endswith(".tar")]


def test_one_bound_holds_for_all_datasets_together(singles: Path, few: OpenShards) -> None:
    before = len(open_tars())
    datasets = [ShardSet(singles) for _ in range(5)]
    expected = [ShardSet(singles).member(index, JPEG).tobytes() for index in range(12)]
    order = random.Random(0).choices([(one, index) for one in range(5) for index in range(12)], k=400)
    for one, index in order:
        assert datasets[one].member(index, JPEG).tobytes() == expected[index]
        assert len(open_tars()) - before <= 4
    assert len(few) == 4


def test_the_least_recently_used_goes_first(singles: Path, few: OpenShards) -> None:
    one, other = ShardSet(singles), ShardSet(singles)
    before = Counter(open_tars())
    for shards, index in ((one, 0), (one, 1), (other, 2), (other, 3), (one, 0), (other, 4)):
        shards.key(index)
    opened = sorted(Path(path).name for path in Counter(open_tars()) - before)
    assert opened == ["000000.tar", "000002.tar", "000003.tar", "000004.tar"]


def test_a_dataset_s_shards_are_let_go_with_it(singles: Path, few: OpenShards) -> None:
    """And another dataset never gets them, whatever the place in memory that it is given."""
    for _ in range(50):
        shards = ShardSet(singles)
        shards.key(0)
        del shards
    gc.collect()
    shards = ShardSet(singles)
    shards.key(5)
    assert len(few) == 1


def test_a_shard_is_read_on_while_it_is_let_go(singles: Path, few: OpenShards) -> None:
    """Threads of two datasets that let go of each other's shards all the time read the right bytes."""
    datasets = [ShardSet(singles) for _ in range(3)]
    expected = [ShardSet(singles).member(index, JPEG).tobytes() for index in range(12)]

    def read(seed: int) -> bool:
        rng = random.Random(seed)
        turns = ((rng.randrange(3), rng.randrange(12)) for _ in range(400))
        return all(datasets[one].member(index, JPEG).tobytes() == expected[index] for one, index in turns)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(8)))
    assert len(few) <= 4


def test_a_fork_reads_on_though_another_thread_was_in_the_midst(singles: Path) -> None:
    shards = ShardSet(singles)
    expected = shards.member(0, JPEG).tobytes()
    with descriptors.open_shards._lock:  # of this thread here; it is never let go in the fork
        child = os.fork()
        if child == 0:
            same = shards.member(0, JPEG).tobytes() == expected and shards.member(7, JPEG).size > 0
            os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert pickle.loads(pickle.dumps(shards)).member(0, JPEG).tobytes() == expected


def test_two_threads_that_open_one_shard_share_it(singles: Path) -> None:
    pool, owner, meet = OpenShards(lambda: 4), Owner(12), threading.Barrier(2, timeout=20)

    def open_one(number: int) -> OpenShard:
        meet.wait()
        return OpenShard(os.open(singles / f"{number:06d}.tar", os.O_RDONLY), "here")

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: pool.get(owner, 3, open_one), range(2))
    assert first is second
    assert len(pool) == 1


def test_a_dataset_has_a_bound_of_its_own(singles: Path) -> None:
    pool, small, large = OpenShards(lambda: 8), Owner(2), Owner(12)

    def open_one(number: int) -> OpenShard:
        return OpenShard(os.open(singles / f"{number:06d}.tar", os.O_RDONLY), "here")

    kept = [pool.get(large, number, open_one) for number in range(4)]
    for number in range(6):
        pool.get(small, number, open_one)
    assert len(pool) == 6
    assert [pool.get(large, number, open_one) for number in range(4)] == kept


@pytest.fixture
def limit() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.usefixtures("limit")
@pytest.mark.parametrize(("allowed", "opened", "kept"), [(1024, 256, 128), (256, 64, 32), (4096, 256, 128)])
def test_the_bound_is_a_share_of_what_the_system_allows(allowed: int, opened: int, kept: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    assert (most_open(), most_kept()) == (opened, kept)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_fault_of_the_machine_is_no_damage(singles: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    shards = ShardSet(singles)

    def fails(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    for name in ("pread", "preadv"):
        monkeypatch.setattr(os, name, fails)
    for read in (lambda: shards.key(2), lambda: shards.read(2, (JPEG,), lambda size: np.empty(size, np.uint8))):
        with pytest.raises(MachineError, match=r"000002\.tar"):
            read()


def test_an_archive_that_is_a_folder_is_no_fault_of_the_machine(singles: Path) -> None:
    with pytest.raises(ShardError, match="cannot be read"):
        OpenShard(os.open(singles, os.O_RDONLY), singles).read(0, 10)


def test_what_is_kept_is_counted_until_it_is_let_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(descriptors, "_MOST_KEPT", 2)
    monkeypatch.setattr(descriptors, "_keeping", set())
    opened = [os.open(tmp_path, os.O_RDONLY) for _ in range(3)]
    assert [descriptors.keeps(one) for one in opened] == [True, True, False]
    descriptors.keep_no_longer(opened[0])
    assert descriptors.keeps(opened[2])
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
    for one in opened[1:]:
        descriptors.keep_no_longer(one)
