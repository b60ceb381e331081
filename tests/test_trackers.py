"""TensorBoard by its own reader; wandb and mlflow by stand-ins that record how they are called."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from fastssl.config import Config
from fastssl.errors import ConfigError, UsageError
from fastssl.methods import load_config
from fastssl.trackers import Trackers, check_trackers


def config(*names: str) -> Config:
    secret = {"data": {"real": {"https://me:secret@host/photos": 1.0}}}
    found: Config = load_config("tiny", overrides=[f"train.trackers=[{', '.join(names)}]"], settings=secret)
    return found


def shown(run: Path) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


class Recorder(ModuleType):
    """A package whose functions keep what they are called with; `fails` names those that raise."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.fails: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def called(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            if name in self.fails:
                raise ConnectionError("the network is gone\nand more")
            if name == "get_metric_history":
                return [SimpleNamespace(step=2), SimpleNamespace(step=4)]
            return self if name in ("init", "MlflowClient") else SimpleNamespace(info=SimpleNamespace(run_id="abc"))

        return called

    def named(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, more) for called, arguments, more in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setitem(sys.modules, "wandb", module := Recorder("wandb"))
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    monkeypatch.setitem(sys.modules, "mlflow", module := Recorder("mlflow"))
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return module


def test_tensorboard_forgets_what_a_killed_process_wrote(tmp_path: Path) -> None:
    for first_step, steps in ((0, (10, 20, 30)), (20, (30,)), (0, (10,))):
        with Trackers(tmp_path, config("tensorboard"), first_step) as trackers:
            for step in steps:
                trackers.write(step, {"loss": first_step + step})
        before = [(step, step) for step in (10, 20) if step <= first_step]
        assert shown(tmp_path) == [*before, *((step, first_step + step) for step in steps)]
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]


def test_events_are_a_copy_that_may_fail(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "tensorboard").touch()  # a file where their folder belongs
    with Trackers(tmp_path, config("tensorboard")) as trackers:
        trackers.write(1, {"loss": 1.0})
    assert caplog.text.count("without TensorBoard events") == 1


def test_a_disk_that_fills_up_costs_events_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Trackers(tmp_path, config("tensorboard")) as trackers:
        trackers.write(1, {"loss": 1.0})
        events: Any = trackers._live["tensorboard"]
        events._records.close()
        events._records = RecordWriter(open("/dev/full", "wb"))  # noqa: PTH123, SIM115
        for step in (2, 3):
            trackers.write(step, {"loss": 1.0})
    assert caplog.text.count("No space left on device; the run goes on without TensorBoard events") == 1
    assert shown(tmp_path) == [(1, 1.0)]


def test_a_run_of_wandb_goes_on_as_the_same(tmp_path: Path, wandb: Recorder) -> None:
    for first_step in (0, 2):
        with Trackers(tmp_path, config("wandb"), first_step) as trackers:
            trackers.write(first_step + 2, {"loss/depth": 0.5})
    (_, first), (_, second) = wandb.named("init")
    assert first["id"] == second["id"]
    assert (first["project"], first["name"], first["resume"]) == ("fastssl", tmp_path.name, "allow")
    assert first["dir"] == str(tmp_path)
    assert first["config"]["data.size"] == 131
    assert "secret" not in str(first["config"])
    assert wandb.named("log") == [(({"loss/depth": 0.5},), {"step": step}) for step in (2, 4)]
    assert len(wandb.named("finish")) == 2


def test_a_run_of_mlflow_goes_on_without_points_told_twice(tmp_path: Path, mlflow: Recorder) -> None:
    with Trackers(tmp_path, config("mlflow")) as trackers:
        for step in (2, 4):
            trackers.write(step, {"loss/depth": 0.5})
    with Trackers(tmp_path, config("mlflow"), 2) as trackers:
        for step in (4, 6):
            trackers.write(step, {"loss/depth": 0.5})
    assert mlflow.named("set_experiment") == [(("fastssl",), {})]
    assert mlflow.named("start_run") == [((), {"run_name": tmp_path.name}), ((), {"run_id": "abc"})]
    assert [more["step"] for _, more in mlflow.named("log_metrics")] == [2, 4, 6]
    params = [arguments[0] for arguments, _ in mlflow.named("log_params")]
    assert all(len(some) <= 100 for some in params)
    assert params[0]["data.size"] == "131"
    assert len(mlflow.named("end_run")) == 2


@pytest.mark.parametrize(("name", "function"), [("wandb", "init"), ("wandb", "log"), ("mlflow", "log_metrics")])
def test_a_tracker_that_fails_is_told_once_and_left_alone(
    name: str, function: str, tmp_path: Path, wandb: Recorder, mlflow: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    module = {"wandb": wandb, "mlflow": mlflow}[name]
    module.fails = {function}
    with Trackers(tmp_path, config("tensorboard", name)) as trackers:
        for step in (1, 2, 3):
            trackers.write(step, {"loss": 1.0})
    assert caplog.text.count(f"{name}: the network is gone; the run goes on without it") == 1
    assert len(module.named(function)) == 1
    assert [step for step, _ in shown(tmp_path)] == [1, 2, 3]


def test_what_cannot_be_used_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no such tracker(.|\n)*'tensorboard'"):
        check_trackers(["tensorbord"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UsageError, match=r"not installed(.|\n)*pip install wandb"):
        check_trackers(["tensorboard", "wandb"])
