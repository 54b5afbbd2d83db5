"""Launch every production kernel once on small odd shapes, for NVIDIA's compute-sanitizer.

    compute-sanitizer --tool memcheck  python -m kernels.sanitize
    compute-sanitizer --tool racecheck python -m kernels.sanitize attention matmul

Nothing is compared here, tests do that; the tool reports accesses out of bounds and races. Each op runs in both dtypes
and with the kernels of every architecture that this GPU can run. The names of the kernels that ran are printed, and a
production kernel that did not run is an error. Production kernels are all of an op without a ladder; of the others,
those in the modules whose kernels the launchers took.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numba import cuda

from kernels import SIMULATED, host
from kernels.adamw import adamw_update
from kernels.architecture import architecture, force_architecture
from kernels.attention import attention_backward, attention_forward, attention_scratch_size, step4_tensor_cores
from kernels.attention.decode import attention_decode, attention_decode_scratch_size
from kernels.classifier import fused_classifier
from kernels.encoder import encoder_backward, encoder_forward, encoder_scratch_size
from kernels.gelu import bias_gelu_backward, bias_gelu_forward, gelu_backward, gelu_forward
from kernels.global_norm import squared_norm, sum_scratch_size, total
from kernels.launch import PACK, Prepared
from kernels.layernorm import layernorm_backward, layernorm_forward, layernorm_scratch_size, residual_layernorm_forward
from kernels.matmul import bias_scratch_size, matmul_forward, matmul_grad_bias, matmul_grad_input, matmul_grad_weight
from kernels.matmul.vector import matmul_vector
from kernels.memory import cast, copy, zero
from kernels.next_token import choose_token, embed_token
from kernels.registry import all_kernels
from kernels.residual import residual_forward
from kernels.token_plan import plan_token_gradient

DTYPES = ("float32", "bfloat16")
ARCHITECTURES_HERE = {"sm_80": ("sm_80",), "sm_90a": ("sm_80", "sm_90a")}
ROWS = ((2, 37, 72), (1, 3, 13), (1, 70, 776))  # batch, time and channels: packs of eight, none, and more than a warp's
PRODUCTS = ((37, 29, 13), (200, 136, 72), (392, 264, 328))  # rows, outputs and inputs of a linear layer
ROWS_OF_WEIGHTS = ((5, 16), (1061, 776), (7, 3072))  # outputs and inputs of a linear layer for one token
HEADS = ((2, 37, 3, 16), (1, 70, 2, 32), (2, 137, 2, 64), (1, 200, 1, 128), (2, 21, 3, 14))  # batch, time, heads, size
ATTENTIONS = (
    (attention_forward, attention_backward),
    (step4_tensor_cores.attention_forward, step4_tensor_cores.attention_backward),
)
VOCABULARIES = ((61, 64), (1000, 1003))  # real and padded columns


class Draw:
    """Makes arrays where the kernels run, of random numbers."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self._generator = np.random.default_rng(0)

    def real(self, *shape: int):
        """Return an array of the dtype."""
        return host.to_device(self._generator.standard_normal(shape), self.dtype)

    def float32(self, *shape: int):
        """Return an array of float32 from 0.5 to 1.5."""
        return host.to_device(self._generator.uniform(0.5, 1.5, shape), "float32")

    def tokens(self, below: int, *shape: int) -> np.ndarray:
        """Return ids on the host."""
        return self._generator.integers(0, below, shape).astype(np.int32)

    def position(self, T: int):
        """Return where the newest of T tokens stands."""
        return host.to_device(np.array([T - 1], np.int32))


def encoder_launches(draw: Draw) -> Iterator[Prepared]:
    """Few different tokens, so that some have several segments."""
    for B, T, C in ROWS:
        tokens, V = draw.tokens(5, B, T), 5
        tables = draw.real(V, C), draw.real(T + 1, C)
        yield encoder_forward.prepare(draw.real(B, T, C), host.to_device(tokens), *tables)
        scratch = draw.float32(max(1, encoder_scratch_size(B * T, C)))
        gradients = draw.float32(V, C), draw.float32(T + 1, C), scratch, draw.real(B, T, C)
        yield encoder_backward.prepare(*gradients, host.to_device(plan_token_gradient(tokens)))


def layernorm_launches(draw: Draw) -> Iterator[Prepared]:
    """Forward alone and with the residual, and backward in both ways."""
    for B, T, C in ROWS:
        N = B * T
        x, y, z, out = (draw.real(N, C) for _ in range(4))
        weight, bias, mean, rstd = draw.real(C), draw.real(C), draw.float32(N), draw.float32(N)
        yield layernorm_forward.prepare(out, mean, rstd, x, weight, bias)
        yield residual_layernorm_forward.prepare(z, out, mean, rstd, x, y, weight, bias)
        for accumulate in (True, False):
            outputs = z, draw.float32(C), draw.float32(C), draw.float32(layernorm_scratch_size(N, C))
            yield layernorm_backward.prepare(*outputs, y, x, weight, mean, rstd, accumulate=accumulate)


def matmul_launches(draw: Draw) -> Iterator[Prepared]:
    """Each product with each epilogue, and the gradient of the bias."""
    for M, N, K in PRODUCTS:
        out, inp, weight, bias = draw.real(M, N), draw.real(M, K), draw.real(N, K), draw.real(N)
        more_out, more_inp = draw.real(M, N), draw.real(M, K)
        yield matmul_forward.prepare(out, inp, weight)
        yield matmul_forward.prepare(out, inp, weight, bias)
        yield matmul_forward.prepare(out, inp, weight, bias, pre_activation_MN=more_out)
        yield matmul_forward.prepare(out, inp, weight, bias, residual_MN=more_out)
        for accumulate in (False, True):
            yield matmul_grad_input.prepare(inp, out, weight, accumulate=accumulate)
            yield matmul_grad_weight.prepare(draw.float32(N, K), out, inp, accumulate=accumulate)
        yield matmul_grad_input.prepare(inp, out, weight, pre_activation_MK=more_inp)
        yield matmul_grad_bias.prepare(draw.float32(N), draw.float32(bias_scratch_size(M, N)), out)
    for N, K in ROWS_OF_WEIGHTS:
        out, inp, weight, vector = draw.real(3, N), draw.real(K), draw.real(N, K), draw.real(N)
        norm = draw.real(K), draw.real(K)
        yield matmul_vector.prepare(out, inp, weight, vector, norm=norm, gelu=True, position_1=draw.position(3))
        yield matmul_vector.prepare(vector.reshape(1, N), inp, weight, residual_N=vector)


def gelu_launches(draw: Draw) -> Iterator[Prepared]:
    """With and without bias."""
    for B, T, C in ROWS:
        x, y, out, bias = draw.real(B * T, C), draw.real(B * T, C), draw.real(B * T, C), draw.real(C)
        yield gelu_forward.prepare(out, x)
        yield gelu_backward.prepare(out, y, x)
        yield bias_gelu_forward.prepare(out, x, bias)
        yield bias_gelu_backward.prepare(out, y, x, bias)


def attention_launches(draw: Draw) -> Iterator[Prepared]:
    """Every head size that has kernels of its own, and one that has none; step 4 too, which keeps the small heads."""
    for B, T, H, D in HEADS:
        C = H * D
        qkv, out, logsumexp = draw.real(B, T, 3 * C), draw.real(B, T, C), draw.float32(B, H, T)
        scratch = draw.float32(attention_scratch_size(B, T, H))
        grad_qkv, grad_out = draw.real(B, T, 3 * C), draw.real(B, T, C)
        for forward, backward in ATTENTIONS:
            yield forward.prepare(out, logsumexp, scratch, qkv)
            yield backward.prepare(grad_qkv, scratch, grad_out, out, qkv, logsumexp)
        if D % PACK == 0:
            scratch = draw.float32(attention_decode_scratch_size(B, T, H, D))
            yield attention_decode.prepare(draw.real(B, C), scratch, qkv, H, draw.position(T))


def classifier_launches(draw: Draw) -> Iterator[Prepared]:
    """Training and evaluation."""
    for V, P in VOCABULARIES:
        logits, targets, losses = draw.real(37, P), host.to_device(draw.tokens(V, 37)), draw.float32(37)
        yield fused_classifier.prepare(losses, logits, targets, V, 0.1, write_gradient=True, accumulate=True)
        yield fused_classifier.prepare(losses, logits, targets, V, 0.0, write_gradient=False)


def next_token_launches(draw: Draw) -> Iterator[Prepared]:
    """In the middle of a text, and at its end."""
    for T, C, V, P in ((3, 13, 61, 64), (2, 776, 50_257, 50_304)):
        tokens = host.to_device(draw.tokens(7, T))
        for position in (draw.position(T), draw.position(T - 1)):
            yield embed_token.prepare(draw.real(C), tokens, position, draw.real(7, C), draw.real(T, C))
            yield choose_token.prepare(tokens, position, draw.real(P), V)


def residual_launches(draw: Draw) -> Iterator[Prepared]:
    """One sum."""
    for B, T, C in ROWS:
        yield residual_forward.prepare(draw.real(B * T * C), draw.real(B * T * C), draw.real(B * T * C))


def global_norm_launches(draw: Draw) -> Iterator[Prepared]:
    """Sums of one chunk and of several."""
    for N in (13, 20_011):
        arguments = draw.float32(1), draw.float32(sum_scratch_size(N)), draw.real(N)
        yield squared_norm.prepare(*arguments)
        yield total.prepare(*arguments, accumulate=True)


def adamw_launches(draw: Draw) -> Iterator[Prepared]:
    """With float32 weights, or with their bfloat16 copy."""
    for N in (13, 4_099):
        param = draw.real(N) if draw.dtype == "bfloat16" else None
        state = draw.float32(N), draw.float32(N), draw.float32(N), draw.float32(N)
        bounds, decay = host.to_device(np.array([0, 3, 11, N])), draw.float32(3)
        yield adamw_update.prepare(param, *state, bounds, decay, 1e-3)


def memory_launches(draw: Draw) -> Iterator[Prepared]:
    """Zero, copy, and cast both ways."""
    for N in (13, 20_008):
        real, single = draw.real(N), draw.float32(N)
        yield zero.prepare(real)
        yield copy.prepare(real, draw.real(N))
        yield cast.prepare(real, single)
        yield cast.prepare(single, real)


OPS: dict[str, Callable[[Draw], Iterator[Prepared]]] = {
    "encoder": encoder_launches,
    "layernorm": layernorm_launches,
    "matmul": matmul_launches,
    "gelu": gelu_launches,
    "attention": attention_launches,
    "next_token": next_token_launches,
    "residual": residual_launches,
    "classifier": classifier_launches,
    "global_norm": global_norm_launches,
    "adamw": adamw_launches,
    "memory": memory_launches,
}


def launch_all(op: str) -> set[str]:
    """Launch the production kernels of an op; print each at its first launch, and return their names."""
    names = {entry.function: name for name, entry in all_kernels().items()}
    ran: set[str] = set()
    for forced in ARCHITECTURES_HERE[architecture()]:
        force_architecture(forced)
        for dtype in DTYPES:
            for prepared in OPS[op](Draw(dtype)):
                for launch in prepared:
                    name = names[launch.kernel.py_func]
                    if name not in ran:
                        print(name, flush=True)
                    ran.add(name)
                    launch()
                    cuda.synchronize()  # so that the tool's report stands behind the name of its kernel
        force_architecture(None)
    return ran


def missed(op: str, ran: set[str]) -> list[str]:
    """Return the production kernels of an op that are not among those that ran."""
    here = ARCHITECTURES_HERE[architecture()]
    modules = {name.rpartition(".")[0] for name in ran}
    return [
        name
        for name, entry in all_kernels().items()
        if name.rpartition(".")[0] in modules | {op}
        and name.startswith(f"{op}.")
        and name not in ran
        and set(entry.architectures) & set(here)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Launch the ops that are named, or all."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels.sanitize", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)} (default: all)")
    ops = parser.parse_args(argv).ops or list(OPS)
    if set(ops) - set(OPS):
        parser.error(f"unknown: {', '.join(sorted(set(ops) - set(OPS)))}")
    print(f"{', '.join(ops)}: {'simulated' if SIMULATED else f'on {cuda.get_current_device().name}'}", flush=True)
    failures = [name for op in ops for name in missed(op, launch_all(op))]
    for name in failures:
        print(f"error: {name} did not run; add a shape that takes it", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
