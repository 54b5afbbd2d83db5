"""The three products of a linear layer as one: what the launchers of all steps check alike.

Every step has a kernel for out[i, j] = sum over k of a[i, k] * b[k, j]. Forward, the gradient of the input and that of
the weight differ in which of the two sizes lies contiguous in memory:

    forward       out_MN         = inp_MK       @ weight_NK^T   a: k contiguous, b: k contiguous
    grad input    grad_inp_MK    = grad_out_MN  @ weight_NK     a: k contiguous, b: j contiguous
    grad weight   grad_weight_NK = grad_out_MN^T @ inp_MK       a: i contiguous, b: j contiguous

Here k is the size summed over. In a kernel the flat arrays are `out`, `a`, `b` with I rows, J columns, K terms.

What else may happen to the output, its epilogue, is part of the product: GELU, a residual, the derivative of GELU. A
step that does it in its own kernel makes its launchers with `fused=True`; for the others `unfused` appends the kernels
of those operations. Either way the product is rounded to the output's dtype before anything but the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from kernels.gelu import gelu_backward, gelu_forward
from kernels.launch import Launch, address, launcher, take
from kernels.matmul.bias import check_scratch, matmul_grad_bias
from kernels.residual import residual_forward

SIGNATURES = (
    "void(real[::1], real[::1], real[::1], real[::1], int64, int64, int64, int64, int64, int64, int64)",
    "void(float32[::1], uint16[::1], uint16[::1], uint16[::1], int64, int64, int64, int64, int64, int64, int64)",
)
"""Of every kernel: the output is of the dtype of the operands, or float32 for the gradient of a bfloat16 weight."""


LAYOUTS = {"forward": (True, True), "grad_input": (True, False), "grad_weight": (False, False)}
"""Whether the terms of `a` and of `b` lie contiguous, by the product that has it so."""

OUTPUTS = {"forward": "uint16", "grad_input": "uint16", "grad_weight": "float32"}
"""The dtype of the output when the operands are bfloat16."""


@dataclass(frozen=True)
class Product:
    """One product: flat arrays, sizes, layout, and what happens to the output."""

    out: object
    a: object
    b: object
    I: int  # noqa: E741 (the axis letter of the output's rows)
    J: int
    K: int
    a_k_contiguous: bool
    b_k_contiguous: bool
    bias: object | None = None
    accumulate: bool = False
    pre_activation: object | None = None
    """Written with the sum and the bias; the output is then GELU of it."""
    residual: object | None = None
    """Added to the output."""
    activated: object | None = None
    """What GELU was applied to in the forward pass: the output is multiplied by GELU's derivative there."""
    grad_bias: object | None = None
    """Gets the sums of `a` over the terms added: beside the gradient of a weight, that of the bias."""
    scratch: object | None = None
    """Memory for parts of those sums."""

    def arguments(self) -> tuple:
        """Return the arguments of a kernel; without a bias `a` stands in its place, unread."""
        has_bias = self.bias is not None
        layout = (int(self.a_k_contiguous), int(self.b_k_contiguous))
        arrays = (self.out, self.a, self.b, self.bias if has_bias else self.a)
        return (*arrays, self.I, self.J, self.K, *layout, int(has_bias), int(self.accumulate))


def layout_of(product: Product) -> str:
    """Return the key of `LAYOUTS` for a product."""
    return next(name for name, kind in LAYOUTS.items() if kind == (product.a_k_contiguous, product.b_k_contiguous))


def epilogue_of(product: Product) -> tuple[str, object]:
    """Return what a product wants of its output, and the array that this takes besides the output."""
    if product.pre_activation is not None:
        return "gelu", product.pre_activation
    if product.residual is not None:
        return "residual", product.residual
    if product.activated is not None:
        return "gelu_backward", product.activated
    return "plain", product.out


def in_pieces(array, length: int) -> bool:
    """Tell whether every row of `length` elements of a flat array consists of whole, aligned pieces of 16 bytes."""
    return address(array) % 16 == 0 and length * array.dtype.itemsize % 16 == 0


def takes_pieces(product: Product) -> bool:
    """Tell whether both operands are bfloat16 whose rows can be moved in pieces of 16 bytes."""
    a_row = product.K if product.a_k_contiguous else product.I
    b_row = product.K if product.b_k_contiguous else product.J
    return str(product.a.dtype) == "uint16" and in_pieces(product.a, a_row) and in_pieces(product.b, b_row)


Step = Callable[[Product, object], list[Launch]]
"""A step of the ladder: makes the launches of a product on a stream."""


def _flat(array):
    return None if array is None else array.reshape(array.size)


def unfused(step: Step, product: Product, stream: object) -> list[Launch]:
    """Launch a product with a step that knows bias and `accumulate` alone, and what else is wanted after it."""
    plain = replace(product, pre_activation=None, residual=None, activated=None)
    if product.pre_activation is not None:
        plain = replace(plain, out=product.pre_activation)
        return [*step(plain, stream), *gelu_forward.prepare(product.out, product.pre_activation, stream=stream)]
    launches = step(plain, stream)
    if product.residual is not None:
        launches += residual_forward.prepare(product.out, product.out, product.residual, stream=stream)
    if product.activated is not None:
        launches += gelu_backward.prepare(product.out, product.out, product.activated, stream=stream)
    return launches


def _launches(step: Step, fused: bool, product: Product, stream: object) -> list[Launch]:
    return step(product, stream) if fused else unfused(step, product, stream)


def forward_launcher(step: Step, *, fused: bool = False) -> Callable[..., None]:
    """Make the forward launcher of a step; `fused` tells that it does the whole epilogue itself."""

    @launcher
    def matmul_forward(out_MN, inp_MK, weight_NK, bias_N=None, *, pre_activation_MN=None, residual_MN=None, stream=0):
        """Multiply by the transposed weight and add the bias: a linear layer.

        With `pre_activation_MN` that is what is written there, and the output is GELU of it; with `residual_MN` the
        output is the sum of both.

        Reads    inp_MK, weight_NK, bias_N, residual_MN (these two may be None): float32 or bfloat16, C-contiguous, on
                 the device.
        Writes   out_MN, pre_activation_MN (may be None) (=), of the same dtype.
        Work     2*M*N*K flop, (M*K + N*K + M*N)*itemsize bytes: bound by arithmetic for GPT-2's sizes.
        Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_matmul.py).
        Raises   ValueError if a shape or dtype disagrees, or both a pre-activation and a residual are given; nothing is
                 launched then.
        Source   Goto and van de Geijn 2008 (tiling); compare llm.c llmc/matmul.cuh @ f1e2ace.
        Book     Chapter 05.
        """
        if pre_activation_MN is not None and residual_MN is not None:
            raise ValueError("pre_activation_MN and residual_MN exclude each other: give one of them")
        real = {"out_MN": out_MN, "inp_MK": inp_MK, "weight_NK": weight_NK, "bias_N": bias_N}
        arrays, sizes = take(real=real | {"pre_activation_MN": pre_activation_MN, "residual_MN": residual_MN})
        product = Product(
            _flat(arrays.out_MN), _flat(arrays.inp_MK), _flat(arrays.weight_NK), sizes.M, sizes.N, sizes.K, True, True,
            bias=arrays.bias_N, pre_activation=_flat(arrays.pre_activation_MN), residual=_flat(arrays.residual_MN),
        )  # fmt: skip
        return _launches(step, fused, product, stream)

    return matmul_forward


def grad_input_launcher(step: Step, *, fused: bool = False) -> Callable[..., None]:
    """Make the launcher of a step for the gradient of the input; `fused` as for `forward_launcher`."""

    @launcher
    def matmul_grad_input(grad_inp_MK, grad_out_MN, weight_NK, accumulate=False, *, pre_activation_MK=None, stream=0):
        """Take the gradient of a linear layer with respect to its input.

        With `pre_activation_MK`, to which GELU was applied to make the layer's input, it is the gradient of that.

        Reads    grad_out_MN, weight_NK, pre_activation_MK (may be None): float32 or bfloat16, C-contiguous, on the
                 device.
        Writes   grad_inp_MK (=), or (+=) if `accumulate`, of the same dtype.
        Work     2*M*N*K flop, (M*K + N*K + M*N)*itemsize bytes: bound by arithmetic for GPT-2's sizes.
        Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_matmul.py).
        Raises   ValueError if a shape or dtype disagrees, or `accumulate` is wanted with a pre-activation; nothing is
                 launched then.
        Source   Goto and van de Geijn 2008 (tiling); compare llm.c llmc/matmul.cuh @ f1e2ace.
        Book     Chapter 05.
        """
        if accumulate and pre_activation_MK is not None:
            raise ValueError("accumulate and pre_activation_MK exclude each other: give one of them")
        real = {"grad_inp_MK": grad_inp_MK, "grad_out_MN": grad_out_MN, "weight_NK": weight_NK}
        arrays, sizes = take(real=real | {"pre_activation_MK": pre_activation_MK})
        product = Product(
            _flat(arrays.grad_inp_MK), _flat(arrays.grad_out_MN), _flat(arrays.weight_NK),
            sizes.M, sizes.K, sizes.N, True, False,
            accumulate=accumulate, activated=_flat(arrays.pre_activation_MK),
        )  # fmt: skip
        return _launches(step, fused, product, stream)

    return matmul_grad_input


def bias_apart(step: Step, product: Product, stream: object) -> list[Launch]:
    """Launch a product that gradients of weights are, and the kernels for the gradient of the bias after it."""
    launches = step(replace(product, grad_bias=None, scratch=None), stream)
    if product.grad_bias is not None:
        grad_out_MN = product.a.reshape(product.K, product.I)
        launches += matmul_grad_bias.prepare(product.grad_bias, product.scratch, grad_out_MN, stream=stream)
    return launches


def grad_weight_launcher(step: Step, *, fused: bool = False) -> Callable[..., None]:
    """Make the launcher of a step for the gradient of the weight; `fused` tells that it takes that of the bias, too."""

    @launcher
    def matmul_grad_weight(
        grad_weight_NK, grad_out_MN, inp_MK, accumulate=True, *, grad_bias_N=None, scratch_S=None, stream=0
    ):
        """Take the gradient of a linear layer with respect to its weight, and to its bias if that is given.

        Reads    grad_out_MN, inp_MK: float32 or bfloat16, C-contiguous, on the device.
        Writes   grad_weight_NK float32 (+=), or (=) if `accumulate` is False; grad_bias_N float32 (+=) and scratch_S
                 float32 (=), at least `bias_scratch_size(M, N)` (both may be None).
        Work     2*M*N*K flop, (M*K + M*N)*itemsize + 8*N*K bytes: bound by arithmetic for GPT-2's sizes.
        Error    max abs error <= 2x that of the NumPy same-dtype version against fp64 (test_matmul.py).
        Raises   ValueError if a shape or dtype disagrees, or only one of grad_bias_N and scratch_S is given; nothing
                 is launched then.
        Source   Goto and van de Geijn 2008 (tiling); compare llm.c llmc/matmul.cuh @ f1e2ace.
        Book     Chapter 05.
        """
        if (grad_bias_N is None) != (scratch_S is None):
            raise ValueError("grad_bias_N and scratch_S belong together: give both or neither")
        real = {"grad_out_MN": grad_out_MN, "inp_MK": inp_MK}
        float32 = {"grad_weight_NK": grad_weight_NK, "grad_bias_N": grad_bias_N, "scratch_S": scratch_S}
        arrays, sizes = take(real=real, float32=float32)
        if scratch_S is not None:
            check_scratch(arrays.scratch_S, sizes.M, sizes.N)
        product = Product(
            _flat(arrays.grad_weight_NK), _flat(arrays.grad_out_MN), _flat(arrays.inp_MK),
            sizes.N, sizes.K, sizes.M, False, False,
            accumulate=accumulate, grad_bias=arrays.grad_bias_N, scratch=arrays.scratch_S,
        )  # fmt: skip
        return step(product, stream) if fused else bias_apart(step, product, stream)

    return matmul_grad_weight
