"""The garbage collector may close a loader in the midst of anything, and then nothing waits for ever."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DROPPED = """
import faulthandler, gc, sys, threading
faulthandler.dump_traceback_later(60, exit=True)
import fastssl
from fastssl.shards import ShardSet, descriptors

def batches():
    with fastssl.load(sys.argv[1], batch_size=4, size=67, device="cpu", threads=2) as loader:
        yield from loader

gc.disable()
dropped = batches()
next(dropped)
cycle = [dropped]
cycle.append(cycle)
del dropped, cycle
closed = []
close = fastssl.Loader.close
fastssl.Loader.close = lambda loader: closed.append(close(loader))
"""
PLACES = {
    "a thread starts": """
inner = threading._maintain_shutdown_locks

def under_the_lock():  # where Python itself makes a list
    gc.collect()
    return inner()

threading._maintain_shutdown_locks = under_the_lock
thread = threading.Thread(target=int)
thread.start()
thread.join()
""",
    "a shard is opened": """
inner = descriptors.open_shards._most

def under_the_lock():
    gc.collect()
    return inner()

descriptors.open_shards._most = under_the_lock
ShardSet(sys.argv[1]).member(0, "jpg")
""",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_loader_that_the_collector_closes_under_a_lock_holds_nobody_up(coded_synthetic: Path, place: str) -> None:
    script = DROPPED + PLACES[place] + "print(len(closed), len(descriptors.open_shards))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(coded_synthetic)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    closed, still_open = map(int, done.stdout.split())
    assert closed
    assert still_open <= 1, "shards of the loader that was closed are let go before another is opened"
