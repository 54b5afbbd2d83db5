"""The numba engine: its gradients against float64, its steps against the torch engine's, and its bits against its own.

One bf16 pass (and a slow one in fp32) runs every kernel in the simulator. Where only the engine's own doing is tested,
NumPy computes products and attention there on the same buffers (`quick`): the simulator is slow at them, and
tests/kernels has theirs. On a GPU the kernels do it all.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels
from gpt2edu.activations import activation_buffers, arena_bytes, cut_arena
from gpt2edu.cli import parse_settings
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.engine import refuse
from gpt2edu.errors import UsageError
from gpt2edu.model import GPT2
from gpt2edu.parameters import parameter_layout
from gpt2edu.sample import generate
from gpt2edu.shards import write_shard
from gpt2edu.torch_engine import TorchEngine
from gpt2edu.train import train

sys.path.insert(0, str(Path(__file__).parent))
from engine_cases import (
    CONFIG,
    CPU,
    DEVICE,
    batch,
    check_against_float64,
    load,
    make_engine,
    same_bits,
    save,
    start_weights,
    take_step,
)

pytestmark = [] if kernels.SIMULATED else pytest.mark.gpu


# ---- against float64 -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_logits_losses_and_all_16_gradients_in_fp32_with_every_kernel():
    check_against_float64(CONFIG, "fp32", recompute=2)


@pytest.mark.parametrize("recompute", [0, 2])
def test_logits_losses_and_all_16_gradients_in_fp32(quick, recompute):
    check_against_float64(CONFIG, "fp32", recompute)


def test_logits_losses_and_all_16_gradients_in_bf16():
    check_against_float64(ModelConfig.from_descriptor("d2,h2,c32,t8,v61"), "bf16", recompute=0, n_batches=2)


# ---- steps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_recomputing_gives_the_same_bits_in_less_memory(quick, dtype):
    gradients, n_bytes = [], []
    for recompute in (0, 1, 2):
        engine = make_engine(dtype=dtype, recompute=recompute)
        engine.accumulate(*batch(), 1)
        gradients.append(engine._gradients.clone())
        n_bytes.append(len(engine._arena))
    assert gradients[0].any()
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])
    assert n_bytes[0] > n_bytes[1] > n_bytes[2]


def test_micro_batches_change_only_the_rounding(quick):
    whole, cut = make_engine(), make_engine()
    assert take_step(cut, 1, micro_batch=1) == pytest.approx(take_step(whole, 1), rel=1e-5)
    torch.testing.assert_close(cut._gradients, whole._gradients, rtol=1e-4, atol=1e-6)


def test_five_steps_follow_the_torch_engine(quick):
    ours, theirs = make_engine(), make_engine(kind=TorchEngine, tf32=0)
    for step in range(1, 6):
        loss, norm = take_step(ours, step)
        assert (loss, norm) == pytest.approx(take_step(theirs, step), rel=1e-4)
    moved = (theirs.flat_parameters - start_weights().to(DEVICE)).norm()
    # the keys' biases have no gradient but rounding, which AdamW divides by its own size
    assert (ours.flat_parameters - theirs.flat_parameters).norm() < 5e-3 * moved


def test_two_runs_and_a_resume_have_the_same_bits_in_bf16(quick):
    first, second, resumed = (make_engine(dtype="bf16") for _ in range(3))
    for step in (1, 2):
        assert take_step(first, step) == take_step(second, step)
    assert same_bits(first, second)
    load(resumed, save(first))
    assert take_step(first, 3) == take_step(resumed, 3)
    assert same_bits(first, resumed)
    nearest = first.flat_parameters.to(torch.bfloat16)
    for tensor in parameter_layout(CONFIG):
        share = (tensor.view(first._read_parameters) != tensor.view(nearest)).float().mean()
        assert 0.1 < share < 0.6 if tensor.decayed else share == 0, tensor.name  # vectors are rounded to nearest


def test_a_training_run_resumed_from_a_checkpoint_writes_the_same_files(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path / "data"))
    tokens = np.random.default_rng(0).integers(0, 61, 400)
    for split, start in (("train", 0), ("val", 300)):
        write_shard(tmp_path / f"toy_{split}_000000.bin", tokens[start : start + 300])
    flags = f"-i {tmp_path}/toy_train_*.bin -j {tmp_path}/toy_val_*.bin -o {tmp_path}/run -e d1,h2,c16,t8,v61 -t 8 -b 2"
    flags += f" -d 16 -x 3 -n 2 -v 0 -s 0 -m 1 -l 0.01 --device {DEVICE} --backend numba --dtype bf16"
    train(parse_settings(flags.split()))
    last = [tmp_path / "run" / name for name in ("model_00000003.bin", "state_00000003_00000.bin")]
    whole = [path.read_bytes() for path in last]
    for path in (tmp_path / "run").glob("*_00000003*"):
        path.unlink()
    result = train(parse_settings([*flags.split(), "-y", "1"]))
    assert result.steps == 3
    assert result.tokens == 16  # one step
    assert [path.read_bytes() for path in last] == whole
    assert "backend: numba, chosen with --backend" in capsys.readouterr().out


def test_bf16_steps_stay_near_fp32(quick):
    half, full = make_engine(dtype="bf16"), make_engine()
    for step in (1, 2):
        assert take_step(half, step) == pytest.approx(take_step(full, step), rel=3e-2)
    assert (half._read_parameters - half.flat_parameters).abs().max() < 0.02  # the copy follows the master weights


def test_losses_of_any_smaller_shape_and_samples(quick):
    engine, model = make_engine(), GPT2(CONFIG, device=DEVICE)
    model.flat_parameters.copy_(engine.flat_parameters)
    for B, T in ((2, 8), (1, 3), (2, 8)):
        inputs, targets = batch(B, B, T)
        tokens = (torch.from_numpy(np.ascontiguousarray(x)).to(DEVICE) for x in (inputs, targets))
        expected = model.losses(*tokens).detach()
        torch.testing.assert_close(engine.losses(inputs, targets), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (list(generate(some, [3], 4, temperature=0)) for some in (engine.model, model))
    assert ours == theirs
    assert np.isfinite(take_step(engine, 1)).all()  # what sampling allocated serves training


# ---- memory and refusals -------------------------------------------------------------------------------------------


def test_the_arena_holds_every_buffer_once():
    buffers = activation_buffers(CONFIG, 2, 7, torch.bfloat16, recompute=1)
    arena = torch.empty(arena_bytes(buffers), dtype=torch.uint8)
    views = cut_arena(arena, buffers)
    assert views.activated.shape == (1, 2, 7, 64)
    assert views.grad_qkv.shape == (2, 7, 48)
    starts = sorted((view.data_ptr(), view.nbytes) for name, view in vars(views).items() if name != "grad_qkv")
    assert all(start % 16 == 0 for start, _ in starts)
    assert all(start + n <= following for (start, n), (following, _) in zip(starts, starts[1:], strict=False))
    assert starts[-1][0] + starts[-1][1] <= arena.data_ptr() + len(arena)


def test_the_largest_micro_batch_is_counted_from_free_memory(monkeypatch):
    engine = make_engine(micro_batch=2)
    engine.device = CPU
    assert engine.largest_micro_batch([1, 2, 4, 8, 16, 32]) == 16
    assert not engine.fits(1)
    assert engine.memory_notes() == []
    buffers = activation_buffers(CONFIG, 4, CONFIG.max_seq_len, torch.float32, recompute=0)
    engine.device = torch.device("cuda")
    free = int(arena_bytes(buffers) / 0.92) + 1
    monkeypatch.setattr(engine, "_free_bytes", lambda: free)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, 3 << 20))
    assert engine.largest_micro_batch([1, 2, 4, 8]) == 4
    assert engine.largest_micro_batch([8]) == 0
    assert engine.memory_notes()[0].endswith("/ 3 MiB")


@pytest.mark.parametrize(
    ("settings", "dtype", "message"),
    [({}, "fp16", "--dtype fp16"), ({"master_weights": 0}, "bf16", "-w 0")],
)
def test_what_it_cannot_do_is_refused(settings, dtype, message):
    with pytest.raises(UsageError, match=message):
        refuse(TrainConfig(**settings), DEVICE, dtype)


def test_where_it_cannot_run_is_said(monkeypatch):
    monkeypatch.setattr("gpt2edu.engine.SIMULATED", True)
    with pytest.raises(UsageError, match="--device cpu"):
        refuse(TrainConfig(), torch.device("cuda"), "fp32")
    monkeypatch.setattr("gpt2edu.engine.SIMULATED", False)
    with pytest.raises(UsageError, match="NUMBA_ENABLE_CUDASIM=1"):
        refuse(TrainConfig(), CPU, "fp32")
