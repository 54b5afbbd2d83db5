"""Matrix product, step 2: neighbouring threads read neighbouring elements.

Where the columns of `b` lie side by side, neighbouring threads take neighbouring columns: a warp reads one line of `b`,
one element of `a`, and writes one line of the output. Where the terms lie side by side, as in the forward product, a
warp takes one output and its lanes take turns with the terms. Nothing is used twice yet. Flat arrays: I rows, J
columns, K terms.
"""

from __future__ import annotations

from numba import cuda, float32

from kernels.elements import load, store
from kernels.launch import WARP_SIZE, Launch, ceil_div
from kernels.matmul.common import SIGNATURES, Product, forward_launcher, grad_input_launcher, grad_weight_launcher
from kernels.reduce import warp_sum
from kernels.registry import kernel

BLOCK = 256


@kernel(*SIGNATURES, launch_bounds=BLOCK)
def matmul_kernel(out, a, b, bias, I, J, K, a_k_contiguous, b_k_contiguous, has_bias, accumulate):  # noqa: E741
    """A thread owns outputs, or a warp does and a lane every 32nd term."""
    a_row, a_column = (K, 1) if a_k_contiguous else (1, I)
    b_row, b_column = (1, K) if b_k_contiguous else (J, 1)
    sharers = WARP_SIZE if b_k_contiguous else 1
    index, sharer = cuda.grid(1) // sharers, cuda.grid(1) % sharers
    while index < I * J:
        i, j = index // J, index % J
        total = float32(0)
        k = sharer
        while k < K:
            total += load(a, i * a_row + k * a_column) * load(b, k * b_row + j * b_column)
            k += sharers
        if b_k_contiguous:
            total = warp_sum(total)
        if sharer == 0:
            if has_bias:
                total += load(bias, j)
            if accumulate:
                total += load(out, index)
            store(out, index, total)
        index += cuda.gridsize(1) // sharers


def step(product: Product, stream: object) -> list[Launch]:
    """Launch a thread or a warp for each output."""
    threads = product.I * product.J * (WARP_SIZE if product.b_k_contiguous else 1)
    return [Launch(matmul_kernel, ceil_div(threads, BLOCK), BLOCK, product.arguments(), stream)]


matmul_forward = forward_launcher(step)
matmul_grad_input = grad_input_launcher(step)
matmul_grad_weight = grad_weight_launcher(step)
