"""Against a local HTTP server that fails on purpose, and a real S3 server."""

from __future__ import annotations

import errno
import gc
import hashlib
import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from itertools import repeat
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import fsspec.implementations.http
import numpy as np
import pytest
from analytic_rooms import RoomSource
from faulty_store import FaultyStore, digests

from fastssl.addresses import masked
from fastssl.errors import DataError, DeviceError, MachineError, ShardError, UsageError
from fastssl.shards import (
    CLASS_INDEX,
    JPEG,
    MANIFEST,
    TARGETS,
    ShardSet,
    decode_sample,
    descriptors,
    fetch,
    pack,
    prefetch,
    read_manifest,
    read_samples,
)
from fastssl.shards.cache import Cache, default_cache
from fastssl.shards.fetch import RemoteFiles
from fastssl.shards.prefetch import RemoteFolder

ROOM = 10**9
SLOW = {"silent", "stall", "trickle"}


@pytest.fixture(scope="session")
def singles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shards of one room each, in all."""
    out = tmp_path_factory.mktemp("packed") / "singles"
    pack(RoomSource(Path("rooms"), 12), out, size=32, samples_per_shard=1)
    return out


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", ROOM)


@pytest.fixture
def store(rooms: Path, tmp_path: Path) -> Iterator[FaultyStore]:
    """Serves a copy of the rooms, to be damaged."""
    with FaultyStore(Path(shutil.copytree(rooms, tmp_path / "origin"))) as server:
        yield server


@pytest.fixture
def single_store(singles: Path) -> Iterator[FaultyStore]:
    with FaultyStore(singles) as server:
        yield server


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_FIRST_PAUSE_S", 0.001)


def upload(folder: Path, bucket: str) -> None:
    client = pytest.importorskip("boto3").client("s3")
    for path in folder.iterdir():
        client.upload_file(str(path), bucket.removeprefix("s3://"), f"sets/rooms/{path.name}")


def same_samples(shards: ShardSet, folder: Path) -> bool:
    """Members, keys and decoded samples are those of the local folder."""
    local = ShardSet(folder)
    for index in range(len(local)):
        assert shards.key(index) == local.key(index)
        for name in (JPEG, TARGETS, CLASS_INDEX):
            assert shards.member(index, name).tobytes() == local.member(index, name).tobytes()
        seen, expected = vars_of(decode_sample(shards, index)), vars_of(decode_sample(local, index))
        assert seen.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_array_equal(seen[name], value)
    return len(shards) == len(local)


def vars_of(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in ("key", "image", "depth", "normal", "edge", "valid", "class_index")}


def sound(folder: Path) -> list[str]:
    """Names of a cache's shards, after a look that there is nothing else and that they are what their names say."""
    names = sorted(path.name for path in folder.iterdir())
    assert "lock" in names
    names.remove("lock")
    for name in names:
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() + ".tar" == name
    return names


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.005)


def sizes(folder: Path) -> list[int]:
    return [shard.bytes for shard in read_manifest(folder).shards]


def test_samples_over_http_are_the_local_ones(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    shards = ShardSet(f"{store.address}/sets/rooms/", cache)
    assert shards.is_remote
    assert same_samples(shards, rooms)
    assert store.count() == {"000000.tar": 1, "000001.tar": 1, "000002.tar": 1}
    assert len(sound(cache.folder)) == 3
    again = ShardSet(f"{store.address}/elsewhere", cache)
    assert same_samples(again, rooms)
    assert store.count().total() == 3


def test_samples_on_s3_are_the_local_ones(bucket: str, rooms: Path, cache: Cache) -> None:
    upload(rooms, bucket)
    assert same_samples(ShardSet(f"{bucket}/sets/rooms/", cache), rooms)
    assert len(sound(cache.folder)) == 3


def test_a_store_without_an_asynchronous_client(rooms: Path, cache: Cache) -> None:
    fsspec.filesystem("memory").put(f"{rooms}/", "/rooms/", recursive=True)
    assert same_samples(ShardSet("memory://rooms", cache), rooms)
    fsspec.filesystem("memory").rm("/rooms", recursive=True)


def test_checksums_come_from_the_store(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    shards, local = ShardSet(store.address, cache), ShardSet(rooms)
    assert [shards.checksum(i, TARGETS) for i in range(7)] == [local.checksum(i, TARGETS) for i in range(7)]


@pytest.mark.parametrize(
    "faults",
    [
        ["cut"],
        ["hangup"],
        ["unsized"],
        ["short"],
        ["long"],
        ["wrong"],
        ["silent"],
        ["stall"],
        ["trickle"],
        ["endless"],
        ["403"],
        ["500"] * 4,
        ["500", "cut", "wrong", "503"],
        ["wrong", "short", "wrong", "long"],
    ],
    ids="-".join,
)
def test_faults_that_pass_are_survived(
    store: FaultyStore, rooms: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, faults: list[str]
) -> None:
    shards = ShardSet(store.address, cache)
    if SLOW.intersection(faults):
        monkeypatch.setattr(fetch, "_PATIENCE_S", 0.7)
    store.faults["GET 000001.tar"] = iter(faults)
    assert same_samples(shards, rooms)
    assert store.count() == {"000000.tar": 1, "000001.tar": 1 + len(faults), "000002.tar": 1}
    assert len(sound(cache.folder)) == 3


@pytest.mark.parametrize(
    ("fault", "error", "tries", "message"),
    [
        ("cut", DataError, 5, "could not be fetched"),
        ("hangup", DataError, 5, "could not be fetched"),
        ("silent", DataError, 5, "0 bytes came in 0.05 s"),
        ("stall", DataError, 5, "bytes came in 0.05 s"),
        ("trickle", DataError, 5, "bytes came in 0.05 s"),
        ("500", DataError, 5, "500"),
        ("404", ShardError, 1, "missing"),
        ("unsized", ShardError, 2, "bytes came, the manifest says"),
        ("short", ShardError, 2, "bytes came, the manifest says"),
        ("long", ShardError, 2, "more than .* bytes came, the manifest says fewer"),
        ("endless", ShardError, 2, "more than .* bytes came, the manifest says fewer"),
        ("wrong", ShardError, 2, "SHA-256 .* came, the manifest says"),
    ],
)
def test_faults_that_last_are_refused(
    store: FaultyStore,
    rooms: Path,
    cache: Cache,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    error: type[DataError],
    tries: int,
    message: str,
) -> None:
    shards = ShardSet(store.address, cache)
    store.faults["GET 000001.tar"] = repeat(fault)
    with monkeypatch.context() as patch:
        if fault in SLOW:
            patch.setattr(fetch, "_PATIENCE_S", 0.05)
        with pytest.raises(DataError, match=message) as caught:
            shards.member(3, JPEG)
    assert type(caught.value) is error
    assert caught.value.where == f"{store.address}/000001.tar"
    assert tries == 1 or str(caught.value.seen).endswith(f"(after {tries} tries)")
    # The HTTP client itself tries again when a connection that it kept is closed.
    assert store.count() == {"000001.tar": tries} or fault == "hangup"
    assert sound(cache.folder) == []
    store.faults.clear()
    assert same_samples(shards, rooms)


def test_a_client_that_removes_what_it_could_not_fetch(
    store: FaultyStore, rooms: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_file = fsspec.implementations.http.HTTPFileSystem._get_file

    async def tidy(self: Any, path: str, target: str, **options: Any) -> None:  # as gcsfs does
        try:
            await get_file(self, path, target, **options)
        except BaseException:
            Path(target).unlink(missing_ok=True)
            raise

    shards = ShardSet(store.address, cache)
    store.faults |= {"GET 000000.tar": iter(["cut", "500", "stall", "cut"]), "GET 000001.tar": iter(["long"])}
    monkeypatch.setattr(fsspec.implementations.http.HTTPFileSystem, "_get_file", tidy)
    monkeypatch.setattr(fetch, "_PATIENCE_S", 0.7)
    assert same_samples(shards, rooms)
    assert len(sound(cache.folder)) == 3


@pytest.mark.parametrize("faults", [["500", "500", "cut"], ["silent"]], ids="-".join)
@pytest.mark.parametrize("request_", ["GET manifest.json", "GET 000001.idx", "HEAD 000001.tar"])
def test_opening_survives_faults(
    store: FaultyStore, rooms: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, request_: str, faults: list[str]
) -> None:
    monkeypatch.setattr(fetch, "_PATIENCE_S", 0.5)
    store.faults[request_] = iter(faults)
    assert len(ShardSet(store.address, cache)) == 7
    assert request_.startswith("HEAD") or next(store.faults[request_], None) is None


@pytest.mark.parametrize("name", [MANIFEST, "000001.idx", "000001.tar"])
def test_opening_gives_up_on_a_store_that_does_not_answer(
    store: FaultyStore, cache: Cache, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for method in ("GET", "HEAD"):
        store.faults[f"{method} {name}"] = repeat("500")
    with pytest.raises(DataError, match=r"could not be fetched(.|\n)*500") as caught:
        ShardSet(store.address, cache)
    assert caught.value.where == f"{store.address}/{name}"


def test_nothing_listens_at_the_address(cache: Cache) -> None:
    with FaultyStore(Path()) as gone:
        pass
    with pytest.raises(DataError, match="could not be fetched") as caught:
        ShardSet(gone.address, cache)
    assert caught.value.where == f"{gone.address}/manifest.json"


def damage(shard: Path, how: str) -> None:
    content = shard.read_bytes()
    shard.write_bytes({"cut": content[:-512], "empty": b"", "longer": content + b"\0"}.get(how, content))
    if how == "missing":
        shard.unlink()


@pytest.mark.parametrize(
    ("how", "message"), [("missing", "missing"), ("cut", "cut short"), ("empty", "cut short"), ("longer", "longer")]
)
@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_shard_that_is_not_whole_is_refused_when_the_dataset_is_opened(
    store: FaultyStore, cache: Cache, request: pytest.FixtureRequest, protocol: str, how: str, message: str
) -> None:
    assert isinstance(store.origin, Path)
    address = store.address
    damage(store.origin / "000001.tar", how)
    if protocol == "s3":
        bucket = request.getfixturevalue("bucket")
        upload(store.origin, bucket)
        address = f"{bucket}/sets/rooms"
    with pytest.raises(ShardError, match=message) as caught:
        ShardSet(address, cache)
    assert caught.value.where == f"{address}/000001.tar"
    assert store.count().keys() <= {"000001.tar"}  # fsspec asks for the file itself where HEAD fails


def test_a_store_that_tells_no_sizes_is_read(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    store.tells_size = False
    assert same_samples(ShardSet(store.address, cache), rooms)


@pytest.mark.parametrize("protocol", ["http", "s3"])
def test_a_shard_that_was_replaced_is_refused_when_it_is_fetched(
    store: FaultyStore, cache: Cache, request: pytest.FixtureRequest, protocol: str
) -> None:
    assert isinstance(store.origin, Path)
    address, shard = store.address, store.origin / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[700] ^= 1
    shard.write_bytes(content)
    if protocol == "s3":
        bucket = request.getfixturevalue("bucket")
        upload(store.origin, bucket)
        address = f"{bucket}/sets/rooms"
    shards = ShardSet(address, cache)
    shards.member(0, JPEG)
    with pytest.raises(ShardError, match=r"SHA-256") as caught:
        shards.member(3, JPEG)
    assert caught.value.where == f"{address}/000001.tar"
    assert len(sound(cache.folder)) == 1


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        (MANIFEST, None, DataError, "no manifest"),
        (MANIFEST, b'{"format"', DataError, "not valid JSON"),
        ("000001.idx", None, DataError, "no index"),
        ("000001.idx", b"v1.2 3\n", ShardError, "index cannot be used"),
    ],
)
def test_a_dataset_without_sound_lists_is_refused(
    store: FaultyStore, cache: Cache, name: str, content: bytes | None, error: type[DataError], message: str
) -> None:
    assert isinstance(store.origin, Path)
    if content is None:
        (store.origin / name).unlink()
    else:
        (store.origin / name).write_bytes(content)
    with pytest.raises(error, match=message) as caught:
        ShardSet(store.address, cache)
    assert caught.value.where == f"{store.address}/{name}"


def test_faults_of_s3_are_survived(
    s3_endpoint: str, bucket: str, rooms: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(rooms, bucket)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with FaultyStore(s3_endpoint) as store:
        monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": store.address})
        shards = ShardSet(f"{bucket}/sets/rooms", cache)
        store.faults |= {
            "GET 000000.tar": iter(["500", "503"]),
            "GET 000001.tar": iter(["wrong"]),
            "GET 000002.tar": iter(["cut"]),
        }
        assert same_samples(shards, rooms)
        assert store.count() == {"000000.tar": 3, "000001.tar": 2, "000002.tar": 2}
        assert len(sound(cache.folder)) == 3


def test_a_dataset_that_was_packed_again_is_another(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    assert isinstance(store.origin, Path)
    before = ShardSet(store.address, cache)
    before.member(0, JPEG)
    shutil.rmtree(store.origin)
    pack(RoomSource(Path("rooms"), 5, height=48), store.origin, size=32, samples_per_shard=3)
    assert same_samples(ShardSet(store.address, cache), store.origin)
    with pytest.raises(ShardError, match=r"the manifest says(.|\n)*"):
        before.member(3, JPEG)
    assert before.member(1, JPEG).tobytes() == ShardSet(rooms).member(1, JPEG).tobytes()


class Watch:
    """Looks at a cache's size all the time."""

    def __init__(self, folder: Path) -> None:
        self.most = self.looks = 0
        self._folder, self._done = folder, threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._done.is_set():
            total = 0
            for path in list(self._folder.iterdir()):
                try:
                    total += path.stat().st_size
                except FileNotFoundError:
                    continue
            self.most, self.looks = max(self.most, total), self.looks + 1


def test_the_limit_is_held_at_every_moment(single_store: FaultyStore, singles: Path, tmp_path: Path) -> None:
    limit = sum(sorted(sizes(singles))[-4:])
    cache = Cache(tmp_path / "cache", limit)
    single_store.faults |= {"GET 000003.tar": iter(["wrong"]), "GET 000007.tar": iter(["cut", "cut"])}
    with Watch(cache.folder) as watch, ThreadPoolExecutor(3) as pool:
        readers = [ShardSet(single_store.address, cache) for _ in range(3)]
        orders = [random.Random(seed).sample(range(12), 12) for seed in range(3)]

        def read(number: int) -> None:
            for turn, index in enumerate(orders[number]):
                readers[number].prefetch(orders[number][turn : turn + 3])
                assert readers[number].member(index, JPEG).tobytes() == ShardSet(singles).member(index, JPEG).tobytes()

        for _ in pool.map(read, range(3)):
            pass
    assert watch.looks > 20
    assert watch.most <= limit
    assert sum((cache.folder / name).stat().st_size for name in sound_soon(cache.folder)) <= limit


def test_a_store_that_does_not_stop_is_stopped(store: FaultyStore, cache: Cache) -> None:
    shards = ShardSet(store.address, cache)
    store.faults["GET 000001.tar"] = repeat("endless")
    with Watch(cache.folder) as watch, pytest.raises(ShardError, match="more than"):
        shards.member(3, JPEG)
    assert watch.most < 10**6


def sound_soon(folder: Path) -> list[str]:
    """As `sound`, when nothing is being fetched any more."""
    wait_until(lambda: not list(folder.glob("*.lock")))
    return sound(folder)


def test_the_least_recently_used_shard_goes_first(single_store: FaultyStore, singles: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", sum(sorted(sizes(singles))[-3:]))
    (cache.folder / "notes.txt").write_bytes(bytes(10**6))
    entries = read_manifest(singles).shards
    for number in (0, 1, 2, 0, 3):
        os.close(cache.open(RemoteFiles(single_store.address), entries[number]))
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(4)}
    there = [number for number, entry in enumerate(entries) if (cache.folder / f"{entry.sha256}.tar").exists()]
    assert there == [0, 2, 3]
    assert (cache.folder / "notes.txt").exists()


def test_what_is_there_or_claimed_cannot_be_claimed(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    entries = read_manifest(rooms).shards
    os.close(cache.open(RemoteFiles(store.address), entries[0]))
    assert cache.claim(entries[0]) is None
    claim = cache.claim(entries[1])
    assert claim is not None
    with claim:
        assert cache.claim(entries[1]) is None
        assert cache.copy(entries[1]) is None
    again = cache.claim(entries[1])  # whoever had it is gone
    assert again is not None
    os.close(cache.fetch(RemoteFiles(store.address), entries[1], again))
    assert len(sound(cache.folder)) == 2


def test_an_open_shard_is_read_on_after_it_was_removed(
    single_store: FaultyStore, singles: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", max(sizes(singles)))
    shards, other = ShardSet(single_store.address, cache), ShardSet(single_store.address, cache)
    first = shards.member(0, JPEG).tobytes()
    other.member(1, JPEG)
    assert len(sound(cache.folder)) == 1
    assert shards.member(0, JPEG).tobytes() == first
    assert single_store.count() == {"000000.tar": 1, "000001.tar": 1}


def test_a_cache_that_is_too_small_for_what_is_shuffled_together_is_told(
    single_store: FaultyStore, singles: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Cache(tmp_path / "cache", 2 * max(sizes(singles)))
    shards = ShardSet(single_store.address, cache)
    for first in (0, 4):
        shards.prefetch(range(first, first + 2))
        for index in [first, first + 1] * 2:
            shards.member(index, JPEG)
    assert "too small" not in caplog.text
    shards.prefetch(range(8, 12))
    for index in [8, 9, 10, 11] * 3:
        shards.member(index, JPEG)
    assert caplog.text.count("too small") == 1


def test_a_damaged_copy_is_fetched_again(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    entry = read_manifest(rooms).shards[0]
    (cache.folder / f"{entry.sha256}.tar").write_bytes(b"cut short")
    assert same_samples(ShardSet(store.address, cache), rooms)
    assert len(sound(cache.folder)) == 3


@pytest.fixture(scope="module")
def processes() -> Iterator[Pool]:
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        yield pool


def read_side_by_side(processes: Pool, store: FaultyStore, folder: Path, limit: int) -> None:
    """Each process reads all samples in an order of its own, and gets the right ones."""
    orders = [random.Random(seed).sample(range(12), 12) for seed in range(3)]
    found = processes.starmap(digests, [(store.address, folder, limit, order) for order in orders], chunksize=1)
    local = ShardSet(store.origin)
    assert found == [[hashlib.sha256(local.member(index, JPEG)).hexdigest() for index in order] for order in orders]


def test_processes_share_a_cache(processes: Pool, single_store: FaultyStore, tmp_path: Path) -> None:
    single_store.delay_s = 0.005
    read_side_by_side(processes, single_store, tmp_path / "cache", ROOM)
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(12)}
    assert len(sound(tmp_path / "cache")) == 12


def test_processes_share_a_cache_that_is_too_small(
    processes: Pool, single_store: FaultyStore, singles: Path, tmp_path: Path
) -> None:
    limit = sum(sorted(sizes(singles))[-2:])
    folder = Cache(tmp_path / "cache", limit).folder
    with Watch(folder) as watch:
        read_side_by_side(processes, single_store, folder, limit)
    assert watch.looks > 20
    assert watch.most <= limit


def test_a_killed_process_leaves_a_cache_that_can_be_used(
    single_store: FaultyStore, singles: Path, tmp_path: Path
) -> None:
    limit, folder = sum(sorted(sizes(singles))[-2:]), tmp_path / "cache"
    for number in (0, 1):
        single_store.faults[f"GET {number:06d}.tar"] = iter(["stall"])
    arguments = (single_store.address, folder, limit, [0, 1])
    process = multiprocessing.get_context("spawn").Process(target=digests, args=arguments)
    process.start()
    wait_until(lambda: len(single_store.count()) == len(list(folder.glob("*.partial"))) == 2)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process.close()
    assert len(list(folder.iterdir())) == 1 + 2 * 2
    assert same_samples(ShardSet(single_store.address, Cache(folder, limit)), singles)
    assert len(sound(folder)) == 2


def test_threads_fetch_each_shard_once(single_store: FaultyStore, singles: Path, cache: Cache) -> None:
    single_store.delay_s = 0.01
    shards, local = ShardSet(single_store.address, cache), ShardSet(singles)
    order = [index for _ in range(4) for index in range(12)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda index: shards.member(index, JPEG).tobytes(), order))
    assert found == [local.member(index, JPEG).tobytes() for index in order]
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(12)}


def test_a_copy_through_pickle_reads_the_same(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    shards = ShardSet(store.address, cache)
    shards.prefetch([0, 1])
    shards.member(0, JPEG)
    copy = pickle.loads(pickle.dumps(shards))
    copy.prefetch([2])
    assert same_samples(copy, rooms)
    assert store.count().total() == 3


def _read_in_a_fork(shards: ShardSet, index: int, queue: Any) -> None:
    shards.prefetch([1, 2])
    queue.put(shards.member(index, JPEG).tobytes())


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("held", [False, True])
def test_a_fork_reads_on(store: FaultyStore, rooms: Path, cache: Cache, held: bool) -> None:
    """Also one that comes while a thread that fetches ahead notes what it has."""
    shards = ShardSet(store.address, cache)
    shards.prefetch([0, 1])
    shards.member(0, JPEG)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_read_in_a_fork, args=(shards, 6, queue), daemon=True)
    folder = shards._store
    assert isinstance(folder, RemoteFolder)
    with folder._lock if held else nullcontext():
        process.start()
    assert queue.get(timeout=60) == ShardSet(rooms).member(6, JPEG).tobytes()
    process.join(20)
    assert process.exitcode == 0
    assert same_samples(shards, rooms)


def test_announced_shards_are_fetched_before_they_are_read(
    single_store: FaultyStore, singles: Path, cache: Cache
) -> None:
    shards = ShardSet(single_store.address, cache)
    shards.prefetch([3, 1])
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 2)
    assert single_store.count() == {"000001.tar": 1, "000003.tar": 1}
    before = len(single_store.requests)
    assert shards.member(3, JPEG).tobytes() == ShardSet(singles).member(3, JPEG).tobytes()
    assert shards.member(1, JPEG).tobytes() == ShardSet(singles).member(1, JPEG).tobytes()
    assert len(single_store.requests) == before


def test_reading_in_order_fetches_ahead(
    single_store: FaultyStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "cache"))
    samples = read_samples(single_store.address)
    assert single_store.count() == {}
    next(samples)
    wait_until(lambda: single_store.count().keys() == {"000000.tar", "000001.tar", "000002.tar"})
    assert [sample.key for sample in samples] == [f"room_{number:03d}" for number in range(1, 12)]
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(12)}


def test_announcing_more_than_the_cache_holds_fetches_each_shard_once(
    single_store: FaultyStore, singles: Path, tmp_path: Path
) -> None:
    cache = Cache(tmp_path / "cache", sum(sorted(sizes(singles))[-3:]))
    shards, local = ShardSet(single_store.address, cache), ShardSet(singles)
    order = random.Random(0).sample(range(12), 12)
    for turn, index in enumerate(order):
        shards.prefetch(order[turn:])
        coming = [f"{number:06d}.tar" for number in order[: turn + 3]]
        wait_until(lambda coming=coming: single_store.count().keys() == set(coming))
        assert shards.member(index, JPEG).tobytes() == local.member(index, JPEG).tobytes()
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(12)}


def test_what_is_needed_earlier_takes_the_place_of_what_is_needed_last(
    single_store: FaultyStore, singles: Path, tmp_path: Path
) -> None:
    entries = read_manifest(singles).shards
    cache = Cache(tmp_path / "cache", 3 * max(sizes(singles)))
    shards = ShardSet(single_store.address, cache)

    def there() -> list[int]:
        return [number for number, entry in enumerate(entries) if (cache.folder / f"{entry.sha256}.tar").exists()]

    shards.prefetch([0, 1, 2])
    wait_until(lambda: there() == [0, 1, 2])
    shards.prefetch([5, 1, 0, 2])
    wait_until(lambda: there() == [0, 1, 5])
    other = ShardSet(single_store.address, cache)
    other.prefetch([7])
    time.sleep(0.1)
    assert there() == [0, 1, 5]
    assert other.member(7, JPEG).tobytes() == ShardSet(singles).member(7, JPEG).tobytes()
    assert 7 in there()
    shards.prefetch([])
    other.prefetch([8, 9, 10])
    wait_until(lambda: there() == [8, 9, 10])


def test_a_shard_that_cannot_be_fetched_ahead_is_an_error_when_it_is_read(
    single_store: FaultyStore, singles: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_LOOK_AGAIN_S", 0)
    shards = ShardSet(single_store.address, cache)
    single_store.faults["GET 000004.tar"] = repeat("wrong")
    for _ in range(3):
        shards.prefetch([4, 5])
        wait_until(lambda: single_store.count() == {"000004.tar": 2, "000005.tar": 1})
        wait_until(lambda: len(list(cache.folder.iterdir())) == 2)
    with pytest.raises(ShardError, match=r"000004\.tar"):
        shards.member(4, JPEG)
    assert shards.member(5, JPEG).tobytes() == ShardSet(singles).member(5, JPEG).tobytes()


def num_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_few_descriptors_keep_many_shards(
    single_store: FaultyStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "_MOST_KEPT", 2)
    shards = ShardSet(single_store.address, cache)
    before = num_descriptors()
    shards.prefetch(range(12))
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 12)
    shards.prefetch(range(1, 12))
    assert num_descriptors() - before <= 2 + 4  # connections
    assert single_store.count() == {f"{number:06d}.tar": 1 for number in range(12)}


def test_many_shards_are_opened_side_by_side(rooms: Path, tmp_path: Path, cache: Cache) -> None:
    origin = tmp_path / "many"
    origin.mkdir()
    manifest = json.loads((rooms / MANIFEST).read_text())
    first = manifest["shards"][0]
    manifest["shards"] = [first | {"name": f"{number:06d}.tar"} for number in range(200)]
    manifest["samples"] = 200 * first["samples"]
    (origin / MANIFEST).write_text(json.dumps(manifest))
    for number in range(200):
        for suffix in (".tar", ".idx"):
            (origin / f"{number:06d}{suffix}").symlink_to(rooms / f"000000{suffix}")
    with FaultyStore(origin, delay_s=0.02) as store:
        start = time.monotonic()
        shards = ShardSet(store.address, cache)
        took = time.monotonic() - start
    assert len(shards) == 600
    assert store.most_at_once > 10
    assert took < 4  # one after another would take 8 seconds


def test_a_shard_larger_than_the_cache_is_refused(store: FaultyStore, rooms: Path, tmp_path: Path) -> None:
    largest = max(sizes(rooms))
    assert same_samples(ShardSet(store.address, Cache(tmp_path / "cache", largest)), rooms)
    with pytest.raises(UsageError, match=rf"larger than the cache(.|\n)*{largest} bytes(.|\n)*FASTSSL_CACHE_BYTES"):
        ShardSet(store.address, Cache(tmp_path / "cache", largest - 1))


@pytest.mark.parametrize("text", ["0", "-1", "1e9", "50GB", "²", " "])
def test_a_bound_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str) -> None:
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path))
    monkeypatch.setenv("FASTSSL_CACHE_BYTES", text)
    with pytest.raises(UsageError, match="FASTSSL_CACHE_BYTES"):
        default_cache()


def test_the_environment_places_and_bounds_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    for name in ("FASTSSL_CACHE", "FASTSSL_CACHE_BYTES"):
        monkeypatch.delenv(name, raising=False)
    cache = default_cache()
    assert (cache.folder, cache.max_bytes) == (tmp_path / "users" / "fastssl" / "shards", 50 * 10**9)
    monkeypatch.setenv("FASTSSL_CACHE", str(tmp_path / "mine"))
    monkeypatch.setenv("FASTSSL_CACHE_BYTES", "1234")
    cache = default_cache()
    assert (cache.folder, cache.max_bytes) == (tmp_path / "mine", 1234)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cache folder(.|\n)*FASTSSL_CACHE"):
            Cache(folder)


def test_a_cache_that_was_removed_is_made_again(store: FaultyStore, rooms: Path, cache: Cache) -> None:
    shards = ShardSet(store.address, cache)
    shards.member(0, JPEG)
    shutil.rmtree(cache.folder)
    assert same_samples(shards, rooms)


def test_a_full_disk_is_told(store: FaultyStore, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    shards = ShardSet(store.address, cache)
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem._get_file", full)
    with pytest.raises(DeviceError, match=r"disk(.|\n)*full(.|\n)*FASTSSL_CACHE_BYTES"):
        shards.member(0, JPEG)
    assert sound(cache.folder) == []


def test_no_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has no entry in the list of users."""
    for name in ("HOME", "FASTSSL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", nobody)
    with pytest.raises(UsageError, match=r"home folder(.|\n)*FASTSSL_CACHE"):
        default_cache()


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, MachineError), (errno.EIO, MachineError), (errno.EMFILE, MachineError), (errno.EACCES, UsageError)],
)
def test_a_fault_of_the_cache_s_folder_is_the_machine_s(
    cache: Cache, rooms: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    entry = read_manifest(rooms).shards[0]
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(kind, match="FASTSSL_CACHE") as caught:
        cache.claim(entry)
    assert isinstance(caught.value.__cause__, OSError)


def test_too_many_open_files_are_not_the_store_s_fault(
    store: FaultyStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_file(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    shards = ShardSet(store.address, cache)
    monkeypatch.setattr("fsspec.implementations.http.HTTPFileSystem._get_file", no_file)
    with pytest.raises(MachineError, match=r"too many files open(.|\n)*ulimit -n"):
        shards.member(0, JPEG)


def test_the_process_keeps_so_many_shards_whatever_the_number_of_datasets(
    single_store: FaultyStore, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptors, "_MOST_KEPT", 3)
    datasets = [ShardSet(single_store.address, cache) for _ in range(4)]
    before = num_descriptors()
    for shards in datasets:
        shards.prefetch(range(12))
        wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 12)
    for shards in datasets:
        shards.prefetch(range(1, 12))
    assert num_descriptors() - before <= 3 + 4  # connections
    del shards
    datasets.clear()
    gc.collect()
    assert len(descriptors._keeping) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/rooms", "s3://bucket/rooms"),
        ("http://ann:secret@host:80/rooms", "http://***@host:80/rooms"),
        ("http://ann:s@cret@host/rooms", "http://***@host/rooms"),
        ("https://host/a?X-Amz-Signature=secret&b=1", "https://host/a?***"),
        (
            "404, url='https://host/a?sig=secret' and ftp://u:secret@h/x",
            "404, url='https://host/a?***' and ftp://***@h/x",
        ),
        ("/data/who?/a@b", "/data/who?/a@b"),
        ("what? s3://bucket/a@b", "what? s3://bucket/a@b"),
    ],
)
def test_secrets_of_addresses_are_masked(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_an_address_with_secrets_is_read_and_they_are_not_told(
    store: FaultyStore, rooms: Path, cache: Cache, caplog: pytest.LogCaptureFixture
) -> None:
    """The query goes to the store with every file; words about it do not hold it."""
    address = store.address.replace("http://", "http://ann:secret@") + "?sig=secret"
    shards = ShardSet(address, cache)
    store.faults["GET 000001.tar"] = iter(["500"])
    assert same_samples(shards, rooms)
    store.faults["GET 000001.crc"] = repeat("500")
    with pytest.raises(DataError) as caught:
        shards.checksum(3, JPEG)
    for words in (str(caught.value), shards.place(0), str(shards.path), caplog.text):
        assert "://" in words
        assert "secret" not in words
    assert "tried again" in caplog.text


def test_a_file_s_address_is_its_path(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FASTSSL_CACHE", "HOME"):
        monkeypatch.setenv(name, "/proc/no/such/place")  # no cache is needed
    shards = ShardSet(f"file://{rooms}")
    assert not shards.is_remote
    assert shards.path == rooms
    assert same_samples(shards, rooms)


@pytest.mark.parametrize(
    ("address", "message"), [("abfs://box/rooms", "adlfs"), ("nosuch://box/rooms", "nosuch"), ("http://x/y", "aiohttp")]
)
def test_an_address_that_cannot_be_used_is_told(
    cache: Cache, monkeypatch: pytest.MonkeyPatch, address: str, message: str
) -> None:
    if message == "aiohttp":
        monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(UsageError, match=message):
        ShardSet(address, cache)


def test_a_store_that_does_not_know_us_is_not_asked_again(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    class NoCredentialsError(Exception):
        """As botocore's."""

    tries = 0

    def refuse(place: str) -> bytes:
        nonlocal tries
        tries += 1
        raise NoCredentialsError("Unable to locate credentials")

    monkeypatch.setattr("fastssl.shards.fetch._read", refuse)
    with pytest.raises(MachineError, match="Unable to locate credentials"):
        ShardSet("s3://bucket/rooms", cache=cache)
    assert tries == 1
