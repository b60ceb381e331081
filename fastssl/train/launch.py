"""Ranks on this machine, begun by torch's elastic launcher."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import torch

from fastssl.errors import DeviceError, PeerLostError, UsageError

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

_PATIENCE_S = 20
"""For ranks that are asked to end, before they are killed."""
_ASKED_BY = "SIGTERM,SIGINT,SIGHUP,SIGUSR1"


def check_gpus(num_ranks: int) -> None:
    """Refuse more ranks than this machine has GPUs, if it has any.

    Raises:
        UsageError: see above.
    """
    if 0 < torch.cuda.device_count() < num_ranks:
        raise UsageError(
            "this machine has fewer GPUs", where="--gpus", seen=num_ranks, expected=torch.cuda.device_count()
        )


def launch(num_ranks: int, arguments: Sequence[str]) -> int:
    """Run the `fastssl` command with these arguments in several ranks, and wait for them.

    Each rank tells its own errors. One that fails ends all others.

    Returns:
        The exit code: that of the ranks, or of the one that failed.

    Raises:
        UsageError: this machine has fewer GPUs.
        DeviceError: a rank was killed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    check_gpus(num_ranks)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # the ranks tell what happened
    os.environ.setdefault("OMP_NUM_THREADS", str(max(len(os.sched_getaffinity(0)) // num_ranks, 1)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=f"{os.getpid()}-{datetime.now(UTC):%H%M%S}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        signals_to_handle=_ASKED_BY,
        shutdown_timeout=_PATIENCE_S,
    )
    try:
        elastic_launch(config, sys.executable)("-m", "fastssl", *arguments)
    except SignalException as asked:
        return 130 if asked.sigval == signal.SIGINT else 0
    except ChildFailedError as error:
        return _code(error.failures)
    return 0


def _code(failures: Mapping[int, ProcessFailure]) -> int:
    """The exit code of the ranks that failed by themselves, and not because another one had."""
    codes = {rank: failure.exitcode for rank, failure in failures.items()}
    for rank, code in codes.items():
        if code < 0:
            name = signal.Signals(-code).name
            raise DeviceError("a rank was killed", where=f"rank {rank}", seen=name, hint="--resume continues the run")
    return next((code for code in codes.values() if code != PeerLostError.exit_code), PeerLostError.exit_code)
