"""The numba engine: its gradients against float64, its steps against the torch engine's, and its bits against its own.

One bf16 pass (and a slow one in fp32) runs every kernel. Where only the engine's own doing is tested, NumPy computes
products and attention on the same buffers (`quick`): the simulator is slow at them, and tests/kernels has theirs.
"""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import kernels
from gpt2edu import passes, run
from gpt2edu.activations import activation_buffers, arena_bytes, cut_arena
from gpt2edu.cli import parse_settings
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine, refuse
from gpt2edu.errors import UsageError
from gpt2edu.model import GPT2, named_views
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.sample import generate
from gpt2edu.shards import write_shard
from gpt2edu.torch_engine import TorchEngine
from gpt2edu.train import train
from kernels.attention import reference as attention
from kernels.host import EPSILON, from_bf16, to_bf16
from kernels.launch import as_array

sys.path.insert(0, str(Path(__file__).parent))
import reference_gpt2

CONFIG = ModelConfig.from_descriptor("d2,h2,c16,t8,v61")
CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(not kernels.SIMULATED, reason="the tensors of these tests are on the CPU")


def start_weights(config=CONFIG, seed=1):
    """Weights all of which are random, so that no bias hides behind a zero; padding rows are 0."""
    model = GPT2(config)
    model.init_weights(seed)
    model.flat_parameters += 0.1 * torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(seed))
    model.wte.weight.data[config.vocab_size :] = 0
    return model.flat_parameters


def make_engine(config=CONFIG, kind=NumbaEngine, **settings):
    settings = {"dtype": "fp32", "seq_len": config.max_seq_len, "recompute": 0, **settings}
    engine = kind(config, TrainConfig(**settings), SingleProcess(), CPU)
    engine.flat_parameters.copy_(start_weights(config))
    return engine


def batch(seed=0, B=2, T=7, config=CONFIG):
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (B, T + 1))
    tokens[0, :2] = config.vocab_size - 1  # the last real column, twice
    return tokens[:, :-1], tokens[:, 1:]


def by_name(config, flat):
    return {t.name: t.view(flat) for t in parameter_layout(config)}


def take_step(engine, step, B=2, micro_batch=2):
    inputs, targets = batch(step, B)
    for start in range(0, B, micro_batch):
        rows = slice(start, start + micro_batch)
        engine.accumulate(inputs[rows], targets[rows], B // micro_batch)
    loss, norm = engine.reduce()
    engine.update(1e-2, 0.1, min(1.0, 1.0 / norm), step)
    return loss, norm


def same_bits(one, other):
    names = ("m", "v", "master")
    return all(torch.equal(one.state_arrays()[name], other.state_arrays()[name]) for name in names)


# ---- products and attention by NumPy -------------------------------------------------------------------------------


def value(array):
    return from_bf16(array) if array.dtype == np.uint16 else array


def put(out, result):
    out[...] = (to_bf16(result) if out.dtype == np.uint16 else result).reshape(out.shape)


def rows(array):
    return value(array).reshape(-1, array.shape[-1])


def on_host(function):
    """An operation of `kernels` that NumPy computes when its only launch is called."""

    def prepare(*arguments, **keywords):
        arrays = [None if x is None else as_array(x, function.__name__) for x in arguments]
        return [lambda: function(*arrays, **keywords)]

    return SimpleNamespace(prepare=prepare)


@on_host
def matmul_forward(out, inp, weight, bias=None):
    put(out, rows(inp) @ rows(weight).T + (0 if bias is None else value(bias)))


@on_host
def matmul_grad_input(grad_inp, grad_out, weight):
    put(grad_inp, rows(grad_out) @ rows(weight))


@on_host
def matmul_grad_weight(grad_weight, grad_out, inp):
    grad_weight += rows(grad_out).T @ rows(inp)


@on_host
def attention_forward(out, logsumexp, _scratch, qkv):
    result, logsumexp[...] = attention.attention_forward(value(qkv), logsumexp.shape[1])
    put(out, result)


@on_host
def attention_backward(grad_qkv, _scratch, grad_out, _out, qkv, logsumexp):
    put(grad_qkv, attention.attention_backward(value(grad_out), value(qkv), logsumexp.shape[1]))


HOST_OPERATIONS = {
    "matmul_forward": matmul_forward,
    "matmul_grad_input": matmul_grad_input,
    "matmul_grad_weight": matmul_grad_weight,
    "attention_forward": attention_forward,
    "attention_backward": attention_backward,
}


@pytest.fixture
def quick(monkeypatch):
    for name, operation in HOST_OPERATIONS.items():
        monkeypatch.setattr(passes, name, operation)


# ---- against float64 -----------------------------------------------------------------------------------------------


def plain_results(config, flat, inputs, targets, dtype):
    """Logits, losses and gradients by name of the plain model all of whose numbers are of one type."""
    model = GPT2(config)
    model.flat_parameters.copy_(flat)
    model.to(dtype)
    tokens = [torch.from_numpy(np.ascontiguousarray(x)) for x in (inputs, targets)]
    losses = model.losses(*tokens)
    losses.mean().backward()
    gradients = torch.zeros(n_parameters(config))
    for path, view in named_views(config, gradients):
        view.copy_(model.get_parameter(path).grad)
    logits = model(tokens[0])[..., : config.vocab_size].detach().float().numpy()
    return {"logits": logits, "losses": losses.detach().numpy(), **by_name(config, gradients.numpy())}


def engine_results(engine, inputs, targets):
    """The same of an engine; the gradients are those of one micro-step."""
    logits = engine.logits(inputs)[..., : engine.config.vocab_size].float().numpy()
    losses = engine.losses(inputs, targets).numpy()
    engine.accumulate(inputs, targets, 1)
    return {"logits": logits, "losses": losses, **by_name(engine.config, engine._gradients.numpy())}


def check_against_float64(config, dtype, recompute):
    """Each root mean square error is at most twice that of the plain version, or of two roundings."""
    flat = start_weights(config)
    torch_dtype, name_of_dtype = {"fp32": (torch.float32, "float32"), "bf16": (torch.bfloat16, "bfloat16")}[dtype]
    flat = flat.to(torch_dtype).float()
    engine = make_engine(config, dtype=dtype, recompute=recompute)
    engine.flat_parameters.copy_(flat)
    inputs, targets = batch(config=config)
    parameters = by_name(config, flat.numpy().astype(np.float64))
    logits, losses, gradients = reference_gpt2.forward_backward(
        parameters, inputs, targets, config.n_heads, config.vocab_size
    )
    truth = {"logits": logits, "losses": losses, **gradients}
    assert len(truth) == 18  # logits, losses, 16 gradients
    plain = plain_results(config, flat, inputs, targets, torch_dtype)
    ours = engine_results(engine, inputs, targets)
    for name, true in truth.items():
        assert ours[name].shape == true.shape

        def rms(x):
            return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))

        bound = 2 * max(rms(plain[name] - true), EPSILON[name_of_dtype] * rms(true))
        assert rms(ours[name] - true) <= bound, f"{name}: {rms(ours[name] - true)} above {bound}"
    assert engine.reduce()[0] == pytest.approx(float(ours["losses"].mean()), rel=1e-6)


@pytest.mark.slow
def test_logits_losses_and_all_16_gradients_in_fp32_with_every_kernel():
    check_against_float64(CONFIG, "fp32", recompute=2)


@pytest.mark.parametrize("recompute", [0, 2])
def test_logits_losses_and_all_16_gradients_in_fp32(quick, recompute):
    check_against_float64(CONFIG, "fp32", recompute)


def test_logits_losses_and_all_16_gradients_in_bf16():
    check_against_float64(ModelConfig.from_descriptor("d2,h2,c32,t8,v61"), "bf16", recompute=0)


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
    ours, theirs = make_engine(), make_engine(kind=TorchEngine)
    for step in range(1, 6):
        loss, norm = take_step(ours, step)
        assert (loss, norm) == pytest.approx(take_step(theirs, step), rel=1e-4)
    moved = (theirs.flat_parameters - start_weights()).norm()
    # the keys' biases have no gradient but rounding, which AdamW divides by its own size
    assert (ours.flat_parameters - theirs.flat_parameters).norm() < 5e-3 * moved


def test_two_runs_and_a_resume_have_the_same_bits_in_bf16(quick):
    first, second, resumed = (make_engine(dtype="bf16") for _ in range(3))
    for step in (1, 2):
        assert take_step(first, step) == take_step(second, step)
    assert same_bits(first, second)
    resumed.flat_parameters.copy_(first.flat_parameters)  # as a run loads a checkpoint
    resumed.load_state_arrays({name: array.numpy().copy() for name, array in first.state_arrays().items()})
    resumed.load_extra_state(first.extra_state())
    assert take_step(first, 3) == take_step(resumed, 3)
    assert same_bits(first, resumed)
    nearest = first.flat_parameters.to(torch.bfloat16)
    copy = first._read_parameters
    assert torch.equal(copy.view(torch.uint16), resumed._read_parameters.view(torch.uint16))
    assert 0.2 < (copy != nearest).float().mean() < 0.6  # it is rounded stochastically


def test_a_training_run_resumed_from_a_checkpoint_writes_the_same_files(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path / "data"))
    tokens = np.random.default_rng(0).integers(0, 61, 400)
    for split, start in (("train", 0), ("val", 300)):
        write_shard(tmp_path / f"toy_{split}_000000.bin", tokens[start : start + 300])
    flags = f"-i {tmp_path}/toy_train_*.bin -j {tmp_path}/toy_val_*.bin -o {tmp_path}/run -e d1,h2,c16,t8,v61 -t 8 -b 2"
    flags += " -d 16 -x 3 -n 2 -v 0 -s 0 -m 1 -l 0.01 --device cpu --backend numba --dtype bf16"
    train(parse_settings(flags.split()))
    last = [tmp_path / "run" / name for name in ("model_00000003.bin", "state_00000003_00000.bin")]
    whole = [path.read_bytes() for path in last]
    for path in (tmp_path / "run").glob("*_00000003*"):
        path.unlink()
    result = train(parse_settings([*flags.split(), "-y", "1"]))
    assert result.steps == 3
    assert result.tokens == 16  # one step
    assert [path.read_bytes() for path in last] == whole
    assert "backend: numba, kernels simulated" in capsys.readouterr().out


def test_bf16_steps_stay_near_fp32(quick):
    half, full = make_engine(dtype="bf16"), make_engine()
    for step in (1, 2):
        assert take_step(half, step) == pytest.approx(take_step(full, step), rel=3e-2)
    assert (half._read_parameters - half.flat_parameters).abs().max() < 0.02  # the copy follows the master weights


def test_losses_of_any_smaller_shape_and_samples(quick):
    engine, model = make_engine(), GPT2(CONFIG)
    model.flat_parameters.copy_(engine.flat_parameters)
    for B, T in ((2, 8), (1, 3), (2, 8)):
        inputs, targets = batch(B, B, T)
        expected = model.losses(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (inputs, targets)))
        torch.testing.assert_close(engine.losses(inputs, targets), expected.detach(), rtol=1e-5, atol=1e-5)
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
    ("settings", "dtype", "ranks", "message"),
    [
        ({}, "fp16", 1, "--dtype fp16"),
        ({"master_weights": 0}, "bf16", 1, "-w 0"),
        ({"zero_stage": 1}, "fp32", 2, "-z 1"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, dtype, ranks, message):
    with pytest.raises(UsageError, match=message):
        refuse(TrainConfig(**settings), CPU, dtype, ranks)


def test_where_it_cannot_run_is_said(monkeypatch):
    with pytest.raises(UsageError, match="--device cpu"):
        refuse(TrainConfig(), torch.device("cuda"), "fp32", 1)
    monkeypatch.setattr("gpt2edu.engine.SIMULATED", False)
    with pytest.raises(UsageError, match="NUMBA_ENABLE_CUDASIM=1"):
        refuse(TrainConfig(), CPU, "fp32", 1)


def test_the_flag_chooses_the_engine():
    for backend, kind in (("numba", NumbaEngine), ("torch", TorchEngine), (None, TorchEngine)):
        settings = TrainConfig(backend=backend, dtype="fp32")
        assert type(run.make_engine(CONFIG, settings, SingleProcess(), CPU)) is kind
