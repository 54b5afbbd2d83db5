from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

from kernels import SIMULATED, host
from kernels import reference as elementwise
from kernels.architecture import architecture, force_architecture
from kernels.matmul import (
    LADDER,
    bias_scratch_size,
    matmul_forward,
    matmul_grad_bias,
    matmul_grad_input,
    matmul_grad_weight,
    reference,
    slices,
    step3_shared_tiles,
    step4_register_tiles,
    step5_tensor_cores,
    step6_swizzle,
    step7_multistage,
    step8_wgmma,
    step9_tma_ring,
    step10_warp_specialization,
    step11_hidden_epilogue,
    tensor_tiles,
    weight_gradient,
)

DTYPES = ["float32", "bfloat16"]
HOPPER_LADDER = [step8_wgmma, step9_tma_ring, step10_warp_specialization, step11_hidden_epilogue]


def by_name(steps) -> list:
    return [pytest.param(step, id=step.__name__.rpartition(".")[2]) for step in steps]


TENSOR_CORE_LADDER = [step5_tensor_cores, step6_swizzle, step7_multistage]
STEPS = by_name(LADDER[:4])
TENSOR_CORE_STEPS = by_name(TENSOR_CORE_LADDER)
HOPPER_STEPS = by_name(HOPPER_LADDER)
SHAPES = [(1, 1, 1), (5, 19, 7), (35, 3, 18)]  # M, N, K
TENSOR_CORE_SHAPES = [(8, 24, 40), (72, 24, 136)]


def random_case(shape, dtype):
    M, N, K = shape
    rng = np.random.default_rng(M * N * K)
    return [host.rounded(rng.standard_normal(s), dtype) for s in ((M, K), (N, K), (N,), (M, N))]


def check(result, formula, arguments, dtype, before=0.0) -> None:
    """Compare with the formula in float64; the yardstick is the formula in float32, rounded to the dtype."""
    expected = before + formula(*arguments)
    plain = before + formula(*(x.astype(np.float32) for x in arguments))
    bound = host.error_bound(plain, expected, dtype)
    terms = formula(*(np.abs(x) for x in arguments))  # what cancels in a sum counts with its size
    assert host.max_error(result, expected) <= max(bound, 4 * host.EPSILON["float32"] * terms.max())


def check_all_products(step, shape, dtype, execute, options=(True, False)) -> None:
    """Run the three products, with bias and `+=` or without both, into memory that goes on behind the output."""
    inp, weight, bias, grad_out = random_case(shape, dtype)
    d_inp, d_weight, d_bias, d_grad_out = (host.to_device(x, dtype) for x in (inp, weight, bias, grad_out))

    def run(prepare, wanted_shape, out_dtype, before, *arguments) -> np.ndarray:
        canary, size = 64, int(np.prod(wanted_shape))
        whole = host.to_device(np.full(size + canary, before), out_dtype)
        out = whole[:size].reshape(wanted_shape)
        result = execute(prepare(out, *arguments), out)
        assert (host.values(whole)[size:] == before).all(), "written past the end"
        return result

    for more in options:
        before = 0.25 if more else 0.0
        biases, d_biases = ([bias], [d_bias]) if more else ([], [])
        result = run(step.matmul_forward.prepare, grad_out.shape, dtype, 0.25, d_inp, d_weight, *d_biases)
        check(result, reference.matmul_forward, (inp, weight, *biases), dtype)
        result = run(step.matmul_grad_weight.prepare, weight.shape, "float32", 0.25, d_grad_out, d_inp, more)
        check(result, reference.matmul_grad_weight, (grad_out, inp), "float32", before)
        result = run(step.matmul_grad_input.prepare, inp.shape, dtype, 0.25, d_grad_out, d_weight, more)
        check(result, reference.matmul_grad_input, (grad_out, weight), dtype, before)


def execute_once(prepared, out) -> np.ndarray:
    prepared()
    return host.values(out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("step", STEPS)
def test_products(step, shape, dtype):
    check_all_products(step, shape, dtype, execute_once, options=[shape == SHAPES[1]])


@pytest.mark.parametrize("shape", SHAPES)
def test_products_of_any_size_on_tensor_cores(shape):
    check_all_products(step5_tensor_cores, shape, "bfloat16", execute_once)


@pytest.mark.parametrize("shape", TENSOR_CORE_SHAPES)
@pytest.mark.parametrize("step", TENSOR_CORE_STEPS)
def test_products_on_tensor_cores(step, shape):
    check_all_products(step, shape, "bfloat16", execute_once, options=[shape == TENSOR_CORE_SHAPES[1]])


@pytest.mark.parametrize("step", [*STEPS, *TENSOR_CORE_STEPS])
def test_products_have_the_same_bits_every_way(step, run_every_way):
    shape = (136, 8, 40) if step in TENSOR_CORE_LADDER else (70, 5, 18)  # several blocks and stages
    inp, weight, bias, _ = (host.to_device(x, "bfloat16") for x in random_case(shape, "bfloat16"))
    out = host.to_device(np.zeros(shape[:2]), "bfloat16")
    run_every_way(step.matmul_forward.prepare(out, inp, weight, bias), out)


@pytest.mark.skipif(not SIMULATED, reason="a device function is called from Python")
@pytest.mark.parametrize("line_bytes", [128, 256, 512])
def test_swizzled_pieces_of_eight_lines_lie_in_different_banks(line_bytes):
    for piece in range(line_bytes // 16):
        places = [tensor_tiles.swizzle_device(line, 16 * piece, line_bytes) for line in range(8)]
        assert len({place % 128 for place in places}) == 8
        assert [place // line_bytes for place in places] == list(range(8))  # each in its own line


@pytest.mark.skipif(not SIMULATED, reason="a device function is called from Python")
@pytest.mark.parametrize(
    ("rows", "columns", "n_slices", "group"), [(1, 1, 1, 16), (16, 1, 1, 16), (35, 3, 1, 4), (32, 5, 4, 8)]
)
def test_blocks_share_out_all_work_once_and_nothing_past_its_end(rows, columns, n_slices, group):
    I, J, K = rows * step7_multistage.TILE_I, columns * step7_multistage.TILE_J - 8, 700  # noqa: E741
    done = []
    for item in range(rows * columns * n_slices + 7):
        tile, _, first, end = step7_multistage.slice_device(item, n_slices, I, J, K, n_slices > 1)
        place = step7_multistage.tile_place_device(tile, group, I, J)
        done += [(*place, stage) for stage in range(first, end)]
    assert len(done) == len(set(done)) == rows * columns * 11
    assert {i for i, _, _ in done} == set(range(0, I, 128)) and {j for _, j, _ in done} == set(range(0, J, 256))


def test_slices_are_added_in_a_fixed_order(run_every_way, monkeypatch):
    shape = (200, 8, 136)  # four stages in two slices: the ring goes round
    monkeypatch.setattr(step7_multistage, "likely_slices", lambda *_: [2])
    inp, _, _, grad_out = random_case(shape, "bfloat16")
    grad_weight = host.to_device(np.full(shape[1:], 0.5), "float32")
    arguments = [host.to_device(x, "bfloat16") for x in (grad_out, inp)]
    (result,) = run_every_way(step7_multistage.matmul_grad_weight.prepare(grad_weight, *arguments), grad_weight)
    check(result, reference.matmul_grad_weight, (grad_out, inp), "float32", 0.5)


def test_slices_fill_the_places_of_a_gpu():
    assert slices.likely_slices(tiles=18, stages=1024, places=132)[0] == 7  # 126 of 132 places busy
    assert slices.likely_slices(tiles=1179, stages=1024, places=132)[0] == 1  # nearly nine full rounds
    assert slices.likely_slices(tiles=1, stages=1, places=132) == [1]  # there is nothing to cut


@pytest.fixture
def hopper():
    """Take Hopper's kernels: simulated, or on such a GPU."""
    if not SIMULATED and architecture() != "sm_90a":
        pytest.skip("this GPU has no wgmma")
    force_architecture("sm_90a")
    yield
    force_architecture(None)


@pytest.fixture
def portable():
    """Take the kernels for any GPU."""
    force_architecture("sm_80")
    yield
    force_architecture(None)


@pytest.mark.parametrize("step", HOPPER_STEPS)
def test_products_on_hopper(step, hopper):
    check_all_products(step, (72, 136, 328), "bfloat16", execute_once)  # every edge is cut, and the ring goes round
    check_all_products(step, (8, 37, 72), "bfloat16", execute_once, options=[True])  # odd rows of the output


def test_hidden_epilogue_with_several_tiles(hopper, run_every_way):
    shape = M, N, K = 8, 520, 72  # three tiles; fewer stages than the epilogue has calls
    inp, weight, bias, _ = random_case(shape, "bfloat16")
    canary = 64
    whole = host.to_device(np.full(M * N + canary, 7.0), "bfloat16")
    out = whole[: M * N].reshape(M, N)
    arguments = (host.to_device(x, "bfloat16") for x in (inp, weight, bias))
    (result,) = run_every_way(step11_hidden_epilogue.matmul_forward.prepare(out, *arguments), out)
    check(result, reference.matmul_forward, (inp, weight, bias), "bfloat16")
    assert (host.values(whole)[M * N :] == 7.0).all()  # TMA wrote nothing past the end


@pytest.mark.parametrize("family", ["hopper", "portable"])
@pytest.mark.parametrize(("shape", "dtype"), [((72, 264, 16), "bfloat16"), *(((3, 5, 7), dtype) for dtype in DTYPES)])
def test_epilogues(shape, dtype, family, request):
    """Fused where rows come in whole pieces, and in kernels of their own elsewhere."""
    request.getfixturevalue(family)
    inp, weight, bias, grad_out = random_case(shape, dtype)
    d_inp, d_weight, d_bias, d_grad_out = (host.to_device(x, dtype) for x in (inp, weight, bias, grad_out))
    out, pre, grad_inp = (host.to_device(x, dtype) for x in (grad_out, grad_out, inp))

    def check_second(result, operation, product) -> None:
        """Compare an operation on a product; the yardstick rounds the product, too."""
        plain = operation(host.rounded(product, dtype).astype(np.float32)).astype(np.float32)
        expected = operation(product)
        assert host.max_error(host.values(result), expected) <= host.error_bound(plain, expected, dtype)

    product = reference.matmul_forward(inp, weight, bias)
    matmul_forward(out, d_inp, d_weight, d_bias, pre_activation_MN=pre)
    check(host.values(pre), reference.matmul_forward, (inp, weight, bias), dtype)
    check_second(out, elementwise.gelu_forward, product)
    matmul_forward(out, d_inp, d_weight, d_bias, residual_MN=d_grad_out)
    check_second(out, lambda x: x + grad_out, product)
    matmul_grad_input(grad_inp, d_grad_out, d_weight, pre_activation_MK=d_inp)
    check_second(grad_inp, lambda x: elementwise.gelu_backward(x, inp), reference.matmul_grad_input(grad_out, weight))


@pytest.mark.parametrize("multiprocessors", [1, 4], ids=["in turns", "apart"])
def test_slices_of_the_weight_gradient(multiprocessors, hopper, monkeypatch, run_every_way):
    shape = M, N, K = 72, 136, 8  # two tiles; two stages, a slice each
    monkeypatch.setattr(weight_gradient, "slices_of", lambda *_: 2)
    monkeypatch.setattr(weight_gradient, "n_multiprocessors", lambda: multiprocessors)
    inp, _, _, grad_out = random_case(shape, "bfloat16")
    grad_weight = host.to_device(np.full((N, K), 0.5), "float32")
    grad_bias = host.to_device(np.full(N, 0.5), "float32")
    scratch = host.to_device(np.full(bias_scratch_size(M, N) + 8, 0.25), "float32")
    arguments = [host.to_device(x, "bfloat16") for x in (grad_out, inp)]
    prepared = matmul_grad_weight.prepare(grad_weight, *arguments, grad_bias_N=grad_bias, scratch_S=scratch)
    prepared()
    check(host.values(grad_weight), reference.matmul_grad_weight, (grad_out, inp), "float32", 0.5)
    check(host.values(grad_bias), reference.matmul_grad_bias, (grad_out,), "float32", 0.5)
    assert (host.values(scratch)[2 * N :] == 0.25).all(), "more than a row a slice was written"
    turns = prepared[0].arguments[3]
    assert turns.size >= 4
    assert not host.to_host(turns).any()  # ready for the next launch
    run_every_way(prepared, grad_weight, grad_bias)  # the order of the sum is the same with any number of blocks


def test_slices_fill_the_multiprocessors():
    assert weight_gradient.slices_of(tiles=72, K=65536, multiprocessors=132) == 9  # nearly five full rounds
    assert weight_gradient.slices_of(tiles=54, K=65536, multiprocessors=132) == 7  # nearly three
    assert weight_gradient.slices_of(tiles=18, K=65536, multiprocessors=132) == 7  # nearly one
    assert weight_gradient.slices_of(tiles=1179, K=65536, multiprocessors=132) == 1  # nearly nine without cutting
    assert weight_gradient.slices_of(tiles=3, K=64, multiprocessors=132) == 1  # there is nothing to cut


@pytest.mark.parametrize("step", HOPPER_STEPS)
def test_hopper_steps_leave_to_others_what_tma_cannot_move(step, hopper):
    def kernel_of(shape, offset=0):
        inp, weight, *_ = (host.to_device(x, "bfloat16") for x in random_case(shape, "bfloat16"))
        flat = host.to_device(np.zeros(inp.size + 8), "bfloat16")[offset : offset + inp.size]
        out = host.to_device(np.zeros((shape[0], shape[1])), "bfloat16")
        return step.matmul_forward.prepare(out, flat.reshape(shape[0], shape[2]), weight)[0].kernel

    assert kernel_of((3, 8, 16)) in step.KERNELS.values()
    for case in [((3, 8, 12),), ((3, 8, 16), 1)]:
        assert kernel_of(*case) not in step.KERNELS.values()


def test_each_shape_gets_the_best_step_that_takes_it(portable, monkeypatch):
    def kernel_of(shape, dtype, offset=0):
        inp, weight, *_ = (host.to_device(x, dtype) for x in random_case(shape, dtype))
        flat = host.to_device(np.zeros(inp.size + 8), dtype)[offset : offset + inp.size]
        out = host.to_device(np.zeros((shape[0], shape[1])), dtype)
        return matmul_forward.prepare(out, flat.reshape(shape[0], shape[2]), weight)[0].kernel

    assert kernel_of((129, 5, 16), "bfloat16") is step7_multistage.KERNELS["forward", "plain"]
    for case in [((129, 5, 12), "bfloat16"), ((129, 5, 16), "bfloat16", 1), ((3, 5, 16), "bfloat16")]:
        assert kernel_of(*case) is step5_tensor_cores.KERNELS["uint16"]
    assert kernel_of((3, 257, 16), "float32") is step4_register_tiles.matmul_kernel
    monkeypatch.setattr(step7_multistage, "most_shared_bytes", lambda: 99 * 1024)
    assert kernel_of((129, 5, 16), "bfloat16") is step6_swizzle.KERNELS["forward"]
    assert kernel_of((3, 5, 256), "float32") is step3_shared_tiles.matmul_kernel


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 19), (70, 264)])
def test_grad_bias(shape, dtype, run_every_way):
    grad_out = host.rounded(np.random.default_rng(1).standard_normal(shape), dtype)
    before = np.full(shape[1], 0.5)
    grad_bias = host.to_device(before, "float32")
    scratch = host.to_device(np.zeros(bias_scratch_size(*shape)), "float32")
    (result,) = run_every_way(matmul_grad_bias.prepare(grad_bias, scratch, host.to_device(grad_out, dtype)), grad_bias)
    check(result, reference.matmul_grad_bias, (grad_out,), "float32", before)


@pytest.mark.parametrize("shape", [(5, 19, 7), (136, 24, 264)])
def test_grad_weight_and_bias_at_once(shape, hopper, run_every_way):
    """Beside the product, round the ring, where TMA can move the operands; elsewhere by kernels of their own."""
    M, N, K = shape
    inp, _, _, grad_out = random_case(shape, "bfloat16")
    grad_weight, grad_bias = (host.to_device(np.full(s, 0.5), "float32") for s in ((N, K), N))
    scratch = host.to_device(np.zeros(bias_scratch_size(M, N)), "float32")
    arguments = [host.to_device(x, "bfloat16") for x in (grad_out, inp)]
    prepared = matmul_grad_weight.prepare(grad_weight, *arguments, grad_bias_N=grad_bias, scratch_S=scratch)
    (result,) = run_every_way(prepared, grad_bias)
    check(result, reference.matmul_grad_bias, (grad_out,), "float32", 0.5)
    assert len(prepared) == (2 if N % 8 == 0 else 3)


def test_reference_is_torch():
    inp, weight, bias, grad_out = random_case((4, 5, 6), "float32")
    tensors = [torch.tensor(x, requires_grad=True) for x in (inp, weight, bias)]
    out = torch.nn.functional.linear(*tensors)
    np.testing.assert_allclose(reference.matmul_forward(inp, weight, bias), out.detach().numpy(), atol=1e-12)
    out.backward(torch.tensor(grad_out))
    ours = (
        reference.matmul_grad_input(grad_out, weight),
        reference.matmul_grad_weight(grad_out, inp),
        reference.matmul_grad_bias(grad_out),
    )
    for gradient, tensor in zip(ours, tensors, strict=True):
        np.testing.assert_allclose(gradient, tensor.grad.numpy(), atol=1e-12)


def test_refusals_and_signatures():
    inp, weight, bias, out = (host.to_device(x, "float32") for x in random_case((4, 5, 6), "float32"))
    with pytest.raises(ValueError, match="axis K is 4 but 6 in inp_MK"):
        matmul_forward(out, inp, host.to_device(np.zeros((5, 4)), "float32"))
    with pytest.raises(ValueError, match="scratch_S has 5 elements; 10 are needed"):
        wide = host.to_device(np.zeros((33, 5)), "float32")
        matmul_grad_bias(bias, bias, wide)
        matmul_grad_weight(
            weight,
            host.to_device(np.zeros((33, 5)), "float32"),
            host.to_device(np.zeros((33, 6)), "float32"),
            grad_bias_N=bias,
            scratch_S=bias,
        )
    with pytest.raises(ValueError, match="grad_bias_N and scratch_S belong together"):
        matmul_grad_weight(weight, out, inp, grad_bias_N=bias)
    with pytest.raises(ValueError, match="pre_activation_MN and residual_MN exclude each other"):
        matmul_forward(out, inp, weight, pre_activation_MN=out, residual_MN=out)
    with pytest.raises(ValueError, match="accumulate and pre_activation_MK exclude each other"):
        matmul_grad_input(inp, out, weight, accumulate=True, pre_activation_MK=inp)
    for name in ("matmul_forward", "matmul_grad_input", "matmul_grad_weight"):
        assert len({inspect.signature(getattr(step, name)) for step in LADDER}) == 1
