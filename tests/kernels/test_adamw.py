from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from kernels import host
from kernels.adamw import LADDER, adamw_update, reference, round_weights
from kernels.adamw.common import mix, round_stochastically_device
from kernels.elements import store

from numba import cuda  # isort: skip

SIZES = [[1], [5, 14], [8, 3, 24, 5], [500, 501]]  # elements of each tensor
STEPS = [pytest.param(step, id=step.__name__.rpartition(".")[2]) for step in LADDER]
NUMBERS = {"learning_rate": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "grad_scale": 0.7}


def random_case(sizes):
    n = sum(sizes)
    rng = np.random.default_rng(n)
    master, m, grad = (rng.standard_normal(n).astype(np.float32) for _ in range(3))
    v = rng.uniform(0, 1, n).astype(np.float32)
    decay = rng.uniform(0, 0.3, len(sizes)).astype(np.float32)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return master, m, v, grad, bounds, decay


@pytest.mark.parametrize("with_copy", [True, False])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("step", STEPS)
def test_update(step, sizes, with_copy, run_every_way):
    master, m, v, grad, bounds, decay = random_case(sizes)
    state = [host.to_device(x) for x in (master, m, v)]
    param = host.to_device(np.zeros(master.size), "bfloat16") if with_copy else None
    inputs = [host.to_device(x) for x in (grad, bounds, decay)]
    prepared = step.adamw_update.prepare(param, *state, *inputs, **NUMBERS, step=3, seed=9)
    *results, copy = run_every_way(prepared, *state, *([param] if with_copy else [state[0]]))

    def formula(real):
        arrays = (x.astype(real) for x in (master, m, v, grad, np.repeat(decay, sizes)))
        return reference.adamw_update(*arrays, **NUMBERS, step=3)

    for result, wanted, yardstick in zip(results, formula(np.float64), formula(np.float32), strict=True):
        assert host.max_error(result, wanted) <= host.error_bound(yardstick, wanted, "float32")
    if with_copy:
        bits = results[0].astype(np.float32).view(np.uint32)
        below = (bits >> 16 << 16).view(np.float32)
        above = ((bits >> 16) + 1 << 16).astype(np.uint32).view(np.float32)
        assert ((copy == below) | (copy == above)).all()


def test_all_steps_give_the_same_bits():
    case = random_case([8, 3, 24, 5])
    copies = []
    for step in LADDER:
        state = [host.to_device(x) for x in case[:3]]
        param = host.to_device(np.zeros(40), "bfloat16")
        step.adamw_update(param, *state, *(host.to_device(x) for x in case[3:]), **NUMBERS, step=2, seed=5)
        copies.append([host.to_host(x) for x in (param, *state)])
    for other in copies[1:]:
        for ours, theirs in zip(copies[0], other, strict=True):
            np.testing.assert_array_equal(ours, theirs)


def rounded_copies(value: float, seeds: range, n: int = 64) -> np.ndarray:
    """The bfloat16 copies of a weight that an update with learning rate 0 leaves as it is."""
    zeros = [host.to_device(np.zeros(n), "float32") for _ in range(3)]
    master, param = host.to_device(np.full(n, value), "float32"), host.to_device(np.zeros(n), "bfloat16")
    bounds, decay = host.to_device(np.array([0, n])), host.to_device(np.zeros(1), "float32")
    copies = []
    for seed in seeds:
        adamw_update(param, master, *zeros, bounds, decay, learning_rate=0.0, seed=seed)
        copies.append(host.values(param))
    return np.array(copies)


def test_stochastic_rounding_has_the_right_mean():
    value = np.float32(1 + 0.3 * 2.0**-7)  # 30 % of the way from 1 to the next bfloat16
    copies = rounded_copies(value, range(40))
    assert set(np.unique(copies)) == {1.0, 1 + 2.0**-7}
    share = (copies > 1).mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / copies.size)
    assert (copies[0] != copies[1]).any(), "another seed gives other bits"
    by_element = (copies > 1).mean(axis=0)
    assert by_element.std() < 0.15, "no element is favoured"


def test_pieces_are_rounded_as_the_whole_is():
    n, seed = 61, 7
    master = np.random.default_rng(5).standard_normal(n).astype(np.float32)
    whole, state = host.to_device(np.zeros(n), "bfloat16"), [host.to_device(np.zeros(n), "float32") for _ in range(3)]
    one, decay = host.to_device(np.array([0, n])), host.to_device(np.zeros(1), "float32")
    adamw_update(whole, host.to_device(master), *state, one, decay, learning_rate=0.0, seed=seed)
    places, sizes = np.array([3, 20, 21, 40]), np.array([6, 1, 9, 20])  # odd and even ones
    chosen = np.concatenate([np.arange(place, place + size) for place, size in zip(places, sizes, strict=True)])
    bounds = host.to_device(np.concatenate([[0], np.cumsum(sizes)]))
    pieces = host.to_device(np.zeros(chosen.size), "bfloat16")
    round_weights(pieces, host.to_device(master[chosen]), bounds, host.to_device(places), seed=seed)
    np.testing.assert_array_equal(host.to_host(pieces), host.to_host(whole)[chosen])
    assert (host.to_host(pieces) != host.to_host(host.to_device(master[chosen], "bfloat16"))).any()
    with pytest.raises(ValueError, match="4 pieces in place_S need 5 bounds_M, not 2"):
        round_weights(pieces, host.to_device(master[chosen]), one, host.to_device(places))


@cuda.jit
def round_kernel(out_N, inp_N, random_N):
    i = cuda.grid(1)
    store(out_N, i, round_stochastically_device(inp_N[i], random_N[i]))


def test_rounding_follows_its_definition():
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, 256, dtype=np.uint32)
    bits[:6] = 0x7FFFFFFF, 0x7F800000, 0xFF800000, 0x80000000, 0x7F7FFFFF, 1
    random = rng.integers(0, 2**16, 256, dtype=np.int32)
    random[4] = 0xFFFF
    out = host.to_device(np.zeros(256), "bfloat16")
    round_kernel[1, 256](out, host.to_device(bits.view(np.float32)), host.to_device(random))
    x, low = bits.view(np.float32), bits & 0xFFFF
    moved = (bits >> 16) + (low + random >= 2**16)  # away from zero in low / 2**16 of the cases
    expected = np.where(np.isnan(x), 0x7FFF, np.where(np.isinf(x), bits >> 16, moved))
    np.testing.assert_array_equal(host.to_host(out), expected.astype(np.uint16))
    assert expected[4] == 0x7F80  # beyond the greatest bfloat16 is infinity


def test_hash_is_the_published_one():
    x = np.random.default_rng(4).integers(0, 2**32, 10000, dtype=np.uint32)
    expected = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    expected = (expected ^ (expected >> 15)) * np.uint32(0x846CA68B)
    np.testing.assert_array_equal([mix(int(i)) for i in x], expected ^ (expected >> 16))


def test_reference_is_torch():
    master, m, v, grad, *_ = random_case([20])
    weight = torch.tensor(master.astype(np.float64), requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.2)
    ours = master.astype(np.float64), np.zeros(20), np.zeros(20)
    for step in (1, 2, 3):
        weight.grad = torch.tensor(grad.astype(np.float64) * step)
        optimizer.step()
        numbers = NUMBERS | {"grad_scale": float(step)}
        ours = reference.adamw_update(*ours, grad.astype(np.float64), np.full(20, 0.2), **numbers, step=step)
    np.testing.assert_allclose(ours[0], weight.detach().numpy(), atol=1e-12)


def test_refusals_and_signatures():
    arrays = [host.to_device(x) for x in random_case([4, 5])]
    with pytest.raises(ValueError, match="counts from 1"):
        adamw_update(None, *arrays, learning_rate=0.1, step=0)
    with pytest.raises(ValueError, match="2 tensors in decay_S need 3 bounds_M, not 2"):
        adamw_update(None, *arrays[:4], arrays[4][:2], arrays[5], learning_rate=0.1)
    assert len({inspect.signature(step.adamw_update) for step in LADDER}) == 1
