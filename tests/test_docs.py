"""The pages in `docs/`, and what else is written about the project: that it names what there is, and runs."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from pkgutil import resolve_name

import pytest
import yaml
from made_run import make_run

from fastssl import __version__
from fastssl.backbones import BACKBONES
from fastssl.methods import METHODS
from fastssl.methods.cross_domain import CrossDomainConfig as Config

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "shards" / "sample"
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [*DOCS, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "shards/README.md"))]
SOURCES = sorted(path for name in ("fastssl", "tests", "tools", "benchmarks") for path in (ROOT / name).rglob("*.py"))

_NUMBER = r"\d+(?:\.\d+)*"
_CITED = re.compile(rf"docs/reproduction\.md,? sections? ({_NUMBER}(?:(?:, and|,| and| to) {_NUMBER})*)")


def sections() -> list[str]:
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    return re.findall(rf"^##+ ({_NUMBER})\.? ", text, re.MULTILINE)


def cited(text: str) -> list[str]:
    """Sections of `docs/reproduction.md` that docstrings and comments cite, also across the ends of lines."""
    joined = re.sub(r"\s+(?:# )?\s*", " ", text)
    return [number for group in _CITED.findall(joined) for number in re.findall(_NUMBER, group)]


def test_citations_are_found() -> None:
    text = "(docs/reproduction.md,\n    # sections 2, 3.6 and 4). x docs/reproduction.md, section\n 4.10."
    assert cited(text) == ["2", "3.6", "4", "4.10"]


def test_sections_are_numbered_in_order_and_once() -> None:
    numbers = [tuple(int(part) for part in number.split(".")) for number in sections()]
    assert len(numbers) > 30
    assert numbers == sorted(set(numbers))


def test_sections_that_are_cited_exist() -> None:
    known = set(sections())
    for path in {*SOURCES, *PAGES} - {Path(__file__)}:
        missing = set(cited(path.read_text(encoding="utf-8"))) - known
        assert not missing, f"{path} cites sections that docs/reproduction.md does not have"


def test_the_page_refers_to_sections_of_its_own() -> None:
    text = (ROOT / "docs" / "reproduction.md").read_text(encoding="utf-8")
    own = re.findall(r"\((?:read[^();]*; )?(\d\.\d+(?:, \d\.\d+)*)\)", text)
    assert len(own) > 10
    assert {number for group in own for number in group.split(", ")} <= set(sections())


def test_docstrings_cite_the_page_and_none_that_is_not_here() -> None:
    package = [path.read_text(encoding="utf-8") for path in SOURCES if path.is_relative_to(ROOT / "fastssl")]
    assert sum(len(cited(text)) for text in package) > 10
    assert not [text for text in package if re.search(r"\bprotocols? \d", text)]


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_names_in_the_pages_exist(path: Path) -> None:
    """Modules and what is in them, files, settings."""
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r"`(fastssl(?:\.\w+)+)`", text):
        resolve_name(name)
    for name in re.findall(r"(?<![\w/])[a-z_]+(?:/[a-z_]+)*/\w+\.py\b", text):
        theirs = path.name == "reproduction.md"
        assert theirs or (ROOT / name).is_file() or (ROOT / "fastssl" / name).is_file(), name
    fields = Config.model_fields
    for section, setting in re.findall(rf"`({'|'.join(fields)})\.(\w+)(?:=[^`]*)?`", text):
        if setting != "py":
            kind = fields[section].annotation
            assert kind is not None
            assert setting in kind.model_fields, f"{section}.{setting}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8")):
        assert (path.parent / link).exists(), link


def test_the_readme_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [page.name for page in DOCS if f"](docs/{page.name})" not in text]


def test_the_page_on_batches_names_every_part_of_the_loader() -> None:
    text = (ROOT / "docs" / "batches.md").read_text(encoding="utf-8")
    parts = [path.name for path in (ROOT / "fastssl" / "loader").glob("*.py") if path.stem != "__init__"]
    assert len(parts) > 10
    assert not [part for part in parts if f"loader/{part}" not in text]


def test_the_new_layout_packs(tmp_path: Path) -> None:
    """The code of the page, as one script in an empty folder."""
    count, *lines = run_page("add_a_layout.md", tmp_path).splitlines()
    assert count == "2 samples"
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch(r"000\d-[0-9a-f]{16} \(96, 96, 3\) 4\.000 m, \d+% known", line)
        assert int(line.split()[-2].removesuffix("%")) > 90
    manifest = json.loads((tmp_path / "tiny_packed" / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["layout"], manifest["quarantined"]) == ("tiny", 0)


def test_the_new_evaluation_measures(
    tmp_path: Path, coded_synthetic: Path, coded_real: Path, runs_here: Callable[[str, Path], str]
) -> None:
    make_run(tmp_path / "run", coded_synthetic, coded_real)
    (tmp_path / "photos").symlink_to(coded_real)
    head, line = runs_here("add_an_evaluation.md", tmp_path).splitlines()
    assert head.split() == ["trained", "untrained"]
    assert line.startswith("Effective rank (higher is better)")
    section = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))["rank"]
    assert section["conditions"]["images"] == 9
    # Nine vectors of 3 to 26 channels.
    assert 1 < section["effective"]["trained"] <= 9


def test_the_new_method_learns(tmp_path: Path, runs_here: Callable[[str, Path], str]) -> None:
    (tmp_path / "photos").symlink_to(SAMPLE / "real_train")
    first, last, chance = (float(number) for number in re.findall(r"\d\.\d+", runs_here("add_a_method.md", tmp_path)))
    assert chance == pytest.approx(math.log(2), abs=1e-3)
    assert first == pytest.approx(chance, rel=0.2)
    assert last < 0.93 * chance


def test_the_new_backbone_is_trained(tmp_path: Path, runs_here: Callable[[str, Path], str]) -> None:
    (tmp_path / "photos").symlink_to(SAMPLE / "real_train")
    losses, *layers = runs_here("add_a_backbone.md", tmp_path).splitlines()
    first, *_, last = (float(loss) for loss in losses.split())
    assert last < first < 1.2 * math.log(4)
    assert layers == ["block1 16 2", "block2 32 4", "block3 64 8", "block4 128 16"]


def script_of(name: str, folder: Path) -> Path:
    """The code of a page, as one script in a folder."""
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    script = folder / "page.py"
    script.write_text("\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)), encoding="utf-8")
    return script


def run_page(name: str, folder: Path) -> str:
    """What the code of a page prints in a process of its own."""
    command = [sys.executable, script_of(name, folder)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def runs_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], torch_as_it_was: None
) -> Iterator[Callable[[str, Path], str]]:
    """What the code of a page prints in this process, which has loaded torch; names that it registers are forgotten."""
    before = METHODS.copy(), BACKBONES.copy()

    def printed(name: str, folder: Path) -> str:
        monkeypatch.chdir(folder)
        runpy.run_path(str(script_of(name, folder)), run_name="__main__")
        return capsys.readouterr().out

    yield printed
    for registry, names in zip((METHODS, BACKBONES), before, strict=True):
        for name in registry.keys() - names.keys():
            del registry[name]


def test_the_version_is_one_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[:2] == ["Unreleased", f"{__version__} - {citation['date-released']}"]
    assert citation["version"] == __version__


def test_hooks_before_a_commit_are_the_commands_of_make_lint() -> None:
    # What a make that runs these tests was given is not to reach this one.
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    made = subprocess.run(
        ["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "lint"],
        cwd=ROOT,
        env=outside,
        capture_output=True,
        text=True,
        check=True,
    )
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    hooks = {hook["id"]: hook for hook in repository["hooks"]}
    spelling = hooks.pop("codespell")
    assert [hook["entry"] for hook in hooks.values()] == made.stdout.splitlines()
    assert not any(hook["pass_filenames"] for hook in hooks.values())
    assert spelling["language"] == "python"
    (package,) = spelling["additional_dependencies"]
    assert re.fullmatch(r"codespell==[\d.]+", package)
    assert shlex.split(spelling["entry"])[0] == "codespell"
