"""The losses and weights of 20 small steps of every preset: a refactoring must leave them as they were, bit for bit.

    python tools/loss_trace.py                      the trace of this tree, as JSON on stdout
    python tools/loss_trace.py --compare COMMIT     this tree beside a commit, whose own copy of this script traces it

A trace is of one machine: another processor, or another torch, rounds in other ways.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = ROOT / "shards" / "sample"
PRESETS = ("tiny", "paper", "released")
SMALL = (
    "data.size=67", "data.batch_synthetic=4", "data.batch_real=4", "model.width=0.1", "model.fc_channels=32",
    "model.head_channels=8", "optim.pool_size=6", "train.steps=20", "train.log_every=1", "train.threads=2",
    "train.deterministic=true",
)  # fmt: skip
"""Settings that make a step small, and its sums the same whatever else the machine does."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", metavar="COMMIT", help="trace a commit too; exit code 1 where they differ")
    arguments = parser.parse_args()
    now = traces(ROOT)
    if arguments.compare is None:
        print(json.dumps(now, indent=1))
        return
    before = traces_of_commit(arguments.compare)
    for preset in PRESETS:
        print(f"{preset:10} {difference(before[preset], now[preset])}")
    sys.exit(0 if before == now else 1)


def traces(root: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {preset: trace(root, preset, Path(folder) / preset) for preset in PRESETS}


def trace(root: Path, preset: str, run: Path) -> dict[str, Any]:
    """Every loss of every step, and one hash of all weights, whatever their names and their order."""
    data = ["--synthetic", str(SAMPLE / "render_train"), "--real", str(SAMPLE / "real_train")]
    settings = [word for setting in SMALL for word in ("--set", setting)]
    command = [sys.executable, "-m", "fastssl", "train", "--preset", preset, "--out", str(run), *data, *settings]
    environment = os.environ | {"PYTHONPATH": str(root), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "2"}
    subprocess.run(command, cwd=root, env=environment, check=True, stderr=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [{name: value for name, value in line.items() if name.startswith("loss/")} for line in lines]
    (checkpoint,) = (run / "checkpoints").glob("step_*.pt")
    content = torch.load(checkpoint, weights_only=True)
    return {"losses": losses, "weights": weights_hash([content["state"], content["ranks"]])}


def weights_hash(state: Any) -> str:
    digests = sorted(hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for tensor in tensors(state))
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def tensors(state: Any) -> list[torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return [state]
    inner = state.values() if isinstance(state, dict) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in inner for tensor in tensors(value)]


def traces_of_commit(commit: str) -> dict[str, Any]:
    """The trace that the commit's own script makes of it, in a checkout of its own."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ["git", "-C", str(ROOT)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(tree), commit], check=True)
        try:
            script = [sys.executable, str(tree / "tools" / "loss_trace.py")]
            done = subprocess.run(script, stdout=subprocess.PIPE, check=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(tree)], check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    for step, (old, new) in enumerate(zip(before["losses"], now["losses"], strict=True), 1):
        if old != new:
            return f"DIFFERS from step {step} on: {old} before, {new} now"
    return "identical" if before["weights"] == now["weights"] else "DIFFERS in its weights"


if __name__ == "__main__":
    main()
