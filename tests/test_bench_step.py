"""The ladder of the step: its lowest rung computes what ours does, and the figures are those of the work."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from rank_process import Recording
from small_steps import CPU

from fastssl.bench.authors import AuthorsStep
from fastssl.bench.made_up import made_up_batches
from fastssl.bench.step import RUNGS, StepReport, forms, measure_steps, step_table
from fastssl.kernels import can_compile
from fastssl.methods import METHODS, StepContext, find_method, load_config
from fastssl.methods.cross_domain import CrossDomain

SMALL = [
    "data.size=67", "data.batch_synthetic=4", "data.batch_real=4", "model.width=0.1", "model.fc_channels=32",
    "train.channels_last=false",
]  # fmt: skip
UNCOMPILED = tuple(rung.name for rung in RUNGS if rung.name != "compile" and not rung.on_gpu_alone)


def small(preset: str, *overrides: str) -> Any:
    return load_config(preset, overrides=[*SMALL, *overrides])


@pytest.mark.parametrize("layer", ["conv1", "conv5", "fc6"])
def test_the_authors_order_of_work_gives_our_gradients(layer: str) -> None:
    """Of the first step, and of the second, for which the pools have changed maps and D has learnt."""
    config = small("released", f"model.adapted_layer={layer}", "model.head_channels=8", "optim.pool_size=3")
    contexts = [Recording(config, CPU) for _ in range(2)]
    ours, authors = CrossDomain(config, contexts[0]), AuthorsStep(config, contexts[1])
    for _ in range(2):
        losses = [step(made_up_batches(config, CPU)) for step in (ours, authors)]
        assert losses[0].keys() == losses[1].keys()
        for name in losses[0]:
            torch.testing.assert_close(losses[1][name], losses[0][name], rtol=1e-5, atol=0)
    assert len(contexts[0].gradients) == len(contexts[1].gradients) > 0
    first = len(contexts[0].gradients) // 2
    for one, other in zip(contexts[0].gradients[:first], contexts[1].gradients[:first], strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))


def test_the_authors_order_of_work_moves_our_running_statistics() -> None:
    """`model.running_statistics=all` has without the second passes what they leave (docs/reproduction.md, 5.2)."""
    config = small("released", "model.head_channels=8")
    ours, authors = CrossDomain(config, StepContext(config, CPU)), AuthorsStep(config, StepContext(config, CPU))
    for step in (ours, authors):
        step(made_up_batches(config, CPU))
    expected = dict(authors.method.networks.named_buffers())
    for name, buffer in ours.networks.named_buffers():
        if buffer.is_floating_point():  # passes are counted, too, but not used
            torch.testing.assert_close(buffer, expected[name], rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def report() -> StepReport:
    return measure_steps(small("tiny", "model.head_channels=4"), names=UNCOMPILED, turns=1, loss_steps=2)


def test_every_rung_of_a_cpu_is_there_with_its_figures(report: StepReport) -> None:
    assert tuple(rung.name for rung in report.rungs) == UNCOMPILED
    by_name = {rung.name: rung for rung in report.rungs}
    assert all(rung.per_s > 0 and 0 < rung.matrix_fraction < 1 for rung in report.rungs)
    assert by_name["authors"].gmac > by_name["lean"].gmac == by_name["fused"].gmac
    fp32 = sum(by_name["lean"].losses.values())
    for rung in report.rungs:
        assert sum(rung.losses.values()) == pytest.approx(fp32, rel=0.05)
    assert json.loads(json.dumps({"losses": by_name["bf16"].losses}))
    table = step_table(report)
    assert all(rung.words in table for rung in report.rungs)
    assert max(map(len, table.splitlines())) <= 100


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_batches_and_a_ladder(name: str) -> None:
    config = load_config("tiny", method=name, overrides=SMALL)
    batches = made_up_batches(config, CPU)
    assert batches.keys() == {request.name for request in METHODS[name].domains(config)}
    for _, form in forms(config):
        assert find_method(form.method) is METHODS[name]
    losses = find_method(name)(config, StepContext(config, CPU))(batches)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.soak
@pytest.mark.filterwarnings("default")  # torch.compile looks at what warns
def test_compiled_steps_learn_the_same() -> None:
    report = measure_steps(small("tiny", "model.head_channels=4"), names=("bf16", "compile"), turns=1, loss_steps=10)
    plain, compiled = (sum(rung.losses.values()) for rung in report.rungs)
    assert compiled == pytest.approx(plain, rel=0.02)


@pytest.mark.soak
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("preset", ["tiny", "paper"])
def test_a_compiled_step_has_the_losses_of_a_plain_one(preset: str) -> None:
    """In float32, with the heads of each preset; those of `tiny` go on beyond the borders of their maps."""
    losses = []
    for compiles in (False, True):
        config = small(preset, "data.size=131", "train.channels_last=auto", f"train.compile={compiles}")
        step = CrossDomain(config, StepContext(config, CPU))
        losses.append([float(loss) for _ in range(2) for loss in step(made_up_batches(config, CPU)).values()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_what_cannot_be_compiled_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(function: Any) -> Any:
        raise RuntimeError("no compiler was found\nand more")

    monkeypatch.setattr(torch, "compile", fails)
    can_compile.cache_clear()
    config = small("tiny", "train.compile=true")
    for _ in range(2):
        losses = CrossDomain(config, StepContext(config, CPU))(made_up_batches(config, CPU))
        assert all(loss.isfinite() for loss in losses.values())
    can_compile.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile does not work here, and the training goes on without: no compiler was found"
    ]
