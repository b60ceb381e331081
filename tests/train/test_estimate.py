"""What a dry run tells, against closed forms, the run that it tells of, and the memory that a process takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from small_runs import SMALL, quiet, settings, state

from fastssl.cli import main
from fastssl.errors import ConfigError, DataError, UsageError
from fastssl.files import alone_in
from fastssl.loader import training_domains
from fastssl.methods import find_method, load_config
from fastssl.train import dry_run, loader_options, start_run
from fastssl.train.estimate import Timing, count_step

SAMPLE = Path(__file__).parents[2] / "shards" / "sample"
PAPER = ["--preset", "paper", "--synthetic", str(SAMPLE / "render_train"), "--real", str(SAMPLE / "real_train")]


class Layer(NamedTuple):
    inputs: int
    outputs: int
    kernel: int
    side: int
    """Of its output; of its input where it is a transposed convolution."""

    @property
    def macs(self) -> int:
        return self.inputs * self.outputs * self.kernel**2 * self.side**2


# docs/reproduction.md, sections 3.3 to 3.5, at 227 pixels.
CONV = [Layer(3, 96, 11, 56), Layer(96, 256, 5, 27), Layer(256, 384, 3, 13), Layer(384, 384, 3, 13)]
CONV += [Layer(384, 256, 3, 13)]
FC = [Layer(256, 4096, 6, 13), Layer(4096, 4096, 1, 13)]
SHARED = [Layer(4096, 64, 3, 13), Layer(64, 64, 3, 27), Layer(64, 64, 5, 55)]
OUTPUT = [Layer(64, channels, 3, 113) for channels in (1, 3, 1)]
D = [Layer(256, 512, 3, 6), Layer(512, 512, 1, 6), Layer(512, 1, 1, 6)]


def macs(*layers: Layer) -> int:
    return sum(layer.macs for layer in layers)


def paper_macs_per_pair() -> int:
    """A backward pass takes a forward's work for the weights' gradients, and as much for those of the input."""
    learnt = 3 * (macs(*CONV, *FC) + 3 * macs(*SHARED) + macs(*OUTPUT)) - macs(CONV[0])  # no gradient of the image
    photo = macs(*CONV)
    own = 2 * (3 * macs(*D) - macs(D[0]))  # two domains; none of the pools' maps
    adversarial = 2 * macs(*D)  # none of D's weights
    return learnt + photo + own + adversarial


@pytest.fixture
def paper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What the command prints for the full size; its time, which takes some, is made up."""
    timing = Timing(seconds_per_step=2.0, how="by nobody")
    monkeypatch.setattr("fastssl.train.estimate.time_step", lambda *arguments: timing)
    monkeypatch.setattr(
        sys, "argv", ["fastssl", "train", "--dry-run", "--json", *PAPER, "--out", str(tmp_path / "run")]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    out, err = capsys.readouterr()
    assert "would be refused: the packed images are smaller than the network's input" in err
    assert not (tmp_path / "run").exists()
    told: dict[str, Any] = json.loads(out)
    return told


@pytest.mark.soak
def test_a_step_that_takes_long_is_foreseen_from_small_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fastssl", "train", "--dry-run", "--json", *PAPER, "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    timing = json.loads(done.stdout)["time"]
    assert timing["measured"] == "steps on 2 and 8 of 224 images, drawn out; loading is left out"
    assert 1 < timing["seconds_per_step"] < 1000
    assert not (tmp_path / "run").exists()


def test_the_paper_s_work_is_that_of_its_layers(paper: dict[str, Any]) -> None:
    assert paper["gmac_per_pair"] == pytest.approx(paper_macs_per_pair() / 1e9, rel=1e-6)
    assert paper["gmac_per_pair"] == pytest.approx(38.6, rel=0.02)
    assert paper["parameters"]["backbone"] == 58_300_480  # as `tests/models` holds
    assert sum(paper["parameters"].values()) == 2 * paper["parameters"]["total"]


def test_the_paper_s_memory_and_data_by_hand(paper: dict[str, Any]) -> None:
    memory, parameters = paper["memory_bytes"], paper["parameters"]
    assert memory["gradients"] == 4 * parameters["total"]
    # Adam has two numbers per weight of B and H, SGD's momentum one per weight of D.
    adam = 8 * (parameters["backbone"] + parameters["heads"]) + 4 * parameters["discriminator"]
    assert memory["optimizer"] == pytest.approx(adam, rel=1e-3)
    assert memory["pools"] == 2 * 128 * 4 * 256 * 13 * 13
    planes = 2 * 3 + (1 + 3 + 1) + 0.25  # two images; depth, normal, contours; valid pixels in bytes
    assert memory["loader"] == pytest.approx(4 * 224 * 4 * 227**2 * planes, rel=1e-4)
    # What conv1 of 224 rendered images gives, before and behind its norm, is kept in any case.
    assert memory["activations"] > 2 * 224 * 4 * 96 * 56**2
    # 300 rendered images an epoch, and as many photos.
    manifests = [json.loads((SAMPLE / name / "manifest.json").read_text()) for name in ("render_train", "real_train")]
    means = [
        sum(bytes_of["total"] / bytes_of["count"] for bytes_of in manifest["statistics"]["member_bytes"].values())
        for manifest in manifests
    ]
    assert paper["read_bytes"]["per_epoch"] == pytest.approx(300 * sum(means), rel=0.001)
    assert paper["steps"] == -(-30 * 300 // 224)
    assert paper["time"]["seconds_in_all"] == pytest.approx(paper["steps"] * paper["time"]["seconds_per_step"])


def test_a_dry_run_writes_nothing_and_foresees_the_run(coded_synthetic: Path, coded_real: Path, tmp_path: Path) -> None:
    config = settings(coded_synthetic, coded_real, "train.epochs=3", "train.steps=0")
    told = dry_run(config, tmp_path / "run")
    assert told["refused"] is None
    assert not (tmp_path / "run").exists()
    assert "loading" in told["time"]["measured"]
    start_run(config, tmp_path / "run", quiet)
    last = state(tmp_path / "run", told["steps"])
    assert told["steps"] == 9  # 33 samples by fours
    counted = {name: sum(t.numel() for t in last[name].values()) for name in ("backbone", "heads", "discriminator")}
    held = sum(t.nbytes for name in counted for t in last[name].values())
    assert told["memory_bytes"]["parameters"] == held
    pools = sum(t.nbytes for pool in last["ranks"][0].values() for t in pool.values() if t.is_floating_point())
    assert told["memory_bytes"]["pools"] == pools
    assert dry_run(config, tmp_path / "other", world_size=2)["steps"] == 5


def test_a_dry_run_refuses_what_the_training_refuses(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(coded_synthetic, coded_real)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    for wrong, run, error in (
        (config, tmp_path / "full", UsageError),
        (settings(tmp_path / "nowhere", coded_real), tmp_path / "run", DataError),
        (settings(coded_real, coded_real), tmp_path / "run", DataError),
        (load_config("tiny"), tmp_path / "run", UsageError),
    ):
        for begin in (lambda c, r: start_run(c, r, quiet), dry_run):
            with pytest.raises(error):
                begin(wrong, run)
        assert not (tmp_path / "run").exists()
    with alone_in(tmp_path / "used", "training"), pytest.raises(UsageError, match="another training"):
        dry_run(config, tmp_path / "used")
    for more in (["--dry-run", "--set", "optim.lrr=1"], ["--dry-run", "--resume"], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["fastssl", "train", "--out", str(tmp_path / "run"), *more])
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2


def test_a_method_of_images_has_its_work_per_image(coded_real: Path, tmp_path: Path) -> None:
    small = [override for override in SMALL if "head" not in override and "pool" not in override]
    config = load_config("tiny", method="rotation", overrides=[*small, f"data.real={coded_real}"])
    told = dry_run(config, tmp_path / "run")
    # Four turns; at 67 pixels the sides are 16, 7 and 3, and the width of 0.1 leaves 8, 24, 40, 40, 24 channels.
    conv = [Layer(3, 8, 11, 16), Layer(8, 24, 5, 7), Layer(24, 40, 3, 3), Layer(40, 40, 3, 3), Layer(40, 24, 3, 3)]
    fc = [Layer(24, 32, 6, 3), Layer(32, 32, 1, 3)]
    expected = 4 * (3 * (macs(*conv, *fc) + 4 * 32) - macs(conv[0]))
    assert told["gmac_per_image"] == pytest.approx(expected / 1e9, rel=1e-6)


GROWTH = """
import resource, sys, torch
from fastssl.methods import StepContext, find_method, load_config
from fastssl.train.estimate import Timing, count_step, _batches
from fastssl.loader import LoaderOptions, training_domains
torch.set_num_threads(1)
def resident():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS")) * 1024
def made(config):
    options = LoaderOptions(device=torch.device("cpu"), threads=1)
    domains = training_domains(find_method(config.method).domains(config), config)
    method = find_method(config.method)(config, StepContext(config, torch.device("cpu")))
    with _batches(domains, options, {n: d.batch_size for n, d in domains.items()}) as loaders:
        for _ in range(3):
            method({n: next(l) for n, l in loaders.items()})
    return count_step(config, domains, options).memory.total
paths = [f"data.{n}={p}" for n, p in zip(("synthetic", "real"), sys.argv[1:])]
made(load_config("tiny", overrides=[*paths, "data.size=67", "data.batch_synthetic=2", "data.batch_real=2"]))
before = resident()
open("/proc/self/clear_refs", "w").write("5")  # the highest mark begins anew
total = made(load_config("tiny", overrides=[*paths, *sys.argv[3:]]))
peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
print(total, peak - before)
"""


@pytest.mark.soak
@pytest.mark.parametrize(
    "overrides",
    [
        ["data.batch_synthetic=64", "data.batch_real=64"],
        ["model.width=0.6", "model.fc_channels=1024", "data.batch_synthetic=24", "data.batch_real=24"],
    ],
)
def test_the_memory_is_about_what_a_process_takes(overrides: list[str]) -> None:
    """The growth of a process that has made small steps before."""
    paths = [str(SAMPLE / "render_train"), str(SAMPLE / "real_train")]
    command = [sys.executable, "-c", GROWTH, *paths, *overrides]
    told, seen = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert 0.6 < told / seen < 1.7


@pytest.mark.parametrize(
    ("override", "cure"),
    [
        ("data.batch_synthetic=60000", "data.batch_synthetic"),
        ("train.prefetch=1000000", "train.prefetch"),
        ("model.fc_channels=60000", "model.width or model.fc_channels"),
    ],
)
def test_what_cannot_fit_is_refused_before_anything_is_made(
    override: str, cure: str, coded_synthetic: Path, coded_real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.train.estimate.memory_of", lambda device: 4 << 30)
    config = settings(coded_synthetic, coded_real)
    section, _, rest = override.partition(".")
    name, _, value = rest.partition("=")
    part = getattr(config, section).model_copy(update={name: int(value)})
    with pytest.raises(ConfigError, match=rf"does not fit into the memory(.|\n)*lower .*{cure}"):
        start_run(config.model_copy(update={section: part}), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_counting_leaves_no_trace(coded_synthetic: Path, coded_real: Path) -> None:
    """Neither in torch's global generator nor in what a method draws."""
    config = settings(coded_synthetic, coded_real)
    domains = training_domains(find_method(config.method).domains(config), config)
    before = torch.random.get_rng_state()
    first = count_step(config, domains, loader_options(config, torch.device("cpu")))
    assert first == count_step(config, domains, loader_options(config, torch.device("cpu")))
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.best_by=foo"], "train.best_by"),
        (["train.best_by=tasks/depth/abs_rel", "train.validate_every=0"], "train.validate_every above 0"),
        (["train.trackers=[tensorbord]"], "tensorboard"),
        (["train.trackers=[tensorboard, tensorboard]"], "named twice"),
    ],
)
def test_a_dry_run_and_a_training_refuse_what_is_measured_wrongly(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, overrides: list[str], words: str
) -> None:
    config = settings(coded_synthetic, coded_real, f"data.validation_synthetic={coded_synthetic}", *overrides)
    for begin in (lambda: start_run(config, tmp_path / "run", quiet), lambda: dry_run(config, tmp_path / "run")):
        with pytest.raises(ConfigError) as refused:
            begin()
        assert words in str(refused.value)


def test_a_warm_up_that_never_ends_is_told(
    coded_synthetic: Path, coded_real: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dry_run(settings(coded_synthetic, coded_real, "train.steps=5", "optim.warmup_steps=5"), tmp_path / "run")
    assert "never learns at optim.lr" in caplog.text
