"""Batches that the CPU made, copied to a GPU on a CUDA stream of their own while the network works on the one before.

Copies run on the GPU's copy engines and take nothing from its multiprocessors, which decoding there does. Images of
threads travel as bytes, so that a quarter of the memory is pinned and copied, and are normalised behind their copy.

What makes it safe, for a batch k:

1. Its bytes lie in pinned memory, which is used for another batch only when nothing holds k's tensors any more. They
   are held here until the event behind k's copies has passed, which the host looks at and does not wait for.
2. Its copies are enqueued before the step k - 1 is, and the consumer's stream waits for their event before k is handed
   out. Nothing is waited for before: the copies go to memory that is theirs alone.
3. The copies' memory belongs to torch, and `record_stream` lets it go only behind what the consumer has enqueued by
   then. So a batch may be dropped at any time after the last use of it is enqueued.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace

import torch
from torch import Tensor

from fastssl.loader.ahead import check_stream
from fastssl.loader.graph import device_number
from fastssl.loader.images import image_means, normalised
from fastssl.loader.underway import Made
from fastssl.ranges import traced

_PATIENCE_S = 10.0


def uploaded(batches: Iterator[Made], device: torch.device, *, half: bool) -> Generator[Made, None, None]:
    """Take each batch one call before it is handed out, and copy it to the GPU meanwhile.

    Args:
        batches: on the CPU; asked for in another thread.
        device: a GPU.
        half: images become float16 there.

    Returns:
        The batches on the GPU, ordered on the stream that was current when the first one was asked for, and to be used
        on that stream. One batch more than the consumer holds is in its memory.

    Raises:
        UsageError: another stream is current than before.

    Sync: none.
    """
    consumer, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    copying = deque[tuple[Made, torch.cuda.Event]]()
    copied = deque[tuple[Made, torch.cuda.Event]]()
    thread = _another_thread(device)
    coming = thread.submit(_next_pinned, batches)
    try:
        while True:
            try:
                batch = coming.result()
            except Exception:
                # It comes when the batches before it are used, as it does without a GPU.
                while copied:
                    yield _handed_out(copied, consumer)
                raise
            if batch is None:
                break
            coming = thread.submit(_next_pinned, batches)
            check_stream(consumer, device)
            with torch.cuda.stream(side), traced("loader: upload"):
                copied.append((_on_gpu(batch, device, consumer, half=half), side.record_event()))
            copying.append((batch, copied[-1][1]))
            del batch
            while copying and copying[0][1].query():
                copying.popleft()
            if len(copied) > 1:
                yield _handed_out(copied, consumer)
        while copied:
            yield _handed_out(copied, consumer)
    finally:
        thread.shutdown(wait=False)
        if not coming.cancel():
            # The batch under way, but not for ever: perhaps the collector closes this under a lock that it needs.
            wait([coming], timeout=_PATIENCE_S)
        # Where the batches end early, their memory goes with this frame.
        side.synchronize()


def _another_thread(device: torch.device) -> ThreadPoolExecutor:
    """A thread that reads batches while this one enqueues a step; pinned memory is that of the thread's GPU."""
    number = device_number(device)
    return ThreadPoolExecutor(1, "fastssl-loader-next", initializer=torch.cuda.set_device, initargs=(number,))


def _next_pinned(batches: Iterator[Made]) -> Made | None:
    """The next batch, if there is one; an image that a graph made is copied to where a GPU can fetch it."""
    batch = next(batches, None)
    return None if batch is None else replace(batch, image=batch.image.pin_memory())


def _handed_out(copied: deque[tuple[Made, torch.cuda.Event]], consumer: torch.cuda.Stream) -> Made:
    """The oldest batch. Nothing of it stays behind: the consumer alone decides when it goes."""
    batch, event = copied.popleft()
    consumer.wait_event(event)
    return batch


def _on_gpu(batch: Made, device: torch.device, consumer: torch.cuda.Stream, *, half: bool) -> Made:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.to(device, non_blocking=True)

    image = moved(batch.image)
    if image.dtype == torch.uint8:
        means = torch.from_numpy(image_means(batch.fed.views.channel))
        image = normalised(image, moved(means.pin_memory()))
    image = image.half() if half else image
    targets = {name: moved(target) for name, target in batch.targets.items()}
    for tensor in (image, *targets.values()):
        tensor.record_stream(consumer)
    # Without what holds the threads' memory, which is free for another batch when the copies are made.
    return Made(fed=replace(batch.fed, images=None, targets=None), image=image, targets=targets)
