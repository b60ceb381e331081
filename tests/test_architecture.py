"""What the folders promise: import directions, what the light commands load, and no grab-bag modules."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from fastssl.shards import pack
from fastssl.sources import open_source

PACKAGE = Path(__file__).parent.parent / "fastssl"

# From high to low. A module imports from groups below its own, and inside its group only what stands further right.
GROUPS = [
    ["cli"],
    ["ablate", "bench", "report", "show", "runs", "evaluate", "export", "train"],
    ["methods"],
    ["layers", "losses", "metrics", "loader", "render", "sources"],
    ["shards", "backbones"],
    [
        "geometry",
        "jpeg",
        "pictures",
        "charts",
        "streams",
        "ranges",
        "kernels",
        "few_channels",
        "optimizers",
        "ranks",
        "affinity",
        "trackers",
        "telemetry",
    ],
    [
        "batch",
        "compiled",
        "tile",
        "kept_code",
        "config",
        "core_yaml",
        "files",
        "native",
        "addresses",
        "faults",
        "extras",
        "lazy",
        "errors",
    ],
]
RANK = {name: (group, place) for group, names in enumerate(GROUPS) for place, name in enumerate(names)}
LIGHT = [
    "shards",
    "sources",
    "render",
    "geometry",
    "pictures",
    "charts",
    "files",
    "addresses",
    "batch",
    "config",
    "errors",
    "faults",
]
LIGHT += ["compiled", "native", "show", "runs", "cli"]
HEAVY = ("torch", "nvidia.dali", "mitsuba", "matplotlib", "jinja2")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if part(path) not in ("__init__", "__main__"))


def part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Dotted names that a file imports, at its top and inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = part(path)
    for name in imported(path):
        if not name.startswith("fastssl.") or name == "fastssl.__version__":
            continue
        other = name.split(".")[1]
        assert other == own or RANK[other] > RANK[own], f"{own} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_dali_and_streams_stay_where_they_belong(path: Path) -> None:
    if part(path) != "loader":
        assert not any(name.startswith("nvidia") for name in imported(path))
    uses_streams = any(
        word in path.read_text(encoding="utf-8") for word in ("cuda.Stream", "cuda.stream(", "cuda.Event")
    )
    assert not uses_streams or path.relative_to(PACKAGE).as_posix() in (
        "streams.py",
        "loader/ahead.py",
        "loader/upload.py",
    )


@pytest.mark.parametrize("name", LIGHT)
def test_parts_that_need_neither_torch_nor_dali(name: str) -> None:
    if not ((PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file()):
        pytest.fail(f"there is no fastssl.{name}")
    assert loaded_by(f"import fastssl.{name}").isdisjoint({"torch", "nvidia.dali"})


def test_help_is_light() -> None:
    call = "import sys; sys.argv = ['fastssl', '--help']; from fastssl.cli import main"
    assert loaded_by(call + "\ntry: main()\nexcept SystemExit: pass").isdisjoint(HEAVY)


def loaded_by(code: str) -> set[str]:
    report = f"\nimport sys; print('loaded:', *[n for n in {HEAVY} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_no_grab_bags() -> None:
    banned = {"utils", "util", "common", "helpers", "helper", "misc"}
    assert not [path for path in PACKAGE.rglob("*") if path.stem in banned]


_WITHOUT_TRAIN = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "nvidia", "tensorboard", "pynvml", "jinja2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_train(code: str) -> subprocess.CompletedProcess[str]:
    """Python where the packages of the extra `train` are not installed."""
    return subprocess.run([sys.executable, "-c", _WITHOUT_TRAIN + code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments",
    [
        ["shard", "photos", "again", "--size", "64"],
        ["verify", "packed"],
        ["show", "packed", "--out", "sheet.png"],
        ["bench", "pack", "photos", "--size", "64"],
        ["shard", "--help"],
        ["--help"],
    ],
    ids=" ".join,
)
def test_packing_needs_no_package_of_training(light: Path, arguments: list[str]) -> None:
    done = without_train(f"import os; os.chdir({str(light)!r})\n{command(arguments)}")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "--real", "packed", "--out", "run"],
        ["eval", "tasks", "run"],
        ["report", "run"],
        ["export", "run", "out"],
    ],
)
def test_training_says_what_to_install(light: Path, arguments: list[str]) -> None:
    done = without_train(f"import os; os.chdir({str(light)!r})\n{command(arguments)}")
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: pip install 'fastssl[train]'" in done.stderr


def test_the_front_door_says_what_to_install(light: Path) -> None:
    done = without_train(
        f"import fastssl; print(next(fastssl.read_samples({str(light / 'packed')!r})).key)\nfastssl.load('x')"
    )
    assert done.stdout.startswith("a-")
    assert "UsageError: loading and training need packages" in done.stderr
    assert "pip install 'fastssl[train]'" in done.stderr


def command(arguments: list[str]) -> str:
    return f"sys.argv = ['fastssl', *{arguments!r}]\nfrom fastssl.cli import main\nmain()"


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a photo, and the same packed."""
    folder = tmp_path_factory.mktemp("light")
    (folder / "photos").mkdir()
    Image.new("RGB", (80, 80), "orange").save(folder / "photos" / "a.png")
    pack(open_source(folder / "photos", "folder"), folder / "packed", size=64)
    return folder
