"""`fastssl.load_backbone` and `fastssl export` on runs, and on files that are torn or of another origin."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch
from commands import command
from made_run import make_run, strict
from made_weights import made_weights
from safetensors.torch import load_file, save_file

import fastssl
from fastssl import __version__
from fastssl.errors import DataError
from fastssl.export import EXPORTERS, read_header
from fastssl.export.run import export_weights
from fastssl.train import load_trained


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return Path(export_weights(made_weights("alexnet"), EXPORTERS["safetensors"], tmp_path / "weights").path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, coded_real: Path) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "run", None, coded_real, method="rotation")


def refused(path: Path) -> DataError:
    with pytest.raises(DataError) as caught:
        fastssl.load_backbone(path)
    assert caught.value.exit_code == 3
    assert caught.value.where == path
    return caught.value


def test_a_torn_file_is_refused_wherever_it_ends(exported: Path) -> None:
    content = exported.read_bytes()
    for length in (0, 5, 8, 300, len(content) // 2, len(content) - 1):
        exported.write_bytes(content[:length])
        assert "cut short, damaged" in refused(exported).what


def test_a_bit_that_is_not_as_it_was_written_is_noticed(exported: Path) -> None:
    content = bytearray(exported.read_bytes())
    first = 8 + int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8:first])["__metadata__"]
    # Safetensors lie in an order of their own, so the oracle orders the file's bytes by name.
    tensors = load_file(exported)
    in_order = b"".join(tensors[name].numpy().tobytes() for name in sorted(tensors))
    assert len(in_order) == len(content) - first
    assert metadata["fastssl.crc32"] == f"{zlib.crc32(in_order):08x}"
    for place in (first, (first + len(content)) // 2, len(content) - 1):
        content[place] ^= 1
        exported.write_bytes(content)
        assert "not as they were written" in refused(exported).what
        content[place] ^= 1
    save_file(tensors, exported, {"fastssl": metadata["fastssl"]})  # as of fastssl 0.1
    fastssl.load_backbone(exported)


def test_files_of_another_origin_are_refused(exported: Path, tmp_path: Path) -> None:
    tensors, header = load_file(exported), read_header(exported).model_dump_json()
    words: dict[str, dict[str, str] | None] = {
        "did not write this file": {"format": "pt"},
        "what the file says of itself cannot be read": {"fastssl": "{}"},
        "tensors are not those of its backbone alexnet": {"fastssl": header},
    }
    del tensors["layers.fc7.conv.weight"]
    for what, metadata in words.items():
        save_file(tensors, exported, metadata)
        assert what in refused(exported).what
    (tmp_path / "text").write_text("weights")
    assert "no safetensors" in refused(tmp_path / "text").what
    assert "no such file" in refused(tmp_path / "absent").what
    assert "holds no run" in refused(tmp_path).what
    os.mkfifo(tmp_path / "pipe")
    assert "no such file" in refused(tmp_path / "pipe").what
    torch.save(tensors, tmp_path / "state")
    with pytest.raises(DataError, match=rf"no checkpoint of a run\n  where: {tmp_path / 'state'}\n"):
        fastssl.load_backbone(tmp_path / "state")


def test_the_header_says_how_the_weights_are_used(tmp_path: Path) -> None:
    weights = made_weights("resnet50", post_relu=True, layer="conv4", size=99)
    export_weights(weights, EXPORTERS["safetensors"], tmp_path / "weights")
    header = json.loads(read_header(tmp_path / "weights").model_dump_json())
    assert header.pop("licence").startswith("The licence of fastssl (Apache-2.0) is that of the code")
    assert header.pop("model")["backbone"] == "resnet50"
    assert header == {
        "version": __version__,
        "post_relu": True,
        "method": "cross_domain",
        "seed": 0,
        "step": 7,
        "layer": "conv4",
        "layers": {
            name: {"channels": info.channels, "stride": info.stride}
            for name, info in weights.backbone.feature_info.items()
        },
        "images": {
            "size": 99,
            "channels": "RGB",
            "range": [0, 1],
            "mean": [0.485, 0.456, 0.406],
            "deviation": [1, 1, 1],
        },
    }


def test_an_exported_file_is_read_without_dali(exported: Path) -> None:
    code = (
        f"import fastssl, sys; print(len(fastssl.load_backbone({str(exported)!r}).feature_info), "
        "'nvidia.dali' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "7 False\n"
    )


def test_a_run_is_exported_and_loaded_by_each_of_its_names(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = load_trained(run).method.backbone.state_dict()
    out = tmp_path / "weights.safetensors"
    for arguments in (["--json"], ["--checkpoint", 3], ["--layer", "conv3"]):
        assert command(monkeypatch, "export", run, out, *arguments) == 0
        printed, words = capsys.readouterr()
        (told,) = words.splitlines()
        assert told.startswith(f"exported: {out}, alexnet of step 3 as safetensors")
        assert read_header(out).layer == ("conv3" if "--layer" in arguments else "conv5")
        if "--json" in arguments:
            assert strict(printed)["usage"] == f"fastssl.load_backbone('{out}')"
        for subject in (out, run, run / "checkpoints" / "step_00000003.pt"):
            found = fastssl.load_backbone(subject)
            assert not found.training
            assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert (read_header(out).seed, read_header(out).method, read_header(out).images.size) == (7, "rotation", 67)


def test_commands_that_cannot_be_end_with_their_codes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "weights"
    for arguments, code, words in (
        ((run, out, "--format", "timn"), 2, "'timm'?"),
        ((run, out, "--format", "timm"), 2, "resnet50, vgg16, timm:NAME"),
        ((run, out, "--checkpoint", "best"), 2, "expected: 3"),
        ((run, out, "--layer", "conv9"), 2, "conv5"),
        ((run, tmp_path), 2, "a folder stands where the file is to be"),
        ((run, out / "deeper"), 2, "no folder for the file"),
        ((run / "checkpoints" / "step_00000003.pt", out, "--checkpoint", 3), 2, "a checkpoint is named twice"),
        ((tmp_path, out), 3, "holds no run"),
        ((tmp_path, out, "--checkpoint", "best"), 3, "holds no run"),
    ):
        assert command(monkeypatch, "export", *arguments) == code
        assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
