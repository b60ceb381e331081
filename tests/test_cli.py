"""The command line as a user meets it: exit codes, messages on stderr, data on stdout, nothing touched on errors."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastssl.cli import main
from fastssl.shards import read_samples

SMALL = ["--preset", "tiny", "--set", "data.size=67", "--set", "data.batch_synthetic=4", "--set", "data.batch_real=4"]
SMALL += ["--set", "model.width=0.1", "--set", "model.fc_channels=16", "--set", "model.head_channels=4"]


@pytest.fixture
def fastssl(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; returns exit code, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fastssl", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


def test_version_and_help(fastssl: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = fastssl("--version")
    assert code == 0
    assert out.startswith("fastssl 0.")
    code, out, _ = fastssl("--help")
    assert code == 0
    assert all(command in out for command in ("render", "shard", "train", "eval", "report"))


@pytest.mark.parametrize(
    ("setting", "hint"),
    [
        ("optim.lrr=1", "'lr'?"),
        ("modle.width=1", "'model'?"),
        ("data.size=100", "99 or 115"),
        ("lr", "section.key=value"),
    ],
)
def test_wrong_setting(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path, setting: str, hint: str) -> None:
    code, out, err = fastssl("train", "--out", tmp_path / "run", "--set", setting)
    assert code == 2
    assert hint in err
    assert not out
    assert not (tmp_path / "run").exists()


def test_unknown_preset_and_option(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = fastssl("train", "--out", tmp_path / "run", "--preset", "papper")
    assert code == 2
    assert "'paper'?" in err
    assert fastssl("train", "--out", tmp_path, "--amplitude")[0] == 2
    for more in (["--amp"], ["--preset", "paper"]):
        assert fastssl("train", "--out", tmp_path, "--resume", *more)[0] == 2


def folder_contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def no_manifest(data: Path) -> None:
    (data / "manifest.json").unlink()


def no_index(data: Path) -> None:
    (data / "000001.idx").unlink()


def no_shard(data: Path) -> None:
    (data / "000001.tar").unlink()


def truncated(data: Path) -> None:
    tar = data / "000001.tar"
    tar.write_bytes(tar.read_bytes()[:-2000])


def empty(data: Path) -> None:
    for path in data.iterdir():
        path.unlink()


def cut_jpeg(data: Path) -> None:
    tar = data / "000000.tar"
    content = bytearray(tar.read_bytes())
    end = content.index(b"\xff\xd9")
    content[end - 200 : end + 2] = bytes(202)
    tar.write_bytes(content)


def no_plane(data: Path) -> None:
    """One sample's targets are not in the index, as in a shard that somebody else packed."""
    index = data / "000001.idx"
    lines = index.read_text().splitlines(keepends=True)
    words = lines[2].split()
    lines[2] = " ".join(words[: words.index("labels.lz4")]) + "\n"
    index.write_text("".join(lines))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (no_manifest, "manifest"),
        (no_index, "000001.idx"),
        (no_shard, "000001.tar"),
        (truncated, "000001.tar"),
        (empty, "empty"),
        (shutil.rmtree, "no such folder"),
        (cut_jpeg, "coded_00"),
        (no_plane, "has no labels.lz4"),
    ],
)
def test_bad_data_ends_training_with_code_3(
    fastssl: Callable[..., tuple[int, str, str]],
    coded_synthetic: Path,
    coded_real: Path,
    tmp_path: Path,
    damage: Callable[[Path], None],
    words: str,
) -> None:
    data = tmp_path / "data"
    shutil.copytree(coded_synthetic, data)
    damage(data)
    before = folder_contents(data)
    steps = ["--set", "train.steps=6", "--set", "data.max_bad=0"]
    code, out, err = fastssl(
        "train", "--synthetic", data, "--real", coded_real, "--out", tmp_path / "run", *SMALL, *steps
    )
    assert code == 3
    assert words in err
    assert not out
    assert folder_contents(data) == before


def photos(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a/one.jpg", "a/two.jpg", "b/three.jpg"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    return folder


def test_shard_packs_a_folder_and_refuses_bad_images(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    code, _, err = fastssl("shard", source, tmp_path / "packed", "--size", 32, "--layout", "classes")
    assert code == 0
    assert re.search(r"samples +3\n", err)
    assert fastssl("shard", source, tmp_path / "packed", "--size", 32, "--layout", "classes")[0] == 2
    assert fastssl("shard", source, tmp_path / "packed", "--size", 32, "--layout", "classes", "--resume")[0] == 0
    path = source / "a" / "two.jpg"
    path.write_bytes(path.read_bytes()[:300])
    code, _, err = fastssl("shard", source, tmp_path / "again", "--size", 32, "--layout", "classes", "--max-bad", 0)
    assert code == 3
    assert "two.jpg" in err
    assert not list((tmp_path / "again").glob("*.tar"))
    code, out, err = fastssl("shard", source, tmp_path / "third", "--size", 32, "--layout", "classes", "--json")
    assert code == 0
    (facts,) = json.loads(out).values()
    assert (facts["samples"], facts["shards"], facts["unusable"]) == (2, 1, 1)
    assert "1 images could not be used" in err
    assert fastssl("shard", source, tmp_path / "fourth", "--layout", "foldr")[0] == 2
    assert fastssl("shard", tmp_path / "nothing", tmp_path / "fifth")[0] == 3
    code, _, err = fastssl("shard", source, tmp_path / "sixth")
    assert code == 2
    assert "--layout classes" in err
    assert not (tmp_path / "sixth").exists()


def test_the_layout_that_is_found_out_is_told_with_its_evidence(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for split in ("train", "val"):
        photos(tmp_path / "photos" / split)
    for options in ([], ["--dry-run"]):
        code, _, err = fastssl("shard", tmp_path / "photos", tmp_path / f"o{len(options)}", "--size", 32, *options)
        assert code == 0
        assert "photos has the layout classes: train and val hold the same folders, such as a\n" in err


def command(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "fastssl", *map(str, arguments)]
    return subprocess.run(words, **{"stderr": subprocess.PIPE, "text": True, "check": False, **options})


def test_a_reader_that_has_gone_ends_a_command_quietly(coded_synthetic: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = command("verify", coded_synthetic, "--json", stdout=writing)
    os.close(writing)
    assert done.returncode == 141
    assert "error" not in done.stderr
    assert "Exception" not in done.stderr


def test_a_stdout_that_is_full_or_closed_is_told(coded_synthetic: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = command("verify", coded_synthetic, "--json", stdout=full)
    assert done.returncode == 4
    assert "the disk is full\n  where: stdout" in done.stderr
    assert "Exception" not in done.stderr
    # Without a stdout the next file that is opened would have its number, and get what is printed.
    done = command("verify", coded_synthetic, "--json", preexec_fn=lambda: os.close(1))
    assert done.returncode == 0
    assert "stdout is closed" in done.stderr


def test_a_plane_without_a_known_pixel_is_warned_of(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    frame = tmp_path / "scenenet" / "val" / "0" / "7"
    for plane in ("photo", "depth", "instance"):
        (frame / plane).mkdir(parents=True)
    Image.new("RGB", (320, 240), (90, 50, 10)).save(frame / "photo" / "0.jpg")
    Image.fromarray(np.zeros((240, 320), np.uint16)).save(frame / "depth" / "0.png")
    Image.fromarray((np.indices((240, 320))[1] // 40).astype(np.uint16)).save(frame / "instance" / "0.png")
    code, _, err = fastssl("shard", tmp_path / "scenenet", tmp_path / "out", "--size", 32)
    assert code == 0
    assert "no depth is known in any sample" in err
    assert "no normal is known in any sample" in err
    assert "no contour" not in err


def test_a_dry_run_writes_nothing(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    code, out, err = fastssl(
        "shard", source, tmp_path / "packed", "--dry-run", "--json", "--size", 32, "--layout", "classes"
    )
    assert code == 0
    (facts,) = json.loads(out).values()
    assert (facts["layout"], facts["samples"], facts["shards"]) == ("classes", 3, 1)
    assert "estimated bytes" in err
    assert not (tmp_path / "packed").exists()


def test_a_split_makes_a_dataset_of_each_part(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    source = photos(tmp_path / "photos")
    code, out, _ = fastssl(
        "shard", source, tmp_path / "p", "--split", "a=0.4,b=0.6", "--json", "--size", 32, "--layout", "classes"
    )
    assert code == 0
    assert list(json.loads(out)) == [f"{tmp_path}/p/a", f"{tmp_path}/p/b"]
    assert sum(len(list(read_samples(tmp_path / "p" / name))) for name in "ab") == 3
    assert fastssl("shard", source, tmp_path / "q", "--split", "a=0.4,b=0.5")[0] == 2


def test_verify_finds_a_flipped_byte_and_says_where(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    shutil.copytree(coded_synthetic, data)
    code, out, err = fastssl("verify", data)
    assert (code, out) == (0, "")
    assert re.search(r"faults +0\n", err)
    tar = bytearray((data / "000001.tar").read_bytes())
    tar[tar.index(b"coded_006.labels.lz4") + 600] ^= 4
    (data / "000001.tar").write_bytes(bytes(tar))
    code, out, _ = fastssl("verify", data, "--json")
    assert code == 3
    assert any(fault["key"] == "coded_006" for fault in json.loads(out)["listed"])
    code, out, _ = fastssl("verify", data)
    assert code == 3
    assert "000001.tar" in out
    assert fastssl("verify", tmp_path / "nothing")[0] == 3


def test_show_draws_sheets_and_one_sample(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, tmp_path: Path
) -> None:
    sheet = tmp_path / "sheet.png"
    assert fastssl("show", coded_synthetic, "--out", sheet, "--count", 3)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"sheet.png", "sheet_histograms.png"}
    code, out, _ = fastssl("show", coded_synthetic, "--out", sheet, "--key", "coded_004")
    assert code == 0
    assert out.startswith("coded_004\n")
    code, _, err = fastssl("show", coded_synthetic, "--out", sheet, "--key", "coded_04")
    assert code == 3
    assert "coded_004" in err


def test_bench_load_prints_figures_and_verdict(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, coded_real: Path
) -> None:
    given = ["--synthetic", coded_synthetic, "--real", coded_real, "--seconds", 1, *SMALL]
    code, out, err = fastssl("bench", "load", *given)
    assert code == 0
    assert "Loading is limited by" in out
    assert all(line.startswith("measuring: ") for line in err.splitlines())  # on a slow machine, some progress
    code, out, err = fastssl("bench", "load", *given, "--json")
    assert code == 0
    assert json.loads(out)["verdict"]["limited_by"]
    code, out, err = fastssl("bench", "load")
    assert code == 2
    assert "--synthetic FOLDER" in err
    assert not out


def test_bench_pack_prints_figures_and_verdict(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (80, 60), (number, 50, 90)).save(tmp_path / f"{number}.png")
    code, out, err = fastssl("bench", "pack", tmp_path, "--size", 64)
    assert code == 0
    assert "Packing is limited by" in out
    layout, *progress = err.splitlines()
    assert "has the layout folder" in layout
    assert all(line.startswith("packing: ") for line in progress)
    code, out, _ = fastssl("bench", "pack", tmp_path, "--size", 64, "--json")
    assert code == 0
    assert json.loads(out)["samples"] == 3


def test_from_training_to_report(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """Every command in turn on packed patterns; the numbers themselves are tested where they are computed."""
    run = tmp_path / "run"
    data = ["--synthetic", coded_synthetic, "--real", coded_real]
    assert fastssl("train", *data, "--out", run, *SMALL, "--set", "train.steps=3")[0] == 0
    other = tmp_path / "other"
    not_adapted = ["--set", "model.adapted_layer=none"]
    assert fastssl("train", *data, "--out", other, *SMALL, "--set", "train.steps=3", *not_adapted)[0] == 0

    code, out, _ = fastssl("eval", "tasks", run, "--synthetic", coded_synthetic, "--json")
    assert code == 0
    assert set(json.loads(out)) == {"depth", "normal", "edge", "conditions"}
    for name in (run, other):
        code, out, _ = fastssl("eval", "domain", name, *data, "--json")
        assert code == 0
        assert 0 <= json.loads(out)["accuracy"]["trained"] <= 1
    code, out, _ = fastssl("eval", "neighbours", run, "--real", coded_real, "--beside", f"plain={other}")
    assert code == 0
    head, *lines = out.splitlines()
    assert head.split() == ["trained", "trained", "reestimated", "plain", "untrained"]
    # A line of intervals stands below each.
    assert [line.split("  ")[0] for line in lines[::2]] == [
        "Precision at 1 (higher is better)",
        "Precision at 5 (higher is better)",
    ]
    assert fastssl("report", run)[0] == 0

    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["tasks"]["depth"]["rmse"]) == {"trained", "trained_reestimated", "untrained", "constant"}
    assert set(summary) >= {"tasks", "domain", "neighbours", "throughput", "limited_by"}
    assert {path.name for path in (run / "samples").iterdir()} >= {"tasks.png", "neighbours.png"}
    assert (run / "report.html").stat().st_size > 10_000
    for arguments in (["eval", "tasks", tmp_path, "--synthetic", coded_synthetic], ["report", tmp_path]):
        code, _, err = fastssl(*arguments)
        assert code == 3
        assert "no run" in err
    assert fastssl("eval", "tasks", run, "--synthetic", coded_real)[0] == 3


@pytest.mark.parametrize(
    "words",
    [
        ["--amp", "--set", "train.amp=false"],
        ["--paranoid", "--set", "data.paranoid=true"],
        ["--real", "photos", "--set", "data.real=others"],
        ["--validation-synthetic", "rooms", "--set", " data.validation_synthetic=others"],
        ["--real", "photos", "--resume", "--set", "data.real=others"],
    ],
)
def test_a_setting_is_given_by_an_option_or_by_set(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path, words: list[str]
) -> None:
    code, _, err = fastssl("train", "--out", tmp_path / "run", *words)
    assert code == 2
    assert "a setting is given twice" in err
    assert f"--set {words[-1]}, and {words[0]}" in err


def test_interrupt_ends_with_130(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, coded_real: Path, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of a training; `train/test_stop.py` sends signals to processes of their own."""
    metrics = tmp_path / "run" / "metrics.jsonl"

    def press() -> None:
        deadline = time.monotonic() + 120
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        if metrics.exists():  # or nobody would take the signal for the training's
            os.kill(os.getpid(), signal.SIGINT)

    # Shells begin what runs in the background with this signal ignored, which a training heeds.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=press, daemon=True).start()
    data = ["--synthetic", coded_synthetic, "--real", coded_real, "--out", tmp_path / "run"]
    try:
        code, _, err = fastssl("train", *data, *SMALL, "--set", "train.steps=100000", "--set", "train.log_every=1")
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert "stopped by SIGINT after step" in err
    assert "Traceback" not in err


def test_an_empty_part_of_a_split_is_told_and_costs_no_other_part(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    source = photos(tmp_path / "photos")
    options = ["--layout", "classes", "--size", 32, "--json"]
    code, out, err = fastssl("shard", source, tmp_path / "p", "--split", "a=0.999999,b=0.000001", *options)
    assert code == 3
    assert "none of the dataset's samples falls into this part of the split" in err
    assert [facts["samples"] for facts in json.loads(out).values()] == [3]


def test_a_home_that_the_shell_leaves_is_found(
    fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    photos(tmp_path / "photos")
    assert fastssl("shard", "~/photos", "~/packed", "--layout=folder", "--size=32")[0] == 0
    assert (tmp_path / "packed" / "manifest.json").exists()
    assert fastssl("verify", "~/packed")[0] == 0


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["shard", "--help"]])
def test_help_has_the_exit_codes_too(words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = command(*words, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")
    with Path("/dev/full").open("w") as full:
        done = command(*words, stdout=full)
    assert done.returncode == 4
    assert "the disk is full" in done.stderr


@pytest.mark.parametrize("words", [["nothing"], ["shard"], ["train", "--resume"]])
def test_wrong_usage_has_its_exit_code_also_where_nobody_can_be_told(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = command(*words, stderr=full)
    assert done.returncode == 2


def test_a_package_that_cannot_be_read_is_told_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise OSError(5, 'Input/output error', 'typer.py')")
    done = command("--version", env=os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"})
    assert done.returncode == 4
    assert done.stderr.startswith("error: fastssl cannot be loaded: [Errno 5] Input/output error")
    assert "Traceback" not in done.stderr


def test_an_error_without_memory_is_the_machines(tmp_path: Path) -> None:
    """The interpreter itself fails in any way then; the error that is met is put in for one of its own."""
    script = (
        "import resource, fastssl.cli as cli\n"
        "def fail(*_, **__):\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.RLIM_INFINITY))\n"
        "    raise TypeError('cb() takes 2 arguments but 4 were given')\n"
        "import fastssl.sources; fastssl.sources.open_source = fail\n"
        f"import sys; sys.argv = ['fastssl', 'shard', {str(tmp_path)!r}, 'out']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stderr
    assert "out of memory\n  seen: TypeError: cb() takes 2" in done.stderr


def test_a_split_without_parts_is_no_whole(fastssl: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = fastssl("shard", photos(tmp_path / "photos"), tmp_path / "out", "--layout", "folder", "--split", "")
    assert code == 2
    assert "a split cannot be read" in err
    assert not (tmp_path / "out").exists()


def test_a_file_name_cannot_forge_a_line_of_what_verify_prints(
    fastssl: Callable[..., tuple[int, str, str]], coded_synthetic: Path, tmp_path: Path
) -> None:
    shutil.copytree(coded_synthetic, tmp_path / "rooms")
    (tmp_path / "rooms" / "x\x1b[31m\nerror: fake.tar").touch()
    code, out, _ = fastssl("verify", tmp_path / "rooms")
    assert code == 3
    assert out == "x\\x1b[31m\\nerror: fake.tar: the manifest promises no such file\n"


@pytest.mark.parametrize(
    "words",
    [
        ["export", "RUN", "s3://bucket/file"],
        ["render", "s3://bucket/rooms", "--count", "1"],
        ["train", "--out", "s3://bucket/run"],
        ["show", "rooms", "--out", "https://host/sheet.png"],
    ],
)
def test_what_is_written_here_alone_takes_no_address_of_a_store(
    fastssl: Callable[..., tuple[int, str, str]], words: list[str]
) -> None:
    code, _, err = fastssl(*words)
    assert code == 2
    assert "address of a store" in " ".join(err.replace("│", " ").split())
