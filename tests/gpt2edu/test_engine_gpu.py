"""The numba engine on a GPU, where every repeated micro-batch is a CUDA graph: float64, torch, and its own bits."""

import sys
from pathlib import Path

import pytest
import torch

import kernels
from gpt2edu.config import ModelConfig
from gpt2edu.engine import NumbaEngine
from gpt2edu.torch_engine import TorchEngine

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import (
    batch,
    check_against_float64,
    load,
    make_engine,
    same_bits,
    save,
    start_weights,
    state,
    take_step,
)

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(kernels.SIMULATED, reason="needs a GPU")]

TILED = ModelConfig.from_descriptor("d2,h2,c128,t64,v300")  # heads of 64 and whole tiles: the fastest kernels
ODD = ModelConfig.from_descriptor("d2,h3,c42,t33,v61")  # heads of 14, rows that are not aligned


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize(("config", "T"), [(TILED, 64), (ODD, 33)], ids=["tiled", "odd"])
def test_logits_losses_and_all_16_gradients(config, T, dtype, recompute):
    check_against_float64(config, dtype, recompute, T)


@pytest.mark.parametrize(("dtype", "near"), [("bf16", 1e-2), ("fp32", 2e-4)])
def test_ten_steps_follow_torch_in_fp32(dtype, near):
    ours, theirs = make_engine(TILED, dtype=dtype), make_engine(TILED, TorchEngine, tf32=0)
    for step in range(1, 11):
        loss, norm = take_step(ours, step, T=64)
        assert (loss, norm) == pytest.approx(take_step(theirs, step, T=64), rel=near), step
    assert loss < take_step(make_engine(TILED), 10, T=64)[0]  # it has learned


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_kernels_for_every_gpu_compute_the_same_here(dtype):
    check_against_float64(TILED, dtype, recompute=0, T=64, arch="sm_80")
    losses = [run_steps(make_engine(TILED, dtype=dtype, arch=arch), range(1, 4)) for arch in ("sm_80", None)]
    for one, other in zip(*losses, strict=True):
        assert one == pytest.approx(other, rel=1e-2 if dtype == "bf16" else 1e-4)


def run_steps(engine, steps, **cut):
    return [take_step(engine, step, B=4, T=64, **cut) for step in steps]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("micro_batch", [4, 1])
def test_twenty_steps_twice_and_through_a_checkpoint_have_the_same_bits(dtype, micro_batch):
    first, second, begun, resumed = (make_engine(TILED, dtype=dtype, recompute=1) for _ in range(4))
    losses = run_steps(first, range(1, 21), micro_batch=micro_batch)
    assert run_steps(second, range(1, 21), micro_batch=micro_batch) == losses
    run_steps(begun, range(1, 11), micro_batch=micro_batch)
    load(resumed, save(begun))
    assert run_steps(resumed, range(11, 21), micro_batch=micro_batch) == losses[10:]
    assert same_bits(first, second)
    assert same_bits(first, resumed)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_recomputing_gives_the_same_bits(dtype):
    engines = [make_engine(TILED, dtype=dtype, recompute=recompute) for recompute in (0, 1, 2)]
    losses = [run_steps(engine, range(1, 5), micro_batch=2) for engine in engines]
    assert losses[0] == losses[1] == losses[2]
    assert same_bits(engines[0], engines[1]) and same_bits(engines[0], engines[2])


def test_the_graph_computes_what_the_launches_do(monkeypatch):
    graphed = make_engine(TILED, dtype="bf16")
    losses = run_steps(graphed, range(1, 5), micro_batch=2)
    assert all(piece._graph for prepared in graphed._prepared.values() for piece in prepared.pieces)

    def launch(replay):
        torch.cuda.synchronize()  # what is under way on the default stream comes first
        replay._launches()
        torch.cuda.synchronize()

    monkeypatch.setattr("gpt2edu.replay.Replay.__call__", launch)
    launched = make_engine(TILED, dtype="bf16")
    assert run_steps(launched, range(1, 5), micro_batch=2) == losses
    assert same_bits(graphed, launched)


def test_evaluations_between_steps_change_nothing():
    plain, evaluated = (make_engine(TILED, dtype="bf16") for _ in range(2))
    for step in range(1, 6):
        for B, T in ((3, 64), (4, 17), (16, 64)):  # the last is larger than the training batch
            losses = evaluated.losses(*batch(step, B, T, TILED))
            assert losses.shape == (B, T) and torch.isfinite(losses).all()
        assert take_step(plain, step, B=4, T=64) == take_step(evaluated, step, B=4, T=64)
    assert same_bits(plain, evaluated)


def test_batches_may_follow_each_other_without_waiting():
    """Each micro-batch's tokens reach its own launches, although the host is far ahead."""
    engine, slow = (make_engine(TILED) for _ in range(2))
    for B, wait in ((32, False), (32, True)):
        chosen = slow if wait else engine
        inputs, targets = batch(5, B, 64, TILED)
        for row in range(B):
            chosen.accumulate(inputs[row : row + 1], targets[row : row + 1], B)
            if wait:
                torch.cuda.synchronize()
    assert torch.equal(engine._gradients, slow._gradients)
    assert engine.reduce() == slow.reduce()


def test_the_state_is_on_the_gpu():
    engine = make_engine(TILED, NumbaEngine, dtype="bf16")
    assert {array.device.type for array in state(engine).values()} == {"cuda"}
    assert torch.equal(engine.flat_parameters.cpu(), start_weights(TILED))
