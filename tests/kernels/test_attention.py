from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from kernels import SIMULATED, host
from kernels.architecture import architecture, force_architecture
from kernels.attention import (
    LADDER,
    attention_backward,
    attention_forward,
    reference,
    step3_flash,
    step4_tensor_cores,
    step5_backward,
    step5_swizzled,
    step6_wgmma,
    step7_pipelined,
    swizzled_tiles,
)
from kernels.attention.hopper import piece_of_index_device
from kernels.launch import Launch
from kernels.simulator.execution import reversed_order

from numba import cuda  # isort: skip

DTYPES = ["float32", "bfloat16"]
SHAPES = [(1, 1, 1, 1), (2, 5, 2, 3), (1, 35, 1, 40)]  # B, T, H, D
TENSOR_CORE_SHAPES = [(2, 1, 1, 16), (1, 17, 2, 16), (1, 65, 1, 32), (1, 33, 1, 64), (1, 33, 1, 128)]
STEPS = [pytest.param(step, id=step.__name__.rpartition(".")[2]) for step in LADDER]


def random_case(shape, dtype):
    B, T, H, D = shape
    rng = np.random.default_rng(B * T * H * D)
    return [host.rounded(rng.standard_normal(s), dtype) for s in ((B, T, 3 * H * D), (B, T, H * D))]


def poisoned(shape, dtype):
    """An array of NaN: what is not written, or read before it is written, shows."""
    return host.to_device(np.full(shape, np.nan), dtype)


def check(result, expected, plain, dtype) -> None:
    assert host.max_error(result, expected) <= host.error_bound(plain, expected, dtype)


def run_once(prepared, *outputs) -> list[np.ndarray]:
    prepared()
    return [host.values(array) for array in outputs]


def check_forward(step, shape, dtype, execute):
    """Check the outputs, and return all arrays, which backward needs."""
    B, T, H, D = shape
    qkv, _ = random_case(shape, dtype)
    out, logsumexp = poisoned((B, T, H * D), dtype), poisoned((B, H, T), "float32")
    scratch, d_qkv = poisoned(step.attention_scratch_size(B, T, H), "float32"), host.to_device(qkv, dtype)
    results = execute(step.attention_forward.prepare(out, logsumexp, scratch, d_qkv), out, logsumexp)
    expected = reference.attention_forward(qkv, H)
    plain = reference.attention_forward(qkv.astype(np.float32), H)
    for result, wanted, yardstick, kind in zip(results, expected, plain, (dtype, "float32"), strict=True):
        check(result, wanted, yardstick, kind)
    return out, logsumexp, scratch, d_qkv


def check_both_directions(step, shape, dtype, execute) -> None:
    out, logsumexp, scratch, d_qkv = check_forward(step, shape, dtype, execute)
    qkv, grad_out = random_case(shape, dtype)
    H = shape[2]
    grad_qkv = poisoned(qkv.shape, dtype)
    arguments = grad_qkv, scratch, host.to_device(grad_out, dtype), out, d_qkv, logsumexp
    (result,) = execute(step.attention_backward.prepare(*arguments), grad_qkv)
    wanted = reference.attention_backward(grad_out, qkv, H)
    yardstick = reference.attention_backward(grad_out.astype(np.float32), qkv.astype(np.float32), H)
    check(result, wanted, yardstick, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS[:3])
def test_forward_and_backward(step, shape, dtype):
    check_both_directions(step, shape, dtype, run_once)


@pytest.mark.parametrize("shape", TENSOR_CORE_SHAPES)
def test_tensor_cores(shape):
    check_both_directions(step4_tensor_cores, shape, "bfloat16", run_once)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 40, 1, 64), (1, 33, 1, 128)])
def test_large_heads_in_float32(shape):
    check_both_directions(step3_flash, shape, "float32", run_once)


@pytest.mark.parametrize("step", STEPS[:2])
def test_same_bits_every_way(step, run_every_way):
    check_both_directions(step, (1, 5, 2, 3), "bfloat16", run_every_way)


@pytest.mark.parametrize(
    ("step", "shape", "dtype"),
    [
        pytest.param(step3_flash, (1, 2, 1, 3), "bfloat16", id="step3_flash-small"),
        pytest.param(step3_flash, (1, 35, 1, 5), "float32", id="step3_flash-several", marks=pytest.mark.slow),
        pytest.param(step4_tensor_cores, (1, 2, 2, 16), "bfloat16", id="step4_tensor_cores-small"),
        pytest.param(
            step4_tensor_cores, (1, 130, 1, 16), "bfloat16", id="step4_tensor_cores-several", marks=pytest.mark.slow
        ),
    ],
)
def test_tiles_have_the_same_bits_every_way(step, shape, dtype, run_every_way):
    check_both_directions(step, shape, dtype, run_every_way)


@pytest.mark.parametrize("step", STEPS)
def test_the_future_is_not_seen(step):
    """A change of later tokens changes nothing before them; nor do gradients flow to later tokens."""
    check_the_future_is_not_seen(step, T=5, D=16)


def check_the_future_is_not_seen(step, T, D):
    B, H, last = 1, 1, T - 2
    results = []
    for change in (0.0, 100.0):
        qkv, grad_out = random_case((B, T, H, D), "bfloat16")
        qkv[:, last:] += change
        grad_out[:, last:] = 0
        results.append(run_both_directions(step, qkv, grad_out, H))
    for before, after in zip(*results, strict=True):
        np.testing.assert_array_equal(before[:, :last], after[:, :last])
    out, grad_qkv = results[1]
    assert (out[:, last:] != results[0][0][:, last:]).any()
    assert (grad_qkv[:, last:] == 0).all()


def run_both_directions(step, qkv, grad_out, H):
    B, T, C = grad_out.shape
    d_qkv, d_grad_out = (host.to_device(x, "bfloat16") for x in (qkv, grad_out))
    out, grad_qkv = (host.to_device(np.zeros_like(x), "bfloat16") for x in (grad_out, qkv))
    logsumexp = host.to_device(np.zeros((B, H, T)), "float32")
    scratch = host.to_device(np.zeros(step.attention_scratch_size(B, T, H)), "float32")
    step.attention_forward(out, logsumexp, scratch, d_qkv)
    step.attention_backward(grad_qkv, scratch, d_grad_out, out, d_qkv, logsumexp)
    return host.values(out), host.values(grad_qkv)


def test_tensor_cores_are_used_when_they_can_be_fed():
    def kernel_of(D, dtype, offset=0):
        flat = host.to_device(np.zeros(6 * D + 8), dtype)[offset : offset + 6 * D]
        out, rows = host.to_device(np.zeros((1, 2, D)), dtype), host.to_device(np.zeros((1, 1, 2)), "float32")
        qkv = flat.reshape(1, 2, 3 * D)
        return step4_tensor_cores.attention_forward.prepare(out, rows, rows.reshape(2), qkv)[0].kernel

    for D in step4_tensor_cores.HEAD_SIZES:
        assert kernel_of(D, "bfloat16") is step4_tensor_cores.FORWARD_KERNELS[D]
    for case in [(64, "float32"), (48, "bfloat16"), (64, "bfloat16", 1)]:
        assert kernel_of(*case) is step3_flash.attention_forward_kernel


# ---- swizzled tiles -------------------------------------------------------------------------------------------------


def run_both_orders(prepared, *outputs) -> list[np.ndarray]:
    """Run twice, in the simulator the second time backwards; the bits must be the same."""
    first = run_once(prepared, *outputs)
    if SIMULATED:
        with reversed_order():
            second = run_once(prepared, *outputs)
    else:
        second = run_once(prepared, *outputs)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)
    return first


def sizes_for_swizzled_tiles():
    """B, T, H, D: one query, a tile in part, several tiles and blocks; on a GPU also long loops."""
    small = [(1, 1, 1, 64), (1, 70, 1, 64), (1, 40, 1, 128)]
    slow = [(2, 17, 3, 64), (1, 130, 1, 64), (1, 70, 2, 128)]
    large = [(2, 1000, 3, 64), (1, 1023, 2, 64), (1, 1000, 2, 128), (3, 2049, 5, 64), (2, 511, 3, 128)]
    return small + [pytest.param(size, marks=pytest.mark.slow) for size in slow] + ([] if SIMULATED else large)


@pytest.mark.parametrize("shape", sizes_for_swizzled_tiles())
def test_swizzled_tiles(shape):
    check_both_directions(step5_swizzled, shape, "bfloat16", run_both_orders)


def test_swizzled_tiles_have_the_same_bits_every_way(run_every_way):
    check_both_directions(step5_swizzled, (1, 3, 1, 64), "bfloat16", run_every_way)


def test_swizzled_tiles_do_not_see_the_future():
    check_the_future_is_not_seen(step5_swizzled, T=20, D=64)


def prepared_kernels(D, dtype, offset=0):
    """The kernels that are launched for one head of D, whose qkv begins at element `offset`."""
    qkv = host.to_device(np.zeros(6 * D + 8), dtype)[offset : offset + 6 * D].reshape(1, 2, 3 * D)
    out, rows = host.to_device(np.zeros((1, 2, D)), dtype), host.to_device(np.zeros((1, 1, 2)), "float32")
    scratch, grad_qkv = rows.reshape(2), host.to_device(np.zeros((1, 2, 3 * D)), dtype)
    launches = [
        *step5_swizzled.attention_forward.prepare(out, rows, scratch, qkv),
        *step5_swizzled.attention_backward.prepare(grad_qkv, scratch, out, out, qkv, rows),
    ]
    return [launch.kernel for launch in launches]


def test_swizzled_tiles_are_used_when_they_can_be_fed():
    for D in (64, 128):
        tiled = [
            step5_swizzled.FORWARD_KERNELS,
            step5_backward.GRAD_QUERY_KERNELS,
            step5_backward.GRAD_KEY_VALUE_KERNELS,
        ]
        assert prepared_kernels(D, "bfloat16") == [kernels[D].kernel for kernels in tiled]
    assert prepared_kernels(32, "bfloat16")[0] is step4_tensor_cores.FORWARD_KERNELS[32]
    for case in [(64, "float32"), (48, "bfloat16"), (64, "bfloat16", 1)]:
        assert prepared_kernels(*case)[0] is step3_flash.attention_forward_kernel


@cuda.jit
def places_kernel(place_NP, n_heads, n_tiles, group, H):
    """Write down the place of each block."""
    place = swizzled_tiles.place_of_block(n_heads, n_tiles, group, H)
    for p in range(4):
        place_NP[cuda.blockIdx.x, p] = place[p]


@pytest.mark.parametrize(("B", "H", "n_tiles", "group"), [(2, 3, 4, 4), (1, 5, 3, 2), (3, 1, 2, 64), (2, 2, 1, 1)])
def test_every_tile_of_every_head_has_a_block(B, H, n_tiles, group):
    places = host.to_device(np.full((B * H * n_tiles, 4), -1))
    Launch(places_kernel, B * H * n_tiles, 1, (places, B * H, n_tiles, group, H))()
    b, h, head, tile = host.to_host(places).T
    np.testing.assert_array_equal(b * H + h, head)
    np.testing.assert_array_equal(np.sort(head * n_tiles + tile), np.arange(B * H * n_tiles))
    assert (h < H).all()
    expected = [(head // group, tile) for head, tile in zip(head, tile, strict=True)]
    assert expected == sorted(expected)  # group after group, and in it tile after tile


def scaled_case(B, T, H, D, scale):
    generator = torch.Generator("cuda").manual_seed(T)
    draw = [torch.randn(B, T, n * H * D, generator=generator, device="cuda") for n in (3, 1)]
    return (draw[0] * scale).bfloat16(), draw[1].bfloat16()


def attend(qkv, grad_out, H, dtype):
    """Output and gradient of torch's attention, which is flash attention for bfloat16, and the formula for float64."""
    tensor = qkv.to(dtype).requires_grad_()
    q, k, v = (x.unflatten(2, (H, -1)).transpose(1, 2) for x in tensor.chunk(3, dim=2))
    backend = (
        torch.nn.attention.SDPBackend.FLASH_ATTENTION if dtype == torch.bfloat16 else torch.nn.attention.SDPBackend.MATH
    )
    with torch.nn.attention.sdpa_kernel(backend):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    out.backward(grad_out.to(dtype))
    return [x.double() for x in (out.detach(), *tensor.grad.chunk(3, dim=2))]


@pytest.mark.skipif(SIMULATED, reason="torch's flash attention needs a GPU")
@pytest.mark.parametrize(
    "step", [pytest.param(step, id=step.__name__[-12:]) for step in (step5_swizzled, step7_pipelined)]
)
@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize(("T", "D"), [(17, 64), (1000, 64), (1023, 64), (1024, 64), (1023, 128)])
def test_errors_are_those_of_flash_attention(T, D, scale, step):
    B, H = 2, 3
    qkv, grad_out = scaled_case(B, T, H, D, scale)
    out, grad_qkv = torch.full_like(grad_out, torch.nan), torch.full_like(qkv, torch.nan)
    logsumexp, scratch = (
        torch.full((n,), torch.nan, device="cuda") for n in (B * H * T, step.attention_scratch_size(B, T, H))
    )
    logsumexp = logsumexp.view(B, H, T)
    step.attention_forward(out, logsumexp, scratch, qkv)
    step.attention_backward(grad_qkv, scratch, grad_out, out, qkv, logsumexp)
    ours = [x.double() for x in (out, *grad_qkv.chunk(3, dim=2))]
    expected, flash = attend(qkv, grad_out, H, torch.float64), attend(qkv, grad_out, H, torch.bfloat16)
    for result, wanted, theirs in zip(ours, expected, flash, strict=True):
        assert (result - wanted).abs().max() <= 1.2 * (theirs - wanted).abs().max()


@pytest.mark.skipif(SIMULATED, reason="texts of this length take a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [64, 128])
@pytest.mark.parametrize("T", [1, 17, 1000, 1023])
def test_odd_lengths(T, D, dtype):
    """What is used, whichever kernels that is."""
    check_both_directions(step7_pipelined, (2, T, 2, D), dtype, run_once)


# ---- Hopper --------------------------------------------------------------------------------------------------------

HOPPER_CHECKS = {step6_wgmma: check_forward, step7_pipelined: check_both_directions}
HOPPER_STEPS = [pytest.param(step, id=step.__name__.rpartition(".")[2]) for step in HOPPER_CHECKS]


@pytest.fixture
def hopper():
    """Let the Hopper kernels be taken, in the simulator too."""
    if SIMULATED:
        force_architecture("sm_90a")
    elif architecture() != "sm_90a":
        pytest.skip("this GPU has no wgmma")
    yield
    force_architecture(None)


def sizes_for_hopper():
    """B, T, H: one query, one tile, the middle of a second one, a whole block; on a GPU also long loops, and odd T."""
    small = [(1, 1, 1), (1, 64, 1), (2, 65, 1), (1, 193, 1)]
    slow = [pytest.param((1, 450, 1), marks=pytest.mark.slow)]
    return small + (slow if SIMULATED else [(1, 17, 2), (2, 1000, 3), (1, 1023, 2), (3, 2049, 5)])


@pytest.mark.parametrize("size", sizes_for_hopper())
@pytest.mark.parametrize("step", HOPPER_STEPS)
def test_warp_groups(step, size, hopper):
    """The values of many iterations matter: ptxas has been seen to overwrite registers that a loop does not change."""
    HOPPER_CHECKS[step](step, (*size, 64), "bfloat16", run_once)


@pytest.mark.parametrize("step", HOPPER_STEPS)
def test_warp_groups_have_the_same_bits_every_way(step, hopper, run_every_way):
    HOPPER_CHECKS[step](step, (2, 3, 1, 64), "bfloat16", run_every_way)


def test_warp_groups_do_not_see_the_future(hopper):
    check_the_future_is_not_seen(step7_pipelined, T=70, D=64)


def test_large_scores_are_rescaled(hopper):
    """Scores that grow from the last keys to the first by far more than the growth that needs no rescaling."""
    qkv, _ = random_case((1, 300, 1, 64), "bfloat16")
    qkv[:, :150, 64:128] = host.rounded(qkv[:, :150, 64:128] * 40, "bfloat16")
    out, logsumexp = poisoned((1, 300, 64), "bfloat16"), poisoned((1, 1, 300), "float32")
    scratch = poisoned(step7_pipelined.attention_scratch_size(1, 300, 1), "float32")
    step7_pipelined.attention_forward(out, logsumexp, scratch, host.to_device(qkv, "bfloat16"))
    expected = reference.attention_forward(qkv, 1)
    plain = reference.attention_forward(qkv.astype(np.float32), 1)
    check(host.values(out), expected[0], plain[0], "bfloat16")
    check(host.values(logsumexp), expected[1], plain[1], "float32")


@pytest.mark.parametrize("step", HOPPER_STEPS)
def test_warp_groups_are_used_when_they_can_be(step, hopper):
    def module_of(D, dtype):
        out, rows = poisoned((1, 2, D), dtype), poisoned((1, 1, 2), "float32")
        scratch = poisoned(step.attention_scratch_size(1, 2, 1), "float32")
        return step.attention_forward.prepare(out, rows, scratch, poisoned((1, 2, 3 * D), dtype))[0].kernel.__module__

    assert module_of(64, "bfloat16") == step.__name__
    assert module_of(64, "float32") != step.__name__
    assert module_of(32, "bfloat16") != step.__name__
    force_architecture("sm_80")
    assert module_of(64, "bfloat16") != step.__name__


@cuda.jit
def pieces_kernel(out_I4, n_pieces, n_heads, H, together):
    i = cuda.grid(1)
    if i < out_I4.shape[0]:
        piece = piece_of_index_device(i, n_pieces, n_heads, H, together)
        out_I4[i, 0], out_I4[i, 1], out_I4[i, 2], out_I4[i, 3] = piece.b, piece.head, piece.column, piece.number


@pytest.mark.parametrize("together", [1, 4, 66])
def test_every_piece_of_work_is_done_once_and_long_ones_first(together):
    B, H, n_pieces = 5, 2, 3
    out = host.to_device(np.full((B * H * n_pieces, 4), -1, np.int64))
    pieces_kernel[1, 32](out, n_pieces, B * H, H, together)
    pieces = host.to_host(out).tolist()
    wanted = {(head // H, head, head % H * 64, number) for head in range(B * H) for number in range(n_pieces)}
    assert sorted(map(tuple, pieces)) == sorted(wanted)
    for first in range(0, B * H, together):
        numbers = [number for _, head, _, number in pieces if first <= head < first + together]
        assert numbers == sorted(numbers)


# ---- all steps -----------------------------------------------------------------------------------------------------


def test_reference_is_torch():
    qkv, grad_out = random_case((2, 5, 3, 4), "float32")
    tensor = torch.tensor(qkv, requires_grad=True)
    q, k, v = (x.reshape(2, 5, 3, 4).transpose(1, 2) for x in tensor.split(12, dim=2))
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(2, 5, 12)
    np.testing.assert_allclose(reference.attention_forward(qkv, 3)[0], out.detach().numpy(), atol=1e-12)
    out.backward(torch.tensor(grad_out))
    np.testing.assert_allclose(reference.attention_backward(grad_out, qkv, 3), tensor.grad.numpy(), atol=1e-12)


def test_refusals_and_signatures():
    def arrays(H, C=8, E=24, S=1000):
        shapes = (1, 3, C), (1, H, 3), (S,), (1, 3, E)
        return [host.to_device(np.zeros(shape), "float32") for shape in shapes]

    attention_forward(*arrays(2))
    with pytest.raises(ValueError, match="8 channels and a qkv of 24 do not belong to 3 heads"):
        attention_forward(*arrays(3))
    with pytest.raises(ValueError, match="scratch_S has 255 elements; 256 are needed"):
        attention_forward(*arrays(2, S=255))
    with pytest.raises(ValueError, match="scratch_S has 35 elements; 36 are needed"):
        LADDER[0].attention_forward(*arrays(2, S=35))
    with pytest.raises(ValueError, match="the head size is 136; at most 128"):
        attention_forward(*arrays(1, 136, 408))
    out, logsumexp, scratch, qkv = arrays(1, 136, 408)
    with pytest.raises(ValueError, match="the head size is 136; at most 128"):
        attention_backward(qkv, scratch, out, out, qkv, logsumexp)
    for name in ("attention_forward", "attention_backward"):
        assert len({inspect.signature(getattr(step, name)) for step in LADDER}) == 1
