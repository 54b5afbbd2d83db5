"""The torch engine against a plain training loop, its precisions, and its choices."""

import numpy as np
import pytest
import torch

from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.errors import UsageError
from gpt2edu.model import GPT2
from gpt2edu.torch_engine import TorchEngine, choose_compile, choose_device, choose_dtype

CONFIG = ModelConfig(max_seq_len=16, vocab_size=100, padded_vocab_size=128, n_layers=2, n_heads=2, channels=32)
CPU = torch.device("cpu")


def make_engine(**settings):
    engine = TorchEngine(CONFIG, TrainConfig(seq_len=16, **settings), SingleProcess(), CPU)
    engine.model.init_weights()
    return engine


def tokens(seed, n_rows=8):
    tokens_BT = np.random.default_rng(seed).integers(0, 100, size=(n_rows, 17))
    return tokens_BT[:, :-1].copy(), tokens_BT[:, 1:].copy()


def one_step(engine, seed=0, micro_batch=8, step=1):
    inputs_BT, targets_BT = tokens(seed)
    n_micro_steps = 8 // micro_batch
    for start in range(0, 8, micro_batch):
        rows = slice(start, start + micro_batch)
        engine.accumulate(inputs_BT[rows], targets_BT[rows], n_micro_steps)
    loss, grad_norm = engine.reduce()
    engine.update(1e-2, 0.1, min(1.0, 1.0 / grad_norm), step)
    return loss, grad_norm


def test_three_steps_equal_a_plain_loop():
    engine = make_engine()
    model = GPT2(CONFIG)
    model.init_weights()
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    for step in range(3):
        inputs_BT, targets_BT = map(torch.from_numpy, tokens(step))
        logits_BTV = model(inputs_BT)[..., : CONFIG.vocab_size]
        expected = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())
        optimizer.zero_grad()
        expected.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss, grad_norm = one_step(engine, step, step=step + 1)
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        assert grad_norm == pytest.approx(norm.item(), rel=1e-5)
    torch.testing.assert_close(
        engine.flat_parameters, model.flat_parameters, rtol=1e-3, atol=1e-4
    )  # of updates of 1e-2


def test_micro_batches_change_only_the_rounding():
    whole, cut = make_engine(), make_engine()
    assert one_step(cut, micro_batch=2) == pytest.approx(one_step(whole), rel=1e-5)
    torch.testing.assert_close(cut._gradients, whole._gradients, rtol=1e-3, atol=1e-6)


def test_gradients_of_a_step_do_not_leak_into_the_next():
    engine, fresh = make_engine(learning_rate=0.0), make_engine()
    before = engine.flat_parameters.clone()
    one_step(engine, seed=1)
    engine.flat_parameters.copy_(before)
    assert one_step(engine, seed=2)[:2] == one_step(fresh, seed=2)[:2]


def test_state_arrays_restore_the_optimizer_bit_for_bit():
    engine, resumed = make_engine(), make_engine()
    one_step(engine, 0)
    resumed.flat_parameters.copy_(engine.flat_parameters)
    resumed.load_state_arrays({name: array.numpy().copy() for name, array in engine.state_arrays().items()})
    assert one_step(engine, 1, step=2) == one_step(resumed, 1, step=2)
    assert torch.equal(engine.flat_parameters, resumed.flat_parameters)


@pytest.mark.parametrize(("dtype", "error"), [("bf16", 2e-2), ("fp16", 2e-3)])
def test_half_precision_stays_near_fp32(dtype, error):
    half, full = make_engine(dtype=dtype), make_engine(dtype="fp32")
    half_loss, half_norm = one_step(half)
    loss, norm = one_step(full)
    assert half_loss == pytest.approx(loss, rel=error)
    assert half_norm == pytest.approx(norm, rel=10 * error)
    assert half_loss != loss
    assert half.flat_parameters.dtype == torch.float32


def test_an_fp16_overflow_halves_the_scale_and_recovers():
    engine = make_engine(dtype="fp16")
    engine.scaler.scale = 2.0**40
    engine.accumulate(*tokens(0), 1)
    engine.reduce()
    assert engine.overflowed
    assert engine.scaler.scale == 2.0**39
    engine.scaler.scale = 1024.0
    assert np.isfinite(one_step(engine)[1])
    assert not engine.overflowed
    other = make_engine(dtype="fp16")
    other.load_extra_state(engine.extra_state())
    assert other.scaler == engine.scaler


def test_losses_are_per_token_and_leave_no_gradient():
    engine = make_engine()
    losses_BT = engine.losses(*tokens(0))
    assert losses_BT.shape == (8, 16)
    assert not losses_BT.requires_grad
    assert losses_BT.mean().item() == pytest.approx(one_step(engine)[0], rel=1e-6)


def test_precision_is_decided_by_the_compute_capability(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Some GPU")
    for capability, dtype in (((7, 0), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device, c=capability: c)
        chosen, reason = choose_dtype(None, torch.device("cuda"))
        assert chosen == dtype
        assert f"{capability[0]}.{capability[1]}" in reason
    assert choose_dtype(None, CPU)[0] == "fp32"
    assert choose_dtype("bf16", CPU)[0] == "bf16"


def test_torch_compile_is_for_gpus_with_triton(monkeypatch):
    cuda = torch.device("cuda")
    assert not choose_compile(None, CPU)[0]
    assert choose_compile(1, CPU)[0]
    assert not choose_compile(0, cuda)[0]
    for spec, compiles in ((object(), True), (None, False)):
        monkeypatch.setattr("importlib.util.find_spec", lambda _name, s=spec: s)
        assert choose_compile(None, cuda)[0] is compiles


@pytest.mark.parametrize("name", ["tpu", "cuda" if not torch.cuda.is_available() else "mps"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=f"--device {name}.*cpu"):
        choose_device(name)


def test_on_a_cpu_the_micro_batch_is_small():
    engine = make_engine()
    assert engine.largest_micro_batch([1, 2, 4, 8, 16, 32, 64]) == 16
    assert engine.largest_micro_batch([1, 17]) == 1
    assert engine.memory_notes() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_largest_micro_batch_of_a_gpu_fits_and_four_times_it_does_not():
    device = torch.device("cuda", 0)
    settings = TrainConfig(seq_len=1024, recompute=0, compile=0)
    engine = TorchEngine(ModelConfig.from_descriptor("d6"), settings, SingleProcess(), device)
    engine.model.init_weights()
    rows = engine.largest_micro_batch([2**n for n in range(12)])
    tokens_BT = np.zeros((rows, 1024), dtype=np.int64)
    engine.accumulate(tokens_BT, tokens_BT, 1)
    assert np.isfinite(engine.reduce()[0])
    with pytest.raises(torch.OutOfMemoryError):
        tokens_BT = np.zeros((4 * rows, 1024), dtype=np.int64)
        engine.accumulate(tokens_BT, tokens_BT, 1)
