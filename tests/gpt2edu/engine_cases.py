"""What the tests of the numba engine share: a tiny model with random weights, its steps, and the float64 reference.

The tensors are where the kernels run: on the GPU, or on the CPU in the simulator.
"""

import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

import kernels
from gpt2edu.config import ModelConfig, TrainConfig
from gpt2edu.distributed import SingleProcess
from gpt2edu.engine import NumbaEngine
from gpt2edu.model import GPT2, named_views
from gpt2edu.parameters import n_parameters, parameter_layout
from kernels.host import EPSILON

sys.path.insert(0, str(Path(__file__).parent))
import reference_gpt2

CONFIG = ModelConfig.from_descriptor("d2,h2,c16,t8,v61")
CPU = torch.device("cpu")
DEVICE = CPU if kernels.SIMULATED else torch.device("cuda")


def start_weights(config=CONFIG, seed=1):
    """Weights all of which are random, so that no bias hides behind a zero; padding rows are 0."""
    model = GPT2(config)
    model.init_weights(seed)
    model.flat_parameters += 0.1 * torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(seed))
    model.wte.weight.data[config.vocab_size :] = 0
    return model.flat_parameters


def make_engine(config=CONFIG, kind=NumbaEngine, **settings):
    settings = {"dtype": "fp32", "seq_len": config.max_seq_len, "recompute": 0, **settings}
    engine = kind(config, TrainConfig(**settings), SingleProcess(), DEVICE)
    engine.flat_parameters.copy_(start_weights(config))
    return engine


def batch(seed=0, B=2, T=7, config=CONFIG):
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (B, T + 1))
    tokens[0, :2] = config.vocab_size - 1  # the last real column, twice
    return tokens[:, :-1], tokens[:, 1:]


def by_name(config, flat):
    return {t.name: t.view(flat) for t in parameter_layout(config)}


def take_step(engine, step, B=2, micro_batch=2, T=7):
    inputs, targets = batch(step, B, T, engine.config)
    for start in range(0, B, micro_batch):
        rows = slice(start, start + micro_batch)
        engine.accumulate(inputs[rows], targets[rows], B // micro_batch)
    loss, norm = engine.reduce()
    engine.update(1e-2, 0.1, min(1.0, 1.0 / norm), step)
    return loss, norm


def state(engine):
    """Weights and moments, and the weights that the kernels read."""
    return {"weights": engine.flat_parameters, "rounded": engine._read_parameters, **engine.state_arrays()}


def same_bits(one, other):
    """Whether two engines have the same weights and moments."""
    one, other = state(one), state(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def save(engine):
    """What a checkpoint keeps of an engine."""
    arrays = {name: array.cpu().numpy().copy() for name, array in engine.state_arrays().items()}
    return engine.flat_parameters.cpu().clone(), arrays, engine.extra_state()


def load(engine, saved):
    """Bring an engine to where another was saved, as a run does."""
    flat_parameters, arrays, extra = saved
    engine.flat_parameters.copy_(flat_parameters)
    engine.load_state_arrays(arrays)
    engine.load_extra_state(extra)


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
    """The same of an engine; the gradients are those of one micro-step, on a GPU of the third: out of its graph."""
    for _ in range(1 if kernels.SIMULATED else 3):
        logits = engine.logits(inputs)[..., : engine.config.vocab_size].float().cpu().numpy()
        engine.accumulate(inputs, targets, 1)
        gradients = engine._gradients.cpu().numpy()
        loss, norm = engine.reduce()
    assert norm == pytest.approx(np.linalg.norm(gradients), rel=1e-5)
    losses = engine.losses(inputs, targets).cpu().numpy()
    assert loss == pytest.approx(float(losses.mean()), rel=1e-6)
    return {"logits": logits, "losses": losses, **by_name(engine.config, gradients)}


def check_against_float64(config, dtype, recompute, T=7, n_batches=4, **settings):
    """Each error, the root mean square over a few batches and weights, is at most twice that of the plain version.

    Over one batch either error of a small tensor may be lucky. Two roundings are always allowed.
    """
    torch_dtype, name_of_dtype = {"fp32": (torch.float32, "float32"), "bf16": (torch.bfloat16, "bfloat16")}[dtype]
    engine = make_engine(config, dtype=dtype, recompute=recompute, **settings)
    squared_errors, squared_bounds = defaultdict(float), defaultdict(float)
    for seed in range(n_batches):
        flat = start_weights(config, seed).to(torch_dtype).float()
        engine.flat_parameters.copy_(flat)
        inputs, targets = batch(seed, T=T, config=config)
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
            rounding = EPSILON[name_of_dtype] ** 2 * mean_square(true)
            squared_errors[name] += mean_square(ours[name] - true)
            squared_bounds[name] += 2**2 * max(mean_square(plain[name] - true), rounding)
    for name, bound in squared_bounds.items():
        assert squared_errors[name] <= bound, f"{name}: {squared_errors[name] ** 0.5} above {bound**0.5}"


def mean_square(x):
    return float(np.mean(np.square(x, dtype=np.float64)))
