"""Normals of NYU Depth v2 on walls that are known in closed form, against NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from commands import command
from made_run import make_run, strict
from numpy.typing import NDArray
from nyud_rooms import TEST, TRAIN, room, write_splits
from PIL import Image
from scipy.io import loadmat, savemat

from fastssl.errors import DataError, UsageError
from fastssl.evaluate import Measured, Normals, evaluate, fine_tuning, run_subject
from fastssl.evaluate.dense import dense_network
from fastssl.evaluate.foreign import foreign_subject, gaussian
from fastssl.evaluate.normals import PROGRESS, mirrored
from fastssl.evaluate.nyud import Frame, NyuFrames, SmallFrames
from fastssl.evaluate.progress import Progress
from fastssl.sources.nyuv2 import FRAMES, SPLITS
from fastssl.sources.nyuv2_normals import NyuNormals

SMALL: dict[str, Any] = {"height": 60, "width": 80, "batch_size": 4, "head_channels": 8}
REGION = (slice(45 - 1, 471), slice(41 - 1, 601))


def normals(rooms: Path, **settings: Any) -> Normals:
    given = {"frames": rooms, "truth": rooms / "truth", "convention": "rdf-away", **SMALL, **settings}
    return Normals(**given)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", coded_synthetic, coded_real)


def statistics(degrees: NDArray[np.float64]) -> dict[str, float]:
    limits = {f"within_{limit:g}": np.count_nonzero(degrees < limit) / degrees.size for limit in (11.25, 22.5, 30)}
    return {"mean": np.mean(degrees), "median": np.median(degrees), **limits}


def constant(*, depth: bool) -> dict[str, float]:
    """The figures of the mean of every eighth pixel of the training images, from the rooms themselves."""
    known = {}
    for number in (*TRAIN, *TEST):
        one, inside = room(number), np.zeros((480, 640), bool)
        inside[REGION] = True
        counts = inside & (one["depth"] > 0 if depth else one["valid"])
        known[number] = one["depth" if depth else "normal"].astype(np.float64), counts
    few = np.s_[::8, ::8]
    mean = np.concatenate([plane[few][counts[few]] for plane, counts in (known[n] for n in TRAIN)]).mean(axis=0)
    truth = np.concatenate([plane[counts] for plane, counts in (known[n] for n in TEST)])
    if not depth:
        return statistics(np.degrees(np.arccos(np.clip(truth @ (mean / np.linalg.norm(mean)), -1, 1))))
    return {
        "rmse": np.sqrt(np.mean((mean - truth) ** 2)),
        "log_rmse": np.sqrt(np.mean((np.log(mean) - np.log(truth)) ** 2)),
        "abs_rel": np.mean(np.abs(mean - truth) / truth),
        "delta_1.25": np.mean(np.maximum(mean / truth, truth / mean) < 1.25),
    }


def column(measured: Measured, name: str) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for row in measured.rows:
        task, metric = row.metric.path
        found.setdefault(task, {})[metric] = row.values[name]
    return found


def test_the_figures_of_a_run_as_it_is_and_of_a_constant_are_those_of_numpy(nyu_rooms: Path, run: Path) -> None:
    """The run's own heads, without any step; what they predict is enlarged with torch's means, and counted by NumPy."""
    measured = evaluate(normals(nyu_rooms, depth=True, steps=0), run)
    assert column(measured, "constant")["normal"] == pytest.approx(constant(depth=False), rel=1e-6)
    assert column(measured, "constant")["depth"] == pytest.approx(constant(depth=True), rel=1e-6)
    subject, degrees = run_subject(run), []
    for number in TEST:
        one = room(number)
        green = torch.from_numpy(one["image"][None, None, ..., 1]).float()
        small = torch.nn.functional.interpolate(green, (60, 80), mode="bilinear", antialias=True).round() / 255 - 0.456
        small = torch.nn.functional.pad(small, (0, 3, 0, 7), mode="replicate").expand(-1, 3, -1, -1)
        assert subject.predict is not None
        with torch.no_grad():
            predicted = subject.predict(small)["normal"][..., :60, :80].double()
        large = torch.nn.functional.interpolate(predicted, (480, 640), mode="bilinear")[0].permute(1, 2, 0).numpy()
        large /= np.linalg.norm(large, axis=2, keepdims=True)
        counts = np.zeros((480, 640), bool)
        counts[REGION] = one["valid"][REGION]
        degrees.append(np.degrees(np.arccos(np.clip((large * one["normal"]).sum(axis=2), -1, 1)))[counts])
    assert column(measured, "trained")["normal"] == pytest.approx(statistics(np.concatenate(degrees)), rel=1e-5)
    assert (measured.conditions["images"], measured.conditions["training_images"]) == (2, 3)
    assert measured.conditions["head_origin"] == {"trained": "the run's own", "untrained": "the run's own"}
    assert strict((run / "summary.json").read_text())["normals"] == measured.section()
    assert measured.pictures["normals.png"].size == (4 * 84 + 4, 20 + 2 * 64 + 4)


def test_it_learns_what_a_constant_does_not_reach(nyu_rooms: Path, run: Path) -> None:
    """The walls' colours tell their normals, as long as none is mirrored; new heads on weights that were drawn."""
    evaluation = normals(nyu_rooms, colour=True, steps=30, lr=6e-3, head_lr=6e-3, flip=0.0, head_channels=16)
    measured = evaluation(gaussian(run_subject(run), "drawn"), ())
    least, error = (column(measured, name)["normal"]["mean"] for name in ("constant", "drawn"))
    assert least is not None
    assert error is not None
    assert least > 29
    assert error < 16


def test_a_killed_training_ends_with_the_same_figures(
    nyu_rooms: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluation = normals(nyu_rooms, steps=2)
    whole = evaluate(evaluation, run)
    made: list[int] = []
    batch_of = Normals.training_batch

    def dies(self: Normals, numbers: Any, small: Any, step: int) -> Frame:
        made.append(step)
        if len(made) == 4:
            raise KeyboardInterrupt
        return batch_of(self, numbers, small, step)

    monkeypatch.setattr(Normals, "training_batch", dies)
    monkeypatch.setattr(fine_tuning, "_KEEP_EVERY_S", 0)
    with pytest.raises(KeyboardInterrupt):
        evaluate(evaluation, run)
    assert (run / PROGRESS).is_file()
    assert evaluate(evaluation, run).section() == whole.section()
    assert made == [0, 1, 0, 1, 1], "the untrained network's second step alone was left"
    assert not (run / PROGRESS).exists()


def test_the_defaults_are_those_of_the_protocol(nyu_rooms: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zhang et al.'s, by what reaches the training: 320 x 240, ten images, RMSprop, 1e-4 where weights are tuned and
    1e-3 where they are new, a fifth of it every 150,000 steps, one minus the cosine."""
    assert Normals(frames=nyu_rooms, truth=nyu_rooms).convention == ""
    seen: list[Any] = []

    def spy(training: fine_tuning.Training, network: Any, optimizer: Any, loss_of: Any, *_: Any) -> None:
        seen.append((training, optimizer, loss_of(0), network.backbone.training))

    monkeypatch.setattr(fine_tuning.Training, "run", spy)
    shapes: list[tuple[int, ...]] = []
    batch_of = Normals.training_batch

    def noted(self: Normals, numbers: Any, small: Any, step: int) -> Frame:
        batch = batch_of(self, numbers, small, step)
        shapes.append(tuple(batch.image.shape))
        return batch

    monkeypatch.setattr(Normals, "training_batch", noted)
    evaluation = Normals(frames=nyu_rooms, truth=nyu_rooms / "truth", convention="rdf-away")
    frames = NyuFrames(nyu_rooms, nyu_rooms / "truth", "rdf-away", whole_frame=False)
    for subject in (run_subject(run), gaussian(run_subject(run), "drawn")):
        network = dense_network(subject, evaluation.tasks, evaluation.heads, 8, 0)
        evaluation._train(network, subject, frames, SmallFrames(frames, 240, 320), Progress(None))
    assert shapes == [(10, 3, 240, 320)] * 2
    for (training, optimizer, loss, trains), head_lr in zip(seen, (1e-4, 1e-3), strict=True):
        assert isinstance(optimizer, torch.optim.RMSprop)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-4, head_lr]
        assert [(group["alpha"], group["momentum"]) for group in optimizer.param_groups] == [(0.99, 0)] * 2
        assert [training.lr_factor(step) for step in (0, 149_999, 150_000, 300_000)] == pytest.approx([1, 1, 0.2, 0.04])
        assert 0 < float(loss.detach()) < 2
        assert trains


def test_a_frozen_backbone_stays_as_it_is(nyu_rooms: Path, run: Path) -> None:
    """Weights and statistics, while heads learn; what is measured is another network than the subject's."""
    subject, evaluation = run_subject(run), normals(nyu_rooms, frozen=True, steps=2)
    frames = NyuFrames(nyu_rooms, nyu_rooms / "truth", "rdf-away", whole_frame=False)
    before = {name: value.clone() for name, value in subject.networks.state_dict().items()}
    network = dense_network(subject, evaluation.tasks, "light", 8, 0)
    evaluation._train(network, subject, frames, SmallFrames(frames, 60, 80), Progress(None))
    for name, value in network.state_dict().items():
        changes = name.startswith("heads.heads.normal") and "weight" in name
        assert torch.equal(value, before[name]) or not name.startswith("backbone")
        assert not changes or not torch.equal(value, before[name])
    for name, value in subject.networks.state_dict().items():
        assert torch.equal(value, before[name])


def test_batches_go_through_all_images_and_mirrored_normals_are_those_of_a_mirrored_room(nyu_rooms: Path) -> None:
    frames = NyuFrames(nyu_rooms, nyu_rooms / "truth", "rdf-away", whole_frame=True)
    small = SmallFrames(frames, 60, 80)
    plain = {number: small.of([number]).image[0] for number in TRAIN}
    seen = []
    for step in range(3):
        batch = normals(nyu_rooms, batch_size=4, flip=0.0).training_batch(TRAIN, small, step)
        seen += [next(n for n, image in plain.items() if torch.equal(image, one)) for one in batch.image]
    assert all(sorted(seen[place : place + 3]) == sorted(TRAIN) for place in (0, 3, 6, 9))
    batch = small.of(TRAIN[:2])
    turned = mirrored(batch, torch.tensor([True, False]))
    expected = batch.normal[0].numpy()[:, :, ::-1] * np.array([-1, 1, 1])[:, None, None]
    assert np.array_equal(turned.normal[0].numpy(), expected)
    assert np.array_equal(turned.image[0].numpy(), batch.image[0].numpy()[:, :, ::-1])
    assert all(torch.equal(one[1], other[1]) for one, other in zip(turned, batch, strict=True))


def test_pngs_and_mats_are_read_alike_and_masks_are_kept(nyu_rooms: Path) -> None:
    for number in TEST:
        stored, codes = (NyuNormals(nyu_rooms / name, 5).read(number) for name in ("truth", "pngs"))
        one = room(number)
        assert np.abs(stored - np.where(one["valid"][..., None], -one["normal"], 0)).max() < 1e-12
        assert np.array_equal(codes.any(axis=2), one["valid"])
        assert np.abs(codes - stored).max() < 1 / 127
    for whole in (True, False):
        frame = NyuFrames(nyu_rooms, nyu_rooms / "pngs", "rdf-away", whole_frame=whole).frame(TEST[0])
        one, counts = room(TEST[0]), np.full((480, 640), whole)
        counts[REGION] = True
        assert np.array_equal(frame.normal.any(dim=0).numpy(), counts & one["valid"])
        assert np.array_equal(frame.depth[0].numpy(), np.where(counts, one["depth"], 0))
        assert np.array_equal(frame.image.numpy(), one["image"].transpose(2, 0, 1))


def copy_of(rooms: Path, folder: Path) -> Path:
    """The same files, by links."""
    (folder / "truth").mkdir(parents=True)
    for file in (rooms / FRAMES, rooms / SPLITS, *(rooms / "truth").iterdir()):
        (folder / file.relative_to(rooms)).symlink_to(file)
    return folder


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def split(*test: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / SPLITS).unlink()
        write_splits(folder, test=test)

    return change


def mat(change_it: Callable[[dict[str, NDArray[Any]]], dict[str, Any]]) -> Callable[[Path], None]:
    """The first test image's normals, changed."""

    def change(folder: Path) -> None:
        file = folder / "truth" / f"nm_{TEST[0]:06d}.mat"
        arrays = {name: value for name, value in loadmat(file).items() if not name.startswith("__")}
        file.unlink()
        savemat(file, change_it(arrays))

    return change


def other_png(image: Image.Image, name: str = "0004.png") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for file in (folder / "truth").iterdir():
            file.unlink()
        for number in (*TRAIN, *TEST):
            image.save(folder / "truth" / f"{number:04d}.png")
        image.save(folder / "truth" / name)

    return change


def swapped_axes(folder: Path) -> None:
    (folder / FRAMES).unlink()
    with h5py.File(folder / FRAMES, "w") as file:
        shapes = {"images": (2, 3, 480, 640), "depths": (2, 480, 640), "labels": (2, 480, 640)}
        for name, shape in shapes.items():
            file[name] = np.zeros(shape, {"images": np.uint8, "depths": np.float32, "labels": np.uint16}[name])
        file["instances"] = np.zeros((2, 480, 640), np.uint8)


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no splits": (without(SPLITS), "file of the splits is missing"),
    "split from 0": (split(0, 4), "split does not fit(.|\n)*from 0 to 4(.|\n)*from 1 to 5"),
    "split beyond": (split(4, 7), "split does not fit(.|\n)*from 4 to 7"),
    "empty split": (split(), "split test has no frame"),
    "in both": (split(2, 4), "learnt from and tested on(.|\n)*such as 2"),
    "no folder": (lambda folder: (folder / "truth").rename(folder / "gone"), "cannot be read(.|\n)*truth"),
    "too many": (
        lambda folder: (folder / "truth" / "nm_000007.mat").symlink_to(folder / "truth" / "nm_000001.mat"),
        "another number of images(.|\n)*from 1 to 7(.|\n)*from 1 to 5",
    ),
    "no file": (without("truth/nm_000005.mat"), "have no true normals(.|\n)*4 files; none for frame 5"),
    "no nz": (mat(lambda arrays: {name: arrays[name] for name in ("nx", "ny", "depthValid")}), "lack nz"),
    "swapped": (mat(lambda arrays: {name: value.T for name, value in arrays.items()}), "rows and columns are swapped"),
    "cut": (
        mat(lambda arrays: {name: value[REGION] for name, value in arrays.items()}),
        "another shape(.|\n)*427, 561",
    ),
    "no pixel": (mat(lambda arrays: arrays | {"depthValid": 0 * arrays["depthValid"]}), "no true normal of a frame"),
    "not finite": (mat(lambda arrays: arrays | {"nx": np.nan * arrays["nx"]}), "not finite(.|\n)*nm_000004"),
    "not unit": (mat(lambda arrays: {name: 3 * value for name, value in arrays.items()}), "no unit normals(.|\n)*of 3"),
    "damaged": (
        lambda folder: (
            mat(lambda arrays: arrays)(folder)
            or ((folder / "truth" / "nm_000004.mat").write_bytes(b"MATLAB 5.0" * 40) and None)
        ),
        "cannot be read(.|\n)*nm_000004",
    ),
    "gray": (other_png(Image.new("L", (640, 480), 9)), "no PNG of normals(.|\n)*mode L"),
    "small": (other_png(Image.new("RGB", (480, 640), "red")), "rows and columns are swapped"),
    "twice": (other_png(Image.new("RGB", (640, 480), "red"), "4.png"), "of one frame(.|\n)*0004.png and 4.png"),
    "axes": (swapped_axes, "array images is not what its dataset says"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_files_are_named(nyu_rooms: Path, tmp_path: Path, fault: str) -> None:
    change, message = FAULTS[fault]
    folder = copy_of(nyu_rooms, tmp_path / "copy")
    change(folder)
    with pytest.raises(DataError, match=message):
        NyuFrames(folder, folder / "truth", "rdf-away", whole_frame=False).frame(TEST[0])


@pytest.mark.parametrize(
    ("stated", "words"),
    [
        ("rdf-towards", r"0% of them face(.|\n)*flip nx and ny and nz: --convention rdf-away agrees by 0\.99"),
        ("rdb-away", r"0% of them face(.|\n)*flip nz: --convention rdf-away"),
        ("ldf-away", r"100% of them face(.|\n)*flip nx: --convention rdf-away"),
        ("drf-away", "axes are in another order: --convention rdf-away"),
        ("", r"is not stated(.|\n)*rdf-away agrees best"),
        ("rrf-away", "cannot be read(.|\n)*rrf-away"),
        ("rdf", "cannot be read"),
    ],
)
def test_a_convention_that_is_wrong_or_not_stated_is_refused(nyu_rooms: Path, stated: str, words: str) -> None:
    kind = UsageError if stated in ("", "rrf-away", "rdf") else DataError
    with pytest.raises(kind, match=words):
        NyuFrames(nyu_rooms, nyu_rooms / "truth", stated, whole_frame=False)


def test_the_same_convention_in_other_words_is_taken(nyu_rooms: Path) -> None:
    frames = NyuFrames(nyu_rooms, nyu_rooms / "truth", "lub-towards", whole_frame=True)
    one = room(TEST[1])
    assert np.abs(frames.frame(TEST[1]).normal.numpy().transpose(1, 2, 0) - one["normal"])[one["valid"]].max() < 1e-12


def test_the_command_ends_with_3_for_bad_data_and_2_for_wrong_words(
    nyu_rooms: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def code(*more: object) -> int:
        return command(monkeypatch, "eval", "normals", run, "--frames", nyu_rooms, *more)

    truth = ("--truth", nyu_rooms / "truth")
    assert code(*truth, "--convention", "rdf-towards") == 3
    assert code("--truth", tmp_path) == 3
    assert "holds no true normals" in capsys.readouterr().err
    assert code(*truth) == 2
    assert "hint: of all conventions rdf-away agrees best" in capsys.readouterr().err
    assert code(*truth, "--flip", 2) == 2
    assert "--flip" in capsys.readouterr().err


def test_what_has_no_heads_needs_steps_and_sizes_that_do_not_fit_are_named(nyu_rooms: Path, run: Path) -> None:
    drawn = gaussian(run_subject(run), "drawn")
    with pytest.raises(UsageError, match=r"new heads would predict nothing(.|\n)*drawn"):
        normals(nyu_rooms, steps=0)(drawn, ())
    with pytest.raises(UsageError, match=r"size does not fit(.|\n)*--height"):
        normals(nyu_rooms, steps=1, height=1, width=1)(drawn, ())
    strange = foreign_subject("torchvision:resnet18", "strange")
    assert strange is not None
    with pytest.raises(UsageError, match=r"skip connections do not fit(.|\n)*--heads light or pyramid"):
        normals(nyu_rooms, steps=1, height=64, width=80, heads="skip")(strange, ())
