"""Datasets that several tests read, packed for real; and what makes the tests the same on every machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import processes
import pytest
from crash_report import pytest_configure_node, pytest_sessionstart, pytest_terminal_summary  # noqa: F401 - hooks
from patterns import SIDE, CodedSource

from fastssl.shards import pack


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs from all tests but those in `tests/gpu`, before anything looks for them."""
    gpu = Path(__file__).parent / "gpu"
    wanted = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if not all(path == gpu or gpu in path.parents for path in wanted):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """Whatever a test begins ends with it, also where it fails."""
    yield
    processes.end_all()


@pytest.fixture(scope="session")
def coded_synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven packed patterns with targets, in three shards."""
    out = tmp_path_factory.mktemp("coded") / "synthetic"
    pack(CodedSource(11, "synthetic"), out, size=SIDE, samples_per_shard=4, jpeg_quality=98)
    return out


@pytest.fixture(scope="session")
def coded_real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine packed patterns without targets, in two shards; two share a class."""
    out = tmp_path_factory.mktemp("coded") / "real"
    pack(CodedSource(9, "real"), out, size=SIDE, samples_per_shard=5, jpeg_quality=98)
    return out


@pytest.fixture(scope="session")
def coded_pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The patterns of `coded_synthetic`, their images in LZ4."""
    out = tmp_path_factory.mktemp("coded") / "pixels"
    pack(CodedSource(11, "synthetic"), out, size=SIDE, samples_per_shard=4, image_codec="lz4")
    return out


@pytest.fixture(scope="session")
def nyu_rooms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five frames of NYU Depth v2 with splits and true normals; not to be written to."""
    # Not above: other tests do not need what it imports.
    from nyud_rooms import write_rooms

    return write_rooms(tmp_path_factory.mktemp("nyu") / "rooms")


@pytest.fixture
def torch_as_it_was() -> Iterator[None]:
    """What a training sets for its whole process is set back."""
    # Not above: there it would be imported before GPUs are hidden.
    import torch

    backends = torch.backends.cudnn
    before = (backends.benchmark, backends.allow_tf32, torch.get_float32_matmul_precision())
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    yield
    backends.benchmark, backends.allow_tf32 = before[:2]
    torch.set_float32_matmul_precision(before[2])
    torch.use_deterministic_algorithms(is_deterministic)


_buckets = count()


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Address of a real S3 server; one for all tests, since fsspec keeps its connections."""
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of an empty bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"bucket-{next(_buckets)}"
    pytest.importorskip("boto3").client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"
