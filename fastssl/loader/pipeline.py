"""The DALI pipeline of a domain at work: batches in turn, and those that fail made again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from nvidia.dali.pipeline import Pipeline
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastssl.faults import machine_fault
from fastssl.loader.feed import Feed
from fastssl.loader.graph import FAULTS, built, dali_error
from fastssl.loader.underway import Decoded
from fastssl.ranges import traced


class DomainPipeline:
    """An iterator of a domain's batches as its graph makes them, without a copy and without waiting for a GPU.

    Args:
        feed: gives the graph its bytes.
        graph: makes the graph of a feed.
        device: where it decodes.

    Raises:
        DeviceError: DALI cannot build the graph, or make a batch; a MachineError where memory is short.
        ShardError: too many samples are damaged.
    """

    def __init__(self, feed: Feed, graph: Callable[[Feed], Pipeline], device: torch.device) -> None:
        self._feed, self._graph, self._device = feed, graph, device
        self._pipeline = built(graph(feed))
        self._again: DomainPipeline | None = None

    def __iter__(self) -> DomainPipeline:
        return self

    def __next__(self) -> Decoded:
        return self.run()

    def run(self) -> Decoded:
        """The next batch; raises StopIteration behind the last one."""
        self._again = None
        try:
            tensors = self._outputs()
        except FAULTS as error:
            # DALI loses the batch that failed, and goes on with the next.
            return self.redo(error)
        damaged = self._feed.pending[0].error()
        if damaged is not None:
            del tensors
            return self.redo(damaged)
        image, *blocks = tensors
        return Decoded(fed=self._feed.pending.popleft(), image=image, blocks=blocks[0] if blocks else None)

    def redo(self, error: Exception) -> Decoded:
        """The batch that failed for this reason, its damaged samples replaced.

        Raises:
            DeviceError: none of them is damaged; a MachineError where memory was short, whatever they are.
        """
        feed = None if machine_fault(error) is not None else self._feed.again()
        if feed is None:
            raise dali_error("DALI could not make a batch", error) from error
        # Kept until the next batch is asked for: a GPU may still be at work on this one.
        self._again = DomainPipeline(feed, self._graph, self._device)
        return self._again.run()

    def close(self) -> None:
        """Let the graph go, with what it made ahead."""
        del self._pipeline, self._again

    def _outputs(self) -> list[Tensor]:
        """The tensors of the next batch; raises one of `FAULTS` where an image has another size than the rest."""
        # Ordered on the consumer's stream: it waits for the batch, the host does not.
        stream = None if self._device.type == "cpu" else torch.cuda.current_stream(self._device).cuda_stream
        with traced("loader: DALI"):
            return [from_dlpack(output.as_tensor()) for output in self._pipeline.run(stream)]
