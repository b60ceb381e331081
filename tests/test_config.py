"""Presets, files and overrides; what the presets promise; what a wrong setting says."""

from __future__ import annotations

import codecs
import errno
import json
import math
import os
import pwd
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from fastssl import core_yaml
from fastssl.config import dataset_path, dataset_weights, plain, write_config
from fastssl.errors import ConfigError, DataError, MachineError
from fastssl.methods import load_config, read_config
from fastssl.methods.cross_domain import PRESETS


def test_later_layers_win(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("preset: tiny\noptim:\n  lr: 0.5\n  pool_size: 7\ndata:\n  size: 131\n")
    config = load_config(file=file, overrides=["optim.lr=0.25", "model.tasks=[edge]"])
    assert config.preset == "tiny"
    assert (config.optim.lr, config.optim.pool_size, config.data.size) == (0.25, 7, 131)
    assert config.model.tasks == ("edge",)
    assert config.model.width == load_config("tiny").model.width
    assert load_config("tiny", file=file) == load_config(file=file)
    with pytest.raises(ConfigError, match=r"names another preset(.|\n)*'tiny'(.|\n)*'paper'"):
        load_config("paper", file=file)


@pytest.mark.parametrize("preset", PRESETS)
def test_written_and_read_back(preset: str, tmp_path: Path) -> None:
    config = load_config(preset, overrides=["train.seed=3"])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config


def test_released_differs_from_paper_in_the_oddities_of_the_authors_code() -> None:
    paper, released = load_config("paper"), load_config("released")
    assert released.loss.edge_form == released.loss.depth_form == "released"
    assert (released.loss.edge_count, released.loss.edge_division) == ("released", "whole")
    assert not released.loss.mask_invalid
    assert (released.optim.schedule, released.optim.order) == ("constant", "discriminator_first")
    assert (released.data.gray, released.data.flip, released.data.last_corner) == ("per_batch", 0.0, False)
    assert (released.model.adapted_feature, released.model.shortest_normal) == ("post_relu", 1e-12)
    assert released.model.running_statistics == "all"
    # Same in both: docs/reproduction.md, sections 3.2, 3.6 and 3.7.
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
        ("data.size=228", "227 or 243"),
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
    ("texts", "weights"),
    [
        (["/a"], {"/a": 1.0}),
        (["/a=0.7", "/b=0.3"], {"/a": 0.7, "/b": 0.3}),
        (["/x=y/a", "s3://bucket/a=2"], {"/x=y/a": 1.0, "s3://bucket/a": 2.0}),
    ],
)
def test_datasets_come_with_weights(texts: list[str], weights: dict[str, float]) -> None:
    assert dataset_weights(texts) == weights
    config = load_config(overrides=[f"data.synthetic={json.dumps(weights)}"])
    assert config.data.synthetic == weights


def test_a_relative_dataset_becomes_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert dataset_weights(["rooms=2"]) == {f"{tmp_path}/rooms": 2.0}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["/a=0"], "above 0"),
        (["/a=-1"], "above 0"),
        (["/a=inf"], "finite number above 0"),
        (["/a=nan"], "finite number above 0"),
        (["/a", "/a=2"], "twice"),
        ([""], "no path"),
        (["=2"], "no path"),
    ],
)
def test_datasets_that_make_no_sense_are_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataset_weights(texts)


def test_one_dataset_may_be_a_path_alone() -> None:
    assert load_config(overrides=["data.real=/photos"]).data.real == {"/photos": 1.0}
    assert load_config().data.real == {}


@pytest.mark.parametrize("setting", ["aspect=[2, 1]", "blur_sigma=[3, 1]", "aspect=[0, 1]", "brightness=1.5"])
def test_augmentation_out_of_range_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match="augment"):
        load_config(overrides=[f"augment.{setting}"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        # YAML 1.2.2, section 10.3.2, and what YAML 1.1 would have made of it.
        ("010", 10),
        ("0123", 123),
        ("089", 89),
        ("-07", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("0b11", "0b11"),
        ("10:00", "10:00"),
        ("1:30.5", "1:30.5"),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.INF", -math.inf),
        ("yes", "yes"),
        ("off", "off"),
        ("N", "N"),
        ("True", True),
        ("tRUE", "tRUE"),
        ("~", None),
        ("", None),
        ("Null", None),
        ("2001-12-14", "2001-12-14"),
        ("=", "="),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("{010: 1, ~: 2}", {"010": 1, "~": 2}),
        (r'"\ud83c\udfe0"', "\U0001f3e0"),
        (r'"\udce9"', "\udce9"),
        ('"10"', "10"),
        ("'yes'", "yes"),
    ],
)
def test_a_plain_word_means_what_it_looks_like(text: str, value: object) -> None:
    read = core_yaml.parse(text)
    assert (type(read), read) == (type(value), value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        # YAML's keys are at most 1,024 characters of text, and JSON writes one as twelve.
        lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=80), inner),
    )
)
@example("\U0001f3e0 \U0001f3e0")
def test_json_is_read_as_json(value: object) -> None:
    """YAML 1.2 is made so that JSON is a part of it; the oracle is the json module."""
    text = json.dumps(value)
    assert core_yaml.parse(text) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("train:\n  steps: 10\n  steps: 20\n", 3, "'steps' is given twice"),
        ("data:\n  real: {a: 1,\n    b: 2, a: 3}\n", 3, "'a' is given twice"),
        ("data:\n  window:\n    - {x: 1, x: 2}\n", 3, "'x' is given twice"),
        ("optim: {}\n---\noptim: {}\n", 2, "single document"),
        ("train:\n\tsteps: 1\n", 2, "\\t"),
        ("train:\n  steps: !!str 1\n", 2, "tag"),
        ("train:\n  steps: ! 1\n", 2, "tag"),
        ("train:\n  ? [a]\n  : 1\n", 2, "a key must be a name"),
        ("train:\n  steps: 1\x00\n", 2, "U+0000"),
        ("data:\n  real: a\x85b\n", 2, "U+0085"),
        ("a: &a [*a]\n", 1, "recursive"),
    ],
)
def test_what_means_two_things_is_refused_with_its_line(text: str, line: int, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(ConfigError) as raised:
        load_config(file=tmp_path / "c.yaml")
    assert f"c.yaml, line {line}\n" in str(raised.value)
    assert words in str(raised.value)


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, r'"\UFFFFFFFF"'])
def test_text_that_no_reader_can_hold_is_no_yaml(text: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(overrides=[f"train.steps={text}"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.steps=10:00", "seen: '10:00'\n  expected: a whole number"),
        ("train.steps='10'", "seen: '10'\n  expected: a whole number"),
        ("train.steps=true", "seen: True\n  expected: a whole number"),
        ("train.steps=10.0", "seen: 10.0\n  expected: a whole number"),
        ("train.steps=1_000", "seen: '1_000'"),
        ("data.flip=yes", "seen: 'yes'\n  expected: a number"),
        ("data.flip='0.5'", "seen: '0.5'\n  expected: a number"),
        ("train.amp=yes", "seen: 'yes'\n  expected: true or false"),
        ("train.amp=1", "seen: 1\n  expected: true or false"),
        ("optim.lr=", "seen: nothing (null)\n  expected: a number"),
        ("optim.lr=.inf", "finite number"),
        ("optim.lr=.nan", "number"),
        ("model.tasks=depth", "seen: 'depth'\n  expected: a list, such as"),
        ("data.window=[0.9]", "where: data.window\n  seen: (0.9,)\n  expected: 2 values"),
        ("data.window=[]", "where: data.window\n  seen: ()\n  expected: 2 values"),
        ("data.window=[0.7, 0.8, 0.9]", "where: data.window\n  seen: (0.7, 0.8, 0.9)\n  expected: 2 values"),
        ("train.hw_decoder_load='0.5'", "is '0.5'"),
        ("train.hw_decoder_load=true", "is True"),
        ("data.real=", "data.real is nothing (null)"),
        ("data.real=0", "data.real is 0; expected a path (in quotes"),
        ("data.real=[a, b]", "paths with their weights"),
        ("data.real={a: 0}", "weight of a in data.real is 0"),
        ("data.real={a: .inf}", "above 0"),
        ("data.real={a: true}", "above 0"),
        ("data.real={a: 1, ./a: 1}", "twice"),
        ("data.real={a: 1, a: 2}", "'a' is given twice"),
        (r'data.real="a\0"', "expected a path"),
        ("train.keep_checkpoints=0", "train.keep_checkpoints"),
    ],
)
def test_a_value_is_never_made_into_one_of_another_type(override: str, words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_config(overrides=[override])
    assert words in str(raised.value)


def test_words_that_yaml_1_1_would_change_are_text() -> None:
    assert load_config(overrides=["data.gray=off"]).data.gray == "off"


@pytest.mark.parametrize(
    "content",
    [
        codecs.BOM_UTF8 + b"train: {steps: 7}\n",
        "train: {steps: 7}\n".encode("utf-16"),
        codecs.BOM_UTF16_BE + "train: {steps: 7}\n".encode("utf-16-be"),
        b"train:\r\n  steps: 7\r\n",
        b"%YAML 1.2\n---\ntrain: {steps: 7}\n...\n",
    ],
)
def test_files_as_editors_write_them_are_read(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    assert load_config(file=tmp_path / "c.yaml").train.steps == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"# only words\n", "holds no settings"),
        (b"data: {real: caf\xe9}\n", "line 1\n  seen: the byte 0xe9 is not UTF-8"),
        ("train: {steps: 7}\n".encode("utf-16-le"), "U+0000"),
    ],
)
def test_files_that_cannot_be_read_say_why(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    for read, error in ((lambda path: load_config(file=path), ConfigError), (read_config, DataError)):
        with pytest.raises(error) as raised:
            read(tmp_path / "c.yaml")
        assert words in str(raised.value)


def test_settings_of_a_run_that_are_torn_are_not_filled_up_with_defaults(tmp_path: Path) -> None:
    """Cut at any end of a line it is still YAML, and the defaults are another preset's."""
    path = tmp_path / "config.yaml"
    write_config(load_config("tiny"), path)
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(DataError, match=r"run's settings(.|\n)*hint: "):
            read_config(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("train: {steps: many}", ["settings.yaml: train.steps\n  seen: 'many'"]),
        ("trian: {steps: 3}", ["settings.yaml: trian\n  seen: trian\n  expected: 'train'?"]),
        ("data: {window: [0.9, 0.8]}", ["first fraction must be above 0", "settings.yaml"]),
    ],
)
def test_a_file_s_own_faults_are_told_with_its_name(content: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError) as raised:
        load_config(file=path)
    for line in words:
        assert line in str(raised.value)


def test_what_an_override_mends_or_breaks_is_no_fault_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("data: {window: [0.9, 0.8]}")
    assert load_config(file=path, overrides=["data.window=[0.8, 0.9]"]).data.window == (0.8, 0.9)
    path.write_text("train: {steps: 3}")
    with pytest.raises(ConfigError) as raised:
        load_config(file=path, overrides=["train.steps=many"])
    assert raised.value.where == "train.steps"
    path.write_text("optim: {lr: -1}")
    with pytest.raises(ConfigError) as raised:
        load_config(file=path, overrides=["optim.lr=0.1", "data.size=abc"])
    assert raised.value.where == "data.size"


def test_of_two_overrides_the_later_wins_and_options_win_over_both() -> None:
    overrides = ["train.steps=1", "train.amp=false", "train.steps=2"]
    config = load_config(overrides=overrides, settings={"train": {"amp": True}, "data": {}})
    assert (config.train.steps, config.train.amp) == (2, True)


NAMES = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
    min_size=1,
)
TRAPS = [
    "yes",
    "010",
    "0o17",
    "089",
    "1e5",
    "1:30",
    "~",
    "null",
    "<<",
    "=",
    " a ",
    "a\nb",
    "\t",
    "a\x85b",
    "\ufeffa",
    "\u2028",
]
TRAPS += [
    "\U0001f3e0",
    os.fsdecode(b"caf\xe9"),
    "#a",
    "a: b",
    "- a",
    "a #b",
    "%",
    "!a",
    "&a",
    "*a",
    "'",
    '"',
    "\\",
    "\x7f",
]


@given(names=st.lists(NAMES, max_size=3, unique=True), weight=st.floats(1e-6, 1e6))
@example(names=TRAPS, weight=1e-05)
@example(names=["\U0001f3e0" * 120], weight=1.0)
@example(names=["://"], weight=1.0)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
def test_any_name_survives_the_run_s_own_file(names: list[str], weight: float, tmp_path: Path) -> None:
    weights = {f"/data/{name}": weight for name in names}
    # The last part of a path, as pathlib and not as fastssl sees it; what begins with a slash is no address.
    paths = [str(Path(name)) for name in weights]
    assume(len(set(paths)) == len(paths))
    config = load_config("tiny", method="rotation", settings={"data": {"real": weights}})  # its check costs least
    assert list(config.data.real) == paths
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path / "config.yaml") == config
    assert (tmp_path / "config.yaml").read_bytes().isascii()


@given(st.text(st.characters(exclude_categories=["Cs"])))
@example("0o17")
@example("089")
@example("1e5")
@example("yes")
@example("\U0001f3e0" * 120)
def test_written_text_is_text_for_readers_of_either_version(text: str) -> None:
    values = {"a": text, "b": [text, 1.5e-7, 10, True, None], "c": {text: 1}}
    written = core_yaml.written(values)
    for read in (core_yaml.parse, yaml.safe_load):
        assert read(written) == values


def test_names_of_bytes_survive_in_the_plain_settings() -> None:
    name = os.fsdecode(b"/caf\xe9")
    assert plain(load_config(settings={"data": {"real": {name: 1}}}))["data"]["real"] == {name: 1.0}


@pytest.mark.parametrize(
    "name", ["size=256", "a,b", "size=inf", "~x", "a=1=2", "[a]", "2024", "a #1", "yes", "\U0001f3e0"]
)
def test_what_exists_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in (name, "size", "a"):
        (tmp_path / folder).mkdir(exist_ok=True)
    path = f"{tmp_path}/{name}"
    assert dataset_weights([name]) == {path: 1.0}
    assert dataset_weights([f"{name}=0.5"]) == {path: 0.5}
    assert load_config(overrides=[f"data.real={name}"]).data.real == {path: 1.0}


def test_the_home_folder_and_file_addresses_are_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a b").mkdir()
    (tmp_path / "a%20b").mkdir()
    (tmp_path / "c d").mkdir()
    user = pwd.getpwuid(os.getuid())
    assert dataset_path("~/rooms") == f"{tmp_path}/home/rooms"
    assert dataset_path(f"~{user.pw_name}/rooms") == f"{user.pw_dir}/rooms"
    assert dataset_path("~no_such_user/rooms") == f"{tmp_path}/~no_such_user/rooms"
    assert dataset_path(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    assert dataset_path(f"file://localhost{tmp_path}/c%20d") == f"{tmp_path}/c d"
    assert dataset_path("s3://bucket/~/a") == "s3://bucket/~/a"
    assert dataset_weights(["~/rooms=2"]) == {f"{tmp_path}/home/rooms": 2.0}
    (tmp_path / "c.yaml").write_text("data: {synthetic: ~/rooms, real: {photos: 1, b: 2}}\n")
    data = load_config(file=tmp_path / "c.yaml").data
    assert data.synthetic == {f"{tmp_path}/home/rooms": 1.0}
    assert data.real == {f"{tmp_path}/photos": 1.0, f"{tmp_path}/b": 2.0}


def test_a_machine_that_cannot_say_if_a_path_exists_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle must not turn `size=256` into another dataset, `size`."""

    def stale(self: Path) -> os.stat_result:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self))

    monkeypatch.setattr(Path, "stat", stale)
    with pytest.raises(MachineError, match="/data/size=256"):
        dataset_weights(["/data/size=256"])


def test_a_file_without_an_end_is_no_configuration() -> None:
    with pytest.raises(ConfigError, match="too large"):
        load_config(file=Path("/dev/zero"))
