"""The targets of the next batch, made on a CUDA stream of their own while the network works on the present one.

What makes it safe, for a batch k, in the order in which the host enqueues it:

1. DALI's part of k is ordered on the consumer's stream, behind the steps before k - 1.
2. The side stream waits for the consumer's, then makes the targets of k. The step k - 1 is enqueued after that, so both
   run side by side.
3. The consumer's stream waits for the side stream, and only then is k handed out.

A tensor's memory may be given away as soon as the last reference to it goes, though kernels that use it are still to
run. Two owners give it away, and each is told:

- torch owns the targets. It gives their memory to later work of the side stream, and `record_stream` makes it wait for
  the consumer's stream too. What was enqueued there until the reference goes is what is waited for, so a batch may be
  dropped at any time after the last use of it is enqueued.
- DALI owns the images and the inflated blocks, and `record_stream` does not reach its memory. DALI 2.4 takes back what
  it gave as DLPack once a thread of its own has waited for the whole device, so for all that was enqueued before. It
  would be right as well if it took it back in the order of the stream that it was given to, the consumer's: nothing
  else reads the images, and the blocks are kept until that stream has waited for the side stream (3.).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator

import torch

from fastssl.errors import UsageError
from fastssl.loader.targets import TargetFields
from fastssl.loader.underway import Decoded, Made
from fastssl.ranges import traced


def targets_ahead(
    batches: Iterator[Decoded],
    make: Callable[[Decoded], TargetFields],
    device: torch.device,
) -> Generator[Made, None, None]:
    """Take each batch one call before it is handed out, and make its targets meanwhile.

    Args:
        batches: images and inflated target blocks, both ordered on the stream that is current when they are taken.
        make: makes a batch's targets on the stream that is current when it is called.
        device: a GPU.

    Returns:
        Images and targets, ordered on the stream that was current when the first batch was asked for, and to be used on
        that stream. One batch more than the consumer holds is in memory.

    Raises:
        UsageError: another stream is current than before.

    Sync: none.
    """
    consumer, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    made = deque[Made]()
    read: Decoded | None = None
    try:
        while True:
            try:
                batch = next(batches, None)
            except Exception:
                # It comes when the batches before it are used, as it does without a GPU.
                consumer.wait_stream(side)
                while made:
                    yield made.popleft()
                raise
            if batch is None:
                break
            check_stream(consumer, device)
            # 3. of the batch before this one, whose blocks `read` holds until here; then 2. of this one.
            consumer.wait_stream(side)
            side.wait_stream(consumer)
            read = batch
            with torch.cuda.stream(side), traced("loader: targets"):
                targets = make(read)
            for field in targets.values():
                field.record_stream(consumer)
            made.append(Made(fed=batch.fed, image=batch.image, targets=targets))
            if len(made) > 1:
                # Nothing of it stays behind: the consumer alone decides when it goes.
                yield made.popleft()
        consumer.wait_stream(side)
        while made:
            yield made.popleft()
    finally:
        # Where the batches end early, or making targets fails, the blocks go with this frame.
        consumer.wait_stream(side)


def check_stream(consumer: torch.cuda.Stream, device: torch.device) -> None:
    """Refuse another stream than the consumer's.

    Raises:
        UsageError: another one is current.
    """
    current = torch.cuda.current_stream(device)
    if current != consumer:
        raise UsageError(
            "a batch is asked for on another CUDA stream than the first",
            seen=current,
            expected=consumer,
            hint="ask for all batches of one iterator, and use them, on one stream",
        )
