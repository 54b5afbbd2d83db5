"""AdamW against a NumPy float64 version, cut into shards, and the loss scaler."""

import math

import numpy as np
import pytest
import torch

from gpt2edu.config import ModelConfig
from gpt2edu.optimizer import FlatAdamW, LossScaler, merge_shards
from gpt2edu.parameters import n_parameters, parameter_layout, shards_of_rank

CONFIG = ModelConfig(max_seq_len=8, vocab_size=100, padded_vocab_size=128, n_layers=2, n_heads=2, channels=16)
N = n_parameters(CONFIG)


def random_flat(seed, scale=1.0):
    return torch.randn(N, generator=torch.Generator().manual_seed(seed)) * scale


def adamw_numpy(parameters, gradients, *, rates, weight_decay, steps):
    """Algorithm 2 of Loshchilov & Hutter (2019) with the learning rate times the decay, in float64."""
    decay_n = np.zeros(N)
    for tensor in parameter_layout(CONFIG):
        if tensor.name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw"):
            decay_n[tensor.offset : tensor.offset + tensor.size] = weight_decay
    theta, m, v = parameters.astype(np.float64), np.zeros(N), np.zeros(N)
    for gradient, rate, t in zip(gradients, rates, steps, strict=True):
        m = 0.9 * m + 0.1 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.95**t)
        theta = theta - rate * (m_hat / (np.sqrt(v_hat) + 1e-8) + decay_n * theta)
    return theta, m, v


def test_spans_cover_the_buffer_once_and_split_only_where_the_decay_changes():
    spans = merge_shards(shards_of_rank(CONFIG, 0, 1))
    assert len(spans) == 10
    assert [span.offset for span in spans] == [span.state_offset for span in spans]
    assert sum(span.size for span in spans) == N
    assert all(a.offset + a.size == b.offset and a.decayed != b.decayed for a, b in zip(spans, spans[1:], strict=False))


def test_five_steps_equal_numpy():
    parameters, gradients = random_flat(0), torch.zeros(N)
    optimizer = FlatAdamW(parameters, gradients, shards_of_rank(CONFIG, 0, 1))
    start = parameters.numpy().copy()
    each_step = [random_flat(seed) for seed in range(1, 6)]
    rates, steps = [1e-3, 2e-3, 3e-3, 2e-3, 1e-3], [1, 2, 3, 5, 6]  # step 4 was skipped
    for gradient, rate, step in zip(each_step, rates, steps, strict=True):
        gradients.copy_(4.0 * gradient)
        optimizer.update(rate, weight_decay=0.1, grad_scale=0.25, step=step)
    expected, m, v = adamw_numpy(start, [g.numpy() for g in each_step], rates=rates, weight_decay=0.1, steps=steps)
    np.testing.assert_allclose(parameters, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.m, m, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.v, v, rtol=1e-5, atol=1e-6)


def test_without_gradients_only_the_six_matrices_shrink():
    parameters = torch.ones(N)
    FlatAdamW(parameters, torch.zeros(N), shards_of_rank(CONFIG, 0, 1)).update(0.1, 0.5, 1.0, 1)
    for tensor in parameter_layout(CONFIG):
        is_matrix = tensor.name in ("wte", "wpe", "qkvw", "attprojw", "fcw", "fcprojw")
        torch.testing.assert_close(tensor.view(parameters), torch.full(tensor.shape, 0.95 if is_matrix else 1.0))


@pytest.mark.parametrize("world_size", [2, 4])
def test_shards_updated_apart_equal_the_whole_bit_for_bit(world_size):
    whole, sharded = random_flat(0), random_flat(0)
    gradients = torch.zeros(N)
    one = FlatAdamW(whole, gradients, shards_of_rank(CONFIG, 0, 1))
    ranks = [FlatAdamW(sharded, gradients, shards_of_rank(CONFIG, r, world_size)) for r in range(world_size)]
    for step in range(1, 4):
        gradients.copy_(random_flat(step))
        for optimizer in (one, *ranks):
            optimizer.update(1e-2, 0.1, 1.0, step)
    assert torch.equal(whole, sharded)
    for rank, optimizer in enumerate(ranks):
        assert optimizer.m.numel() * world_size == N
        for shard in shards_of_rank(CONFIG, rank, world_size):
            own = slice(shard.state_offset, shard.state_offset + shard.size)
            assert torch.equal(optimizer.v[own], one.v[shard.offset : shard.offset + shard.size])


def test_the_loss_scale_halves_on_overflow_and_doubles_after_its_interval():
    scaler = LossScaler(scale=1024.0, growth_interval=3)
    assert scaler.update(2.0, math.inf)
    assert scaler.scale == 512.0
    assert [scaler.update(2.0, 1.0) for _ in range(3)] == [False] * 3
    assert (scaler.scale, scaler.good_steps) == (1024.0, 0)


def test_a_bad_loss_and_a_bad_gradient_at_the_smallest_scale_are_no_overflow():
    assert not LossScaler().update(math.nan, math.nan)
    scaler = LossScaler(scale=2.0)
    assert scaler.update(2.0, math.nan)
    assert not scaler.update(2.0, math.nan)
    assert scaler.scale == 1.0
