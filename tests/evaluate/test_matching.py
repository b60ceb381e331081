"""Matching against analytic features, whose matches are known, and warps against NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_run import diverged, make_run
from torch import Tensor

from fastssl.backbones import first_centres
from fastssl.batch import IMAGE_MEAN
from fastssl.errors import DataError
from fastssl.evaluate import Matching, evaluate, run_subject
from fastssl.evaluate.matching import Matches, Warps, homographies, match_photos, match_points, projected

SIZE = 131
NO_LIGHT = torch.tensor([1.0, 1, 0, 0], dtype=torch.float64)
UNCHANGED = torch.eye(3, dtype=torch.float64)
HALF_TURN = torch.diag(torch.tensor([-1.0, -1, 1], dtype=torch.float64))


def warps(*bends: Tensor) -> Warps:
    """Warps that bend alone."""
    return Warps(size=SIZE, first=0, homographies=torch.stack(bends), light=NO_LIGHT.expand(len(bends), 4))


def analytic(places: Tensor) -> Tensor:
    """A feature of a place, (..., 2) in pixels to (..., 16), whose cosine with that of another is largest at itself."""
    waves = torch.arange(1, 5, dtype=torch.float64) * torch.pi / (2 * SIZE)
    angles = (places[..., None] * waves).flatten(-2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def pixels_of_map(centre: float, stride: int) -> Tensor:
    """(h, w, 2), x and y."""
    axis = torch.arange(centre, SIZE, stride, dtype=torch.float64)
    down, across = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([across, down], dim=2)


@pytest.mark.parametrize(("centre", "stride"), [(3.0, 4), (7.0, 8), (15.0, 16), (0.0, 16), (7.5, 16)])
def test_perfect_features_match_without_error(centre: float, stride: int) -> None:
    """A match is the position next to the true place, whatever the map's first position; and it is off to no side."""
    some = replace(Warps.drawn(6, SIZE), light=NO_LIGHT.expand(6, 4))
    bends = torch.cat([some.homographies, UNCHANGED[None], HALF_TURN[None]])
    some = warps(*bends)
    places = pixels_of_map(centre, stride)
    before = projected(torch.linalg.inv(bends), ((2 * places + 1) / SIZE - 1).flatten(0, 1))
    sources = ((before + 1) * SIZE - 1) / 2
    first = analytic(places).permute(2, 0, 1).expand(8, -1, -1, -1).float()
    second = analytic(sources).mT.reshape(8, 16, *places.shape[:2]).float()
    points, moved, seen = some.points(torch.device("cpu"))
    inside = seen.clone()
    for here in (points.expand_as(moved), moved):  # on both maps, so that nothing is beyond the last position
        inside &= ((here >= centre) & (here <= places.max())).all(dim=2)
    away = match_points(first, second, points, centre, stride) - moved
    assert inside[:6].sum() > 400
    assert away[inside].abs().max() < 0.75 * stride
    assert away[:6][inside[:6]].mean(dim=0).abs().max() < 0.06 * stride
    assert away[6:][inside[6:]].abs().max() <= stride / 2 + 1e-6


def test_points_are_interpolated_and_not_rounded() -> None:
    """Halfway between two positions the features are half of each."""
    first = torch.zeros(1, 2, 1, 2)
    first[0, 0, 0, 0] = first[0, 1, 0, 1] = 1
    second = torch.tensor([[1.0, 0], [1, 1], [0, 1], [2, 1]]).T.reshape(1, 2, 1, 4)
    points = torch.tensor([[5.0, 5], [9, 5], [13, 5], [7.6, 5], [0, 0]], dtype=torch.float64)
    found = match_points(first, second, points, centre=5.0, stride=8)
    assert found[0].tolist() == [[5, 5], [13, 5], [21, 5], [29, 5], [5, 5]]


def test_a_copy_shows_at_a_moved_place_what_the_photo_shows_at_the_point() -> None:
    """Colours that say where they are, by NumPy; what the photo does not have is the mean."""
    x = torch.arange(SIZE) / SIZE
    photo = torch.stack([x.expand(SIZE, SIZE), x[:, None].expand(SIZE, SIZE), torch.full((SIZE, SIZE), 0.5)])
    photos = (photo - torch.from_numpy(IMAGE_MEAN)[:, None, None]).expand(5, -1, -1, -1)
    some = replace(Warps.drawn(5, SIZE), light=NO_LIGHT.expand(5, 4))
    copies = some.of(photos).numpy() + IMAGE_MEAN[:, None, None]
    points, moved, seen = (part.numpy() for part in some.points(torch.device("cpu")))
    for number in range(5):
        for point, (u, v) in zip(points[seen[number]], moved[number][seen[number]], strict=True):
            if not (1 < u < SIZE - 2 and 1 < v < SIZE - 2 and (point > 6).all() and (point < SIZE - 7).all()):
                continue
            i, j = int(u), int(v)
            right, down = u - i, v - j
            square = copies[number, :2, j : j + 2, i : i + 2]
            shown = (square @ [1 - right, right]) @ [1 - down, down]
            assert shown * SIZE == pytest.approx(point, abs=0.02)
    outside = copies[:, :, 0, 0][np.abs(copies[:, 2, 0, 0] - 0.5) > 0.05]
    assert outside == pytest.approx(np.broadcast_to(IMAGE_MEAN, outside.shape), abs=0.05)


def test_four_points_are_moved_to_four_others() -> None:
    before = torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]], dtype=torch.float64)
    after = before @ torch.tensor([[0.0, 1], [-1, 0]], dtype=torch.float64) * 0.5 + 0.25
    bent = torch.tensor([[-0.9, -1.2], [1.1, -0.8], [0.7, 1], [-1.1, 0.9]], dtype=torch.float64)
    found = homographies(before, torch.stack([after, bent])).numpy()
    for homography, expected in zip(found, (after.numpy(), bent.numpy()), strict=True):
        moved = np.c_[before.numpy(), np.ones(4)] @ homography.T
        assert moved[:, :2] / moved[:, 2:] == pytest.approx(expected)
    assert found[0] == pytest.approx(np.array([[0, -0.5, 0.25], [0.5, 0, 0.25], [0, 0, 1]]))


def test_light_is_gamma_then_contrast_then_brightness_then_noise() -> None:
    photos = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))
    light = torch.tensor([[1.3, 0.8, 0.1, 0.0], [0.9, 1.2, -0.1, 0.02]], dtype=torch.float64)
    mean = IMAGE_MEAN[:, None, None]
    lit = replace(warps(UNCHANGED, UNCHANGED), light=light).of(photos - torch.from_numpy(mean)).numpy() + mean
    plain = [
        np.clip((photos[n].numpy() ** g - 0.5) * c + 0.5 + b, 0, 1) for n, (g, c, b, _) in enumerate(light.numpy())
    ]
    assert lit[0] == pytest.approx(plain[0], abs=2e-3)
    noise = (lit[1] - plain[1])[:, 20:-20, 20:-20][
        (plain[1] > 0.2)[:, 20:-20, 20:-20] & (plain[1] < 0.8)[:, 20:-20, 20:-20]
    ]
    assert noise.std() == pytest.approx(0.02, rel=0.05)


def test_warps_are_within_their_bounds_and_the_same_again_at_any_size() -> None:
    some, again = Warps.drawn(500, SIZE), Warps.drawn(500, 227)
    assert torch.equal(some.homographies, again.homographies)
    assert torch.equal(some.light, again.light)
    low, high = some.light.amin(dim=0), some.light.amax(dim=0)
    assert low.tolist() == pytest.approx([1 / 1.4, 1 / 1.4, -0.15, 0], abs=0.02)
    assert high.tolist() == pytest.approx([1.4, 1.4, 0.15, 0.03], abs=0.02)
    middle = projected(some.homographies, torch.zeros(1, 2, dtype=torch.float64))[:, 0]
    assert 0.4 < middle.abs().max() < 0.8
    assert (torch.linalg.det(some.homographies) > 0).all()
    _, _, seen = some.points(torch.device("cpu"))
    assert 0.6 < seen.double().mean() < 0.9
    assert seen.any(dim=1).all()


@pytest.fixture
def run(tmp_path: Path, coded_synthetic: Path, coded_real: Path) -> Path:
    return make_run(tmp_path / "run", coded_synthetic, coded_real)


def test_photos_that_are_not_warped_are_found_wherever_a_map_has_positions(
    run: Path, coded_real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unchanged(count: int, size: int) -> Warps:
        return replace(warps(*[UNCHANGED] * count), size=size)

    monkeypatch.setattr(Warps, "drawn", unchanged)
    trained = run_subject(run)
    images = trained.domain("real", coded_real)
    found = match_photos(trained, images, first_centres(type(trained.backbone)))
    assert found.points.tolist() == [256] * 9
    assert (found.unmoved == 256).all()
    assert (found.found["conv1"][:, 1] > 0.5 * 256).all()  # a circle of 16 pixels is less than a fifth of the picture
    # Positions of conv5 at 67 pixels: 15, 31 and 47, to both sides; counted by hand.
    axis = (2 * np.arange(16) + 1) / 16 * 67 / 2 - 0.5
    near = np.abs(axis[:, None] - [15, 31, 47]).min(axis=1)
    within = [int((np.hypot(near[:, None], near) <= pixels).sum()) for pixels in (8, 16)]
    assert found.attainable["conv5"].tolist() == [within] * 9


def test_fractions_are_of_all_points_and_unmoved_is_what_did_not_move(
    run: Path, coded_real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Matches(
        points=torch.tensor([200.0, 100, 100]).double(),
        found={"conv1": torch.tensor([[0.0, 0]] * 3), "conv5": torch.tensor([[100.0, 150], [20, 30], [0, 100]])},
        attainable={"conv5": torch.tensor([[200.0, 200], [0, 100], [0, 100]])},
        unmoved=torch.tensor([[4.0, 10], [0, 10], [0, 0]]),
    )
    monkeypatch.setattr("fastssl.evaluate.matching.match_photos", lambda *_: counted)
    monkeypatch.setattr("fastssl.evaluate.matching.photographs", lambda _: torch.arange(3))
    section = evaluate(Matching(real=coded_real), run).section()
    assert section["within_8"]["trained"] == pytest.approx(120 / 400)
    assert section["within_16"]["untrained"] == pytest.approx(280 / 400)
    assert section["within_16"]["unmoved"] == pytest.approx(20 / 400)
    assert list(section["layers"]) == ["conv1", "conv5"]
    assert section["layers"]["conv5"]["within_16"] == section["within_16"]
    low, high = section["within_8_interval"]["trained"]
    assert 0 <= low < 0.3 < high <= 0.5
    assert section["conditions"]["attainable_at_the_compared_layer"] == {"within_8": 0.5, "within_16": 1.0}
    assert section["conditions"]["points"] == 400


def test_a_diverged_network_is_told(run: Path, coded_real: Path) -> None:
    diverged(run)
    with pytest.raises(DataError, match="features of the network are not finite"):
        evaluate(Matching(real=coded_real), run)
