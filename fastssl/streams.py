"""Two independent pieces of work side by side on a GPU, one after the other elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class SideStream:
    """A second CUDA stream for work that needs nothing from the current stream's next kernels.

        with side.run():        # starts after all that was enqueued before
            ...
        ...                     # the current stream goes on meanwhile
        side.join()             # the current stream waits for the side's work; the host does not

    Tensors of the current stream that the side reads must be kept alive until `join`: only then may the allocator give
    their memory to later kernels. On the CPU, or when disabled, `run` runs its body in place and `join` does nothing.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        self._stream = torch.cuda.Stream(device) if enabled and device.type == "cuda" else None

    @contextmanager
    def run(self) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield

    def join(self) -> None:
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
