"""The order of work on two CUDA streams, on a model of streams that runs anywhere.

The model knows of each stream which work of every stream comes before its next (a vector clock); memory that lives and
dies is compared with it. `tests/gpu/` runs the same code on a GPU.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from fastssl.errors import ShardError, UsageError
from fastssl.loader import ahead
from fastssl.loader.ahead import targets_ahead
from fastssl.loader.underway import Decoded

GPU = torch.device("cuda", 0)
STEPS = 6


class Stream:
    """What comes before its next work: the number of pieces of work of each stream."""

    def __init__(self, device: torch.device) -> None:
        self.before: dict[Stream, int] = {self: 0}

    def work(self) -> tuple[Stream, int]:
        """Enqueue a piece of work."""
        self.before[self] += 1
        return self, self.before[self]

    def wait_stream(self, other: Stream) -> None:
        for stream, count in other.before.items():
            self.before[stream] = max(count, self.before.get(stream, 0))

    def comes_after(self, piece: tuple[Stream, int]) -> bool:
        stream, count = piece
        return self.before.get(stream, 0) >= count


class Field:
    def __init__(self, made: tuple[Stream, int]) -> None:
        self.made, self.recorded = made, list[Stream]()

    def record_stream(self, stream: Stream) -> None:
        self.recorded.append(stream)


class Blocks:
    """Memory of DALI; `last_read` is the last piece of work that needs it."""

    last_read: tuple[Stream, int]


class Model:
    """Streams in the place of torch's, and a DALI and a network that work on them."""

    def __init__(self) -> None:
        self.consumer = self.current = Stream(GPU)
        self.events: list[str] = []
        self.dropped_early: list[int] = []
        self.last_targets: tuple[Stream, int] | None = None
        self.fails_at = self.unread = -1

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def batches(self) -> Iterator[Decoded]:
        for number in range(STEPS):
            if number == self.unread:
                raise ShardError("too many samples are damaged")
            blocks = Blocks()
            blocks.last_read = self.current.work()  # DALI's part, which the consumer's stream waits for
            weakref.finalize(blocks, self.drop, number, blocks.__dict__)
            batch = [Decoded(fed=number, image=f"image {number}", blocks=blocks)]
            del blocks
            yield batch.pop()

    def drop(self, number: int, state: dict[str, tuple[Stream, int]]) -> None:
        if not self.consumer.comes_after(state["last_read"]):
            self.dropped_early.append(number)

    def targets(self, batch: Decoded) -> dict[str, Field]:
        number, blocks = batch.fed, batch.blocks
        assert self.current is not self.consumer
        assert self.current.comes_after(blocks.last_read), "targets before the blocks are there"
        self.events.append(f"targets {number}")
        blocks.last_read = self.last_targets = self.current.work()
        if number == self.fails_at:
            raise RuntimeError("out of memory")
        return {"depth": Field(blocks.last_read)}

    def step(self, number: int, fields: dict[str, Field]) -> None:
        assert self.consumer.comes_after(fields["depth"].made), "a step before its targets are there"
        assert fields["depth"].recorded == [self.consumer]
        last = STEPS - 1 if self.unread < 0 else self.unread - 1
        if number < last and self.last_targets is not None:
            assert not self.consumer.comes_after(self.last_targets), "a step waits for the targets of the next"
        self.events.append(f"step {number}")
        self.consumer.work()

    def run(self) -> None:
        for batch in targets_ahead(self.batches(), self.targets, GPU):
            assert batch.image == f"image {batch.fed}"
            self.step(batch.fed, batch.targets)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = Model()
    monkeypatch.setattr(ahead.torch.cuda, "Stream", Stream)
    monkeypatch.setattr(ahead.torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(ahead.torch.cuda, "stream", made.stream)
    return made


def test_targets_are_made_a_step_ahead_and_no_memory_is_given_away_early(model: Model) -> None:
    model.run()
    between = [event for number in range(1, STEPS) for event in (f"targets {number}", f"step {number - 1}")]
    assert model.events == ["targets 0", *between, f"step {STEPS - 1}"]
    assert model.dropped_early == []


@pytest.mark.parametrize("taken", range(1, STEPS))
def test_batches_that_are_not_wanted_any_more_give_nothing_away_early(model: Model, taken: int) -> None:
    batches = targets_ahead(model.batches(), model.targets, GPU)
    for _ in range(taken):
        batch = next(batches)
        model.step(batch.fed, batch.targets)
    batches.close()
    assert model.dropped_early == []


@pytest.mark.parametrize("fails_at", range(STEPS))
def test_targets_that_cannot_be_made_give_nothing_away_early(model: Model, fails_at: int) -> None:
    model.fails_at = fails_at
    with pytest.raises(RuntimeError, match="out of memory"):
        model.run()
    assert model.dropped_early == []


@pytest.mark.parametrize("unread", range(STEPS))
def test_an_error_of_reading_comes_behind_the_batches_before_it(model: Model, unread: int) -> None:
    model.unread = unread
    with pytest.raises(ShardError, match="too many samples are damaged"):
        model.run()
    assert [event for event in model.events if event.startswith("step")] == [f"step {n}" for n in range(unread)]
    assert model.dropped_early == []


@pytest.mark.parametrize("asked", [1, 3])
def test_another_stream_is_refused(model: Model, asked: int) -> None:
    batches = targets_ahead(model.batches(), model.targets, GPU)
    for _ in range(asked):
        next(batches)
    with model.stream(Stream(GPU)), pytest.raises(UsageError, match="another CUDA stream"):
        next(batches)


def test_what_was_handed_out_is_the_consumers_alone(model: Model) -> None:
    """So that dropping it frees it, while the next batches are made."""
    batches = targets_ahead(model.batches(), model.targets, GPU)
    for _ in range(STEPS - 2):
        batch = next(batches)
        gone = weakref.ref(batch.targets["depth"])
        assert gone() is not None
        del batch
        assert gone() is None
