"""The processes that train together: who they are, what they agree on, and the mean of their gradients."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastssl.errors import DeviceError, FastsslError, PeerLostError, UsageError
from fastssl.native import terminated_with_parent

_BUCKET_BYTES = 25 << 20
"""Gradients that travel together: large enough for the network, small enough to start early; that of torch's own."""
_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """This process among those that train together; alone, all that is agreed is what it says itself.

    All ranks call the same methods in the same order.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Its number on its own machine."""
    control: Any = None
    """The process group of what is agreed on the host; None for a process alone."""

    @property
    def leads(self) -> bool:
        """The one that writes files and tells how far it is."""
        return self.rank == 0

    def largest(self, values: Sequence[int]) -> list[int]:
        """The largest of all ranks, number by number."""
        return _reduced(self, values, dist.ReduceOp.MAX, torch.int64)

    def total(self, values: Sequence[float]) -> list[float]:
        """The sum over all ranks, number by number."""
        return _reduced(self, values, dist.ReduceOp.SUM, torch.float64)

    def gathered(self, value: object) -> list[Any]:
        """What each rank gives, by rank, on the one that leads; nothing on the others."""
        if self.control is None:
            return [value]
        found: list[Any] | None = [None] * self.world_size if self.leads else None
        with _peers_named():
            dist.gather_object(value, found, group=self.control)
        return found or []

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors by their means over all ranks."""
        if self.control is None:
            return
        for tensor in tensors:
            with _peers_named():
                dist.all_reduce(tensor)
            tensor /= self.world_size

    def same(self, text: str) -> bool:
        """All ranks give the same text."""
        if self.control is None:
            return True
        found: list[Any] = [None] * self.world_size
        with _peers_named():
            dist.all_gather_object(found, text, group=self.control)
        return len(set(found)) == 1


def _reduced(ranks: Ranks, values: Sequence[Any], operation: Any, dtype: torch.dtype) -> list[Any]:
    if ranks.control is None:
        return list(values)
    tensor = torch.tensor(values, dtype=dtype)
    with _peers_named():
        dist.all_reduce(tensor, operation, group=ranks.control)
    return tensor.tolist()


@contextmanager
def joined(device_type: str) -> Iterator[Ranks]:
    """The ranks that a launcher has begun; a process that none has begun is alone.

    Understood are torch's launchers (``torchrun``, and `fastssl.train.launch`) and Slurm's ``srun``.

    Args:
        device_type: `cuda` or `cpu`, which says how gradients travel.

    Raises:
        UsageError: the launcher's variables make no sense.
        DeviceError: the ranks do not find each other.
    """
    place = begun()
    if place is None or place.world_size == 1:
        yield Ranks()
        return
    if "TORCHELASTIC_RUN_ID" in os.environ:
        terminated_with_parent()  # a launcher that is killed cannot end its ranks
    os.environ.update(RANK=str(place.rank), WORLD_SIZE=str(place.world_size))
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, rank=place.rank, world_size=place.world_size, timeout=_TIMEOUT)
        control = dist.new_group(backend="gloo", timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise DeviceError(
            "the ranks do not find each other",
            where=f"rank {place.rank} of {place.world_size}",
            seen=str(error).splitlines()[0],
            hint="see that MASTER_ADDR and MASTER_PORT lead to the first machine, and that others reach each machine "
            "by its own name, or name its interface by GLOO_SOCKET_IFNAME",
        ) from error
    try:
        yield Ranks(rank=place.rank, world_size=place.world_size, local_rank=place.local_rank, control=control)
    except FastsslError as error:
        error.is_told = error.is_told or _has_been_told(str(error))
        raise
    # Not after an error: it could wait for a rank that has ended.
    dist.destroy_process_group()


def _has_been_told(words: str) -> bool:
    """Another rank has the same to say, and was first."""
    try:
        return int(dist.distributed_c10d._get_default_store().add(f"fastssl: {words}", 1)) > 1
    except RuntimeError:  # whoever kept the ranks together has ended
        return False


def begun() -> Ranks | None:
    """This process's place as the launcher gives it that began it; None where none did.

    Raises:
        UsageError: the launcher's variables make no sense.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    if "RANK" not in os.environ:
        names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
        # Of a shell that Slurm gave to its user no task was begun by srun.
        if "SLURM_STEP_ID" not in os.environ or os.environ.get("SLURM_NTASKS", "1") == "1":
            return None
    try:
        rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
    except ValueError as error:
        raise UsageError("a launcher's variable is no number", where=", ".join(names), seen=str(error)) from error
    if not 0 <= rank < world_size:
        raise UsageError("a launcher's variables make no sense", seen=f"rank {rank} of {world_size}")
    return Ranks(rank=rank, world_size=world_size, local_rank=local_rank)


@contextmanager
def _peers_named() -> Iterator[None]:
    """A collective call, which fails where another rank has ended; what fails in this process is told by it.

    An error of a GPU appears in whatever call comes next, so here too.
    """
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except dist.DistBackendError as error:
        raise DeviceError(
            "the GPUs of the ranks do not reach each other",
            seen=str(error).splitlines()[0],
            hint="another rank may have ended; else NCCL_DEBUG=INFO tells more",
        ) from error
    except RuntimeError as error:
        raise PeerLostError("another rank has ended", seen=str(error).splitlines()[0]) from error


@dataclass(slots=True, eq=False)
class _Bucket:
    parameters: list[nn.Parameter]
    missing: set[nn.Parameter] = field(default_factory=set)
    """Whose gradients have not come yet."""
    flat: Tensor | None = None
    work: Any = None


class GradientMean:
    """Averages the gradients of some parameters over all ranks while the backward pass goes on.

    Gradients that are complete travel in buckets, in the order in which a backward pass makes them; `finish` waits for
    the last. A parameter without a gradient counts as one of zeros, if any of its bucket has one.

    Source: Li et al., PyTorch Distributed, VLDB 2020, without its wrapping of the forward pass: a method calls parts of
    its networks as it likes.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self._ranks = ranks
        self.is_last = True
        """Whether gradients that come are complete then, and not yet to be added to."""
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._sent = 0
        if ranks.world_size == 1:
            return
        # A backward pass comes to the last layers first.
        for parameter in reversed(list(parameters)):
            self._put(parameter)
            parameter.register_post_accumulate_grad_hook(self._arrived)
        self._reset()

    def finish(self) -> None:
        """Wait until all gradients are means.

        Sync: none on a GPU.
        """
        if not self._buckets:
            return
        self._send(complete_only=False)
        for bucket in self._buckets:
            self._receive(bucket)
        self._reset()

    def _put(self, parameter: nn.Parameter) -> None:
        last = self._buckets[-1] if self._buckets else None
        if last is None or sum(other.nbytes for other in last.parameters) + parameter.nbytes > _BUCKET_BYTES:
            last = _Bucket([])
            self._buckets.append(last)
        last.parameters.append(parameter)
        self._bucket_of[parameter] = last

    def _reset(self) -> None:
        self._sent = 0
        for bucket in self._buckets:
            bucket.missing, bucket.flat, bucket.work = set(bucket.parameters), None, None

    def _arrived(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        if not self.is_last:
            return
        self._bucket_of[parameter].missing.discard(parameter)
        self._send(complete_only=True)

    def _send(self, *, complete_only: bool) -> None:
        """Send what can be sent, in the order that all ranks have."""
        while self._sent < len(self._buckets):
            bucket = self._buckets[self._sent]
            if bucket.missing and complete_only:
                return
            self._sent += 1
            if all(parameter.grad is None for parameter in bucket.parameters):
                continue  # a part of the networks that this step does not train
            grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket.parameters]
            bucket.flat = torch.cat([grad.reshape(-1) for grad in grads])
            with _peers_named():
                bucket.work = dist.all_reduce(bucket.flat, async_op=True)

    def _receive(self, bucket: _Bucket) -> None:
        if bucket.flat is None:
            return
        with _peers_named():
            bucket.work.wait()
        bucket.flat /= self._ranks.world_size
        sizes = [parameter.numel() for parameter in bucket.parameters]
        for parameter, mean in zip(bucket.parameters, bucket.flat.split(sizes), strict=True):
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(mean.view_as(parameter))
