"""The conditions that every result file carries."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def conditions() -> dict[str, object]:
    """Machine, versions, commit and date."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": commit(),
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "nvidia-dali-cuda120", "numpy", "lz4")},
    }


def commit() -> str:
    """Short name of the commit, `+changes` where files differ; a copy without a repository has FASTSSL_COMMIT."""
    told = os.environ.get("FASTSSL_COMMIT")
    if told:
        return told
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return (_git("rev-parse", "--short", "HEAD") or "unknown") + ("+changes" if changed else "")


def _git(*words: str) -> str:
    """The state of the repository, as git tells it; nothing where there is no git or no repository."""
    command = ["git", "-C", str(Path(__file__).parent), *words]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(name: str, values: Mapping[str, object]) -> Path:
    """Write `results/NAME.json`, the conditions first."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"conditions": conditions(), **values}, indent=2) + "\n", encoding="utf-8")
    return path
