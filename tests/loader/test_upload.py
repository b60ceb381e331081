"""Uploading of batches, on a model of CUDA streams that runs anywhere; `tests/gpu/` runs the same code on a GPU."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from graph_forms import BATCH, FORMS, batches_of
from settled import comes

from fastssl.errors import ShardError, UsageError
from fastssl.loader import LoaderOptions, memory, upload
from fastssl.loader.underway import Fed, Made
from fastssl.loader.upload import uploaded

GPU = torch.device("cuda", 0)
STEPS = 6


class Stream:
    """The pieces of work that come before its next."""

    def __init__(self, device: object = None) -> None:
        self.before = set[str]()
        self.events = list[Event]()

    def record_event(self) -> Event:
        self.events.append(Event(set(self.before)))
        return self.events[-1]

    def wait_event(self, event: Event) -> None:
        self.before |= event.before

    def synchronize(self) -> None:
        for event in self.events:
            event.has_passed = True


class Event:
    def __init__(self, before: set[str]) -> None:
        self.before, self.has_passed = before, False

    def query(self) -> bool:
        return self.has_passed


class Copied:
    """A tensor of the GPU."""

    dtype = torch.float32

    def __init__(self, name: str) -> None:
        self.name, self.recorded = name, list[Stream]()

    def record_stream(self, stream: Stream) -> None:
        self.recorded.append(stream)


class Pinned:
    dtype = torch.float32

    def __init__(self, model: Model, name: str) -> None:
        self.model, self.name = model, name

    def pin_memory(self) -> Pinned:
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> Copied:
        assert (device, non_blocking) == (GPU, True)
        return self.model.copied(self.name)


class Model:
    """Streams and tensors in the place of torch's; copies are over when the model says so."""

    def __init__(self) -> None:
        self.consumer = self.current = Stream()
        self.side = Stream()
        self.told: list[str] = []
        self.dropped: list[str] = []
        self.dropped_early: list[str] = []
        self.fails_at = -1

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def pinned(self, name: str) -> Pinned:
        """A tensor in pinned memory, which is lent again when it is dropped."""
        tensor = Pinned(self, name)
        weakref.finalize(tensor, self.drop, name)
        return tensor

    def copied(self, name: str) -> Copied:
        assert self.current is self.side
        self.told.append(f"copy {name}")
        self.side.before.add(name)
        return Copied(name)

    def drop(self, name: str) -> None:
        self.dropped.append(name)
        copied = name.replace("threads", "image")
        if not any(event.has_passed and copied in event.before for event in self.side.events):
            self.dropped_early.append(name)

    def batches(self) -> Iterator[Made]:
        for number in range(STEPS):
            if number == self.fails_at:
                raise ShardError("too many samples are damaged")
            fed = Fed(
                samples=(number,),
                keys=(str(number),),
                classes=(-1,),
                views=None,
                targets=self.pinned(f"threads {number}"),  # in whose memory the image lies too
                images=None,
                damaged_image=None,
            )
            yield Made(fed=fed, image=self.pinned(f"image {number}"), targets={"depth": self.pinned(f"depth {number}")})

    def step(self, number: int, batch: Made) -> None:
        assert batch.fed.keys == (str(number),)
        for field in (batch.image, batch.targets["depth"]):
            assert field.name in self.consumer.before, "a step before its batch is there"
            assert field.recorded == [self.consumer]
        assert f"image {number + 1}" not in self.consumer.before, "a step waits for the next batch"
        self.told.append(f"step {number}")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = Model()
    monkeypatch.setattr(upload.torch.cuda, "Stream", lambda device: made.side)
    monkeypatch.setattr(upload.torch.cuda, "current_stream", lambda device: made.current)
    monkeypatch.setattr(upload.torch.cuda, "stream", made.stream)
    monkeypatch.setattr(upload.torch.cuda, "set_device", lambda number: None)
    return made


def test_batches_are_copied_a_step_ahead(model: Model) -> None:
    for number, batch in enumerate(uploaded(model.batches(), GPU, half=False)):
        model.step(number, batch)
    copies = [[f"copy image {number}", f"copy depth {number}"] for number in range(STEPS)]
    between = [event for number in range(1, STEPS) for event in (*copies[number], f"step {number - 1}")]
    assert model.told == [*copies[0], *between, f"step {STEPS - 1}"]


def test_memory_is_lent_again_as_soon_as_it_was_copied_and_not_before(model: Model) -> None:
    """Here copies are over two steps later, though the consumer drops each batch at once."""
    batches = uploaded(model.batches(), GPU, half=False)
    for number in range(STEPS - 1):  # while there is another one to copy
        next(batches)
        for event in model.side.events[: max(number - 1, 0)]:
            event.has_passed = True
        gone = {name for name in model.dropped if name.startswith("image")}
        assert gone == {f"image {copied}" for copied in range(max(number - 2, 0))}
        assert f"threads {number}" not in model.dropped
    assert model.dropped_early == []


def test_a_batch_on_the_gpu_holds_no_pinned_memory(model: Model) -> None:
    batches, kept = uploaded(model.batches(), GPU, half=False), list[Made]()
    for _ in range(STEPS - 1):
        kept.append(next(batches))
        model.side.synchronize()
    assert {f"threads {number}" for number in range(STEPS - 1)} <= set(model.dropped)


@pytest.mark.parametrize("taken", range(1, STEPS))
def test_batches_that_are_not_wanted_any_more_give_nothing_away_early(model: Model, taken: int) -> None:
    before = threading.active_count()
    batches = uploaded(model.batches(), GPU, half=False)
    for number in range(taken):
        model.step(number, next(batches))
    batches.close()
    del batches
    copied = [name for name in model.dropped_early if name in model.side.before]
    assert copied == []
    assert comes(lambda: threading.active_count() == before)


@pytest.mark.parametrize("fails_at", range(STEPS))
def test_an_error_of_reading_comes_behind_the_batches_before_it(model: Model, fails_at: int) -> None:
    before = threading.active_count()
    model.fails_at = fails_at
    batches = uploaded(model.batches(), GPU, half=False)
    for number in range(fails_at):
        model.step(number, next(batches))
    with pytest.raises(ShardError, match="too many samples are damaged"):
        next(batches)
    assert [name for name in model.dropped_early if name in model.side.before] == []
    assert comes(lambda: threading.active_count() == before)


def test_another_stream_is_refused(model: Model) -> None:
    batches = uploaded(model.batches(), GPU, half=False)
    next(batches)
    with model.stream(Stream()), pytest.raises(UsageError, match="another CUDA stream"):
        next(batches)


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is taken for a GPU: streams do nothing, and all memory is pinned."""
    stream = Stream()
    monkeypatch.setattr(upload.torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(upload.torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(upload.torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(upload.torch.cuda, "set_device", lambda number: None)
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(memory, "_pinned", lambda num_bytes: np.empty(num_bytes, np.uint8))


@pytest.mark.parametrize("half", [True, False])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_uploaded_is_what_the_cpu_makes(
    coded_synthetic: Path, coded_real: Path, no_cuda: None, monkeypatch: pytest.MonkeyPatch, form: str, half: bool
) -> None:
    """To the last bit, rounded to half precision where that is wanted."""
    path = coded_real if FORMS[form].whole_photos else coded_synthetic
    expected = batches_of(FORMS[form], path, torch.device("cpu"), half=False)
    monkeypatch.setattr(LoaderOptions, "uploads", property(lambda options: True))
    got = batches_of(FORMS[form], path, torch.device("cpu"), half=half)
    assert len(got) == len(expected)
    for ours, theirs in zip(got, expected, strict=True):
        assert ours.keys == theirs.keys
        assert ours.image.is_contiguous(memory_format=torch.channels_last)
        assert ours.image.dtype == (torch.float16 if half else torch.float32)
        assert torch.equal(ours.image, theirs.image.to(ours.image.dtype))
        assert ours.targets.keys() == theirs.targets.keys()
        for name, target in theirs.targets.items():
            assert torch.equal(ours.targets[name], target)


@pytest.mark.parametrize(("form", "bytes_a_number"), [("cut", 1), ("cut, gray", 1), ("cut, blur", 4)])
def test_images_of_threads_travel_as_bytes(
    coded_synthetic: Path, no_cuda: None, monkeypatch: pytest.MonkeyPatch, form: str, bytes_a_number: int
) -> None:
    sizes, on_gpu = set[int](), upload._on_gpu

    def noted(batch: Made, *given: Any, **named: Any) -> Made:
        sizes.add(batch.image.nbytes)
        return on_gpu(batch, *given, **named)

    monkeypatch.setattr(upload, "_on_gpu", noted)
    monkeypatch.setattr(LoaderOptions, "uploads", property(lambda options: True))
    image = batches_of(FORMS[form], coded_synthetic, torch.device("cpu"), half=False)[0].image
    assert sizes == {bytes_a_number * image.numel()}
    assert len(image) == BATCH
