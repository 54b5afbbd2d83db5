"""Products and attention by NumPy, on the numba engine's own buffers: the simulator is slow at them."""

from types import SimpleNamespace

import numpy as np

from kernels.attention import reference as attention
from kernels.gelu import gelu_backward, gelu_forward
from kernels.host import from_bf16, to_bf16
from kernels.launch import as_array
from kernels.residual import residual_forward


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
        del keywords["stream"]
        return [lambda: function(*arrays, **keywords)]

    return SimpleNamespace(prepare=prepare)


@on_host
def matmul_forward(out, inp, weight, bias=None, pre_activation_MN=None, residual_MN=None):
    product = rows(inp) @ rows(weight).T + (0 if bias is None else value(bias))
    if residual_MN is not None:
        put(out, product)
        residual_forward(out, out, as_array(residual_MN, "residual_MN"))
    elif pre_activation_MN is None:
        put(out, product)
    else:
        before = as_array(pre_activation_MN, "pre_activation_MN")
        put(before, product)
        gelu_forward(out, before)


@on_host
def matmul_grad_input(grad_inp, grad_out, weight, pre_activation_MK=None):
    put(grad_inp, rows(grad_out) @ rows(weight))
    if pre_activation_MK is not None:
        gelu_backward(grad_inp, grad_inp, pre_activation_MK)


@on_host
def matmul_grad_weight(grad_weight, grad_out, inp, grad_bias_N=None, scratch_S=None):
    grad_weight += rows(grad_out).T @ rows(inp)
    if grad_bias_N is not None:
        grad_bias = as_array(grad_bias_N, "grad_bias_N")
        grad_bias += rows(grad_out).sum(0)


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
