"""Presets, files and overrides; what the presets promise; what a wrong setting says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastssl.config import PRESETS, dataset_weights, load_config, read_config, write_config
from fastssl.errors import ConfigError


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: tiny\noptim:\n  lr: 0.5\n  pool_size: 7\ndata:\n  size: 131\n")
    config = load_config("paper", file=file, overrides=["optim.lr=0.25", "model.tasks=[edge]"])
    assert config.preset == "tiny"
    assert (config.optim.lr, config.optim.pool_size, config.data.size) == (0.25, 7, 131)
    assert config.model.tasks == ("edge",)
    assert config.model.width == load_config("tiny").model.width


@pytest.mark.parametrize("preset", PRESETS)
def test_written_and_read_back(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, overrides=["train.seed=3"])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_released_differs_from_paper_in_the_oddities_of_the_authors_code() -> None:
    paper, released = load_config("paper"), load_config("released")
    assert released.loss.edge_form == released.loss.depth_form == "released"
    assert (released.loss.mask_invalid, released.loss.edge_count) == (False, "stored")
    assert (released.optim.schedule, released.data.gray, released.data.flip) == ("constant", "per_batch", 0.0)
    assert released.model.adapted_feature == "post_relu"
    # Same in both: protocol 1.2, 1.6 and 1.7.
    for config in (paper, released):
        assert (config.data.size, config.data.batch_synthetic, config.train.epochs) == (227, 224, 30)
        weights = config.loss
        assert (weights.depth_weight, weights.normal_weight, weights.edge_weight) == (5.0, 10.0, 1.0)
        assert (weights.adversarial_weight, config.optim.pool_size) == (0.05, 128)
        assert config.optim.betas == (0.5, 0.999)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optim.lrr=1", "'lr'?"),
        ("optin.lr=1", "'optim'?"),
        ("train.amp_dtype=float32", "train.amp_dtype"),
        ("data.size=228", "227 and 243"),
        ("data.window=[0.9, 0.8]", "window"),
        ("data.size=51", "at least 67"),
        ("model.tasks=[]", "one or more different tasks"),
        ("model.adapted_layer=fc7", "conv1"),
        ("train.steps=-1", "train.steps"),
        ("optim.lr=[", "not valid YAML"),
        ("optim=3", "section.key=value"),
    ],
)
def test_wrong_settings_say_what_would_be_right(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config("paper", overrides=[override])
    assert words in str(raised.value)
    assert raised.value.exit_code == 2


@pytest.mark.parametrize("content", ["- a\n- b\n", "optim: [\n", "optim: 3\n", "\x00"])
def test_files_that_hold_no_settings(content: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(file=file)
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(file=tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (["/a"], {"/a": 1.0}),
        (["/a=0.7", "/b=0.3"], {"/a": 0.7, "/b": 0.3}),
        (["/x=y/a", "s3://bucket/a=2"], {"/x=y/a": 1.0, "s3://bucket/a": 2.0}),
    ],
)
def test_datasets_come_with_weights(given: list[str], weights: dict[str, float]) -> None:
    assert dataset_weights(given) == weights
    config = load_config(overrides=[f"data.synthetic={json.dumps(weights)}"])
    assert config.data.synthetic == weights


def test_a_relative_dataset_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_weights(["rooms=2"]) == {f"{tmp_path}/rooms": 2.0}


@pytest.mark.parametrize(
    ("given", "message"), [(["/a=0"], "above 0"), (["/a=-1"], "above 0"), (["/a", "/a=2"], "twice")]
)
def test_datasets_that_make_no_sense_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_weights(given)


def test_one_dataset_may_be_a_path_alone() -> None:
    assert load_config(overrides=["data.real=/photos"]).data.real == {"/photos": 1.0}
    assert load_config().data.real == {}


@pytest.mark.parametrize("setting", ["aspect=[2, 1]", "blur_sigma=[3, 1]", "aspect=[0, 1]", "brightness=1.5"])
def test_augmentation_out_of_range_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="augment"):
        load_config(overrides=[f"augment.{setting}"])
