"""The parts of the packing benchmark that could mislead: what is read, and how time and memory are measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from fastssl.shards import pack, read_samples

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    conditions = ModuleType("conditions")
    monkeypatch.setattr(conditions, "write_result", None, raising=False)
    monkeypatch.setitem(sys.modules, "conditions", conditions)  # the real one loads torch
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_the_source_reads_the_planes_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depth = np.array([[0, 1500], [2500, 65535]], np.uint16)
    normal = np.array([[[0, 0, 0], [128, 128, 1]], [[255, 128, 128], [37, 128, 37]]], np.uint8)
    instance = np.array([[4, 4], [300, 5]], np.uint16)
    image = np.full((2, 2, 3), 90, np.uint8)
    for name, plane in (("rgb.jpg", image), ("depth.png", depth), ("normal.png", normal), ("instance.png", instance)):
        Image.fromarray(plane).save(tmp_path / f"00000_{name}")
    camera = {"fx": 2.0, "fy": 3.0, "cx": 1.0, "cy": 1.0}
    (tmp_path / "00000.json").write_text(json.dumps({"width": 2, "height": 2, "camera": camera}), encoding="utf-8")
    source = load("four_planes", monkeypatch).FourPlanesSource(tmp_path, samples=3)
    assert list(source.references()) == ["00000", "00001", "00002"]
    record = source.read("00002")  # the files are used again
    np.testing.assert_array_equal(record.depth, depth)
    np.testing.assert_array_equal(record.normal, normal)
    np.testing.assert_array_equal(record.instance, instance)
    assert (record.camera.fx, record.camera.fy) == (2, 3)
    pack(source, tmp_path / "out", size=8)
    assert [sample.key for sample in read_samples(tmp_path / "out")] == list(source.references())


def test_the_memory_of_a_command_is_that_of_its_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = load("packing", monkeypatch)
    child = "import time; held = bytearray(b'x') * 80_000_000; time.sleep(0.6)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = packing.measured_run([sys.executable, "-c", parent])
    assert run.seconds > 0.6 > run.cpu_seconds > 0
    assert 80_000_000 < run.peak_bytes < 140_000_000


def test_the_cpu_time_of_a_command_is_that_of_its_processes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import time\nwhile time.process_time() < 0.4: pass"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert 0.4 < load("packing", monkeypatch).measured_run([sys.executable, "-c", parent]).cpu_seconds < 1


def test_a_command_that_fails_is_no_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="no such thing"):
        load("packing", monkeypatch).measured_run([sys.executable, "-c", "raise SystemExit('no such thing')"])
