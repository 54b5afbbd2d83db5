"""GPT-2's forward and backward pass as lists of kernel launches, in the order of the maths.

`Passes` records: each method appends the launches of one part of the model, forward or backward, over buffers that are
there already. What it recorded is launched as often as there are batches of its shape.

Source: the formulas of `gpt2edu.model`, differentiated; compare llm.c train_gpt2.cu, gpt2_forward and
gpt2_backward_and_reduce @ f1e2ace.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor

from gpt2edu.config import ModelConfig
from kernels.attention import attention_backward, attention_forward
from kernels.classifier import fused_classifier
from kernels.encoder import encoder_backward, encoder_forward
from kernels.gelu import gelu_forward
from kernels.launch import Prepared
from kernels.layernorm import layernorm_backward, layernorm_forward
from kernels.matmul import matmul_forward, matmul_grad_input, matmul_grad_weight


class Passes:
    """Records the launches of one shape of micro-batch.

    Args:
        config: the model's shape.
        weights: the 16 tensors by name.
        gradients: theirs, fp32.
        activations: what `activations.cut_arena` gave.
        recompute: as there.
        stream: for which the launches are prepared, 0 or a pointer.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: SimpleNamespace,
        gradients: SimpleNamespace,
        activations: SimpleNamespace,
        recompute: int,
        stream: int = 0,
    ) -> None:
        self.config, self.recompute, self.stream = config, recompute, stream
        self.w, self.g, self.a = weights, gradients, activations
        self._launches: list = []

    def evaluation(self) -> Prepared:
        """Return the launches that give each token's loss; the logits stay."""
        self._forward()
        self._loss(grad_loss=0.0, train=False)
        return self._recorded()

    def micro_step(self, grad_loss: float) -> Prepared:
        """Return the launches that add each token's loss, and the gradients of all losses times `grad_loss`.

        What is left is the gradient of the embedding, for which the host has a plan to make meanwhile.
        """
        return Prepared(itertools.chain(*self.micro_step_by_layer(grad_loss)))

    def micro_step_by_layer(self, grad_loss: float) -> list[Prepared]:
        """Return the same in L pieces: after the first the gradients of the last layer are complete, and so on."""
        self._forward()
        self._loss(grad_loss, train=True)
        self._head_backward()
        pieces = []
        for n in reversed(range(self.config.n_layers)):
            self._mlp_backward(n)
            self._attention_backward(n)
            pieces.append(self._recorded())
        return pieces

    def embedding_gradient(self) -> Prepared:
        """Return the launches that finish a micro-step."""
        a, g = self.a, self.g
        self._do(encoder_backward, g.wte, g.wpe, a.scratch, a.grad_residual, a.plan)
        return self._recorded()

    def _recorded(self) -> Prepared:
        launches, self._launches = Prepared(self._launches), []
        return launches

    def _do(self, operation: Callable, *arguments: object, **keywords: object) -> None:
        self._launches += operation.prepare(*arguments, stream=self.stream, **keywords)

    # ------------------------------------------------------------------------------------------------
    # forward

    def _forward(self) -> None:
        a, w = self.a, self.w
        self._do(encoder_forward, a.residual[0], a.inputs, w.wte, w.wpe)
        self._do(layernorm_forward, *self._norm_outputs(0), a.residual[0], *self._norm_weights(0))
        for n in range(self.config.n_layers):
            self._attention_forward(n)
            self._mlp_forward(n)
        self._do(matmul_forward, a.logits, a.lnf, w.wte)  # the head is the token embedding again

    def _attention_forward(self, n: int) -> None:
        a, w = self.a, self.w
        self._do(matmul_forward, a.qkv[n], self._kept(a.ln1, n), w.qkvw[n], w.qkvb[n])
        self._do(attention_forward, a.mixed[n], a.logsumexp[n], a.scratch, a.qkv[n])
        self._do(matmul_forward, a.middle[n], a.mixed[n], w.attprojw[n], w.attprojb[n], residual_MN=a.residual[n])
        outputs = self._kept(a.ln2, n), a.ln2_mean[n], a.ln2_rstd[n]
        self._do(layernorm_forward, *outputs, a.middle[n], w.ln2w[n], w.ln2b[n])

    def _mlp_forward(self, n: int) -> None:
        a, w = self.a, self.w
        activated = self._kept(a.activated, n)
        expand = activated, self._kept(a.ln2, n), w.fcw[n], w.fcb[n]
        self._do(matmul_forward, *expand, pre_activation_MN=a.expanded[n])
        self._do(matmul_forward, a.residual[n + 1], activated, w.fcprojw[n], w.fcprojb[n], residual_MN=a.middle[n])
        self._do(layernorm_forward, *self._norm_outputs(n + 1), a.residual[n + 1], *self._norm_weights(n + 1))

    def _norm_outputs(self, n: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return output, mean and one over the deviation of the norm before layer n; the last is before the head."""
        a = self.a
        if n == self.config.n_layers:
            return a.lnf, a.lnf_mean, a.lnf_rstd
        return self._kept(a.ln1, n), a.ln1_mean[n], a.ln1_rstd[n]

    def _norm_weights(self, n: int) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the norm before layer n."""
        w = self.w
        return (w.lnfw, w.lnfb) if n == self.config.n_layers else (w.ln1w[n], w.ln1b[n])

    @staticmethod
    def _kept(layers: Tensor, n: int) -> Tensor:
        """Return layer n's part of a buffer that has all layers, or one after another in the same place."""
        return layers[n % len(layers)]

    def _loss(self, grad_loss: float, train: bool) -> None:
        a, V = self.a, self.config.vocab_size
        self._do(fused_classifier, a.losses, a.logits, a.targets, V, grad_loss, write_gradient=train, accumulate=train)

    # ------------------------------------------------------------------------------------------------
    # backward

    def _head_backward(self) -> None:
        a, w, g, L = self.a, self.w, self.g, self.config.n_layers
        self._do(matmul_grad_weight, g.wte, a.logits, a.lnf)
        self._do(matmul_grad_input, a.branch, a.logits, w.wte)
        saved = a.residual[L], w.lnfw, a.lnf_mean, a.lnf_rstd
        outputs = a.grad_residual, g.lnfw, g.lnfb, a.scratch
        self._do(layernorm_backward, *outputs, a.branch, *saved, accumulate=False)

    def _mlp_backward(self, n: int) -> None:
        a, w, g = self.a, self.w, self.g
        activated, normed = self._kept(a.activated, n), self._kept(a.ln2, n)
        if self.recompute >= 1:
            self._do(gelu_forward, activated, a.expanded[n])
        contract = activated, w.fcprojw[n], g.fcprojw[n], g.fcprojb[n]
        self._linear_backward(a.grad_wide, a.grad_residual, *contract, pre_activation_MK=a.expanded[n])
        if self.recompute >= 2:
            outputs = normed, a.ln2_mean[n], a.ln2_rstd[n]
            self._do(layernorm_forward, *outputs, a.middle[n], w.ln2w[n], w.ln2b[n])
        self._linear_backward(a.branch, a.grad_wide, normed, w.fcw[n], g.fcw[n], g.fcb[n])
        saved = a.middle[n], w.ln2w[n], a.ln2_mean[n], a.ln2_rstd[n]
        self._do(layernorm_backward, a.grad_residual, g.ln2w[n], g.ln2b[n], a.scratch, a.branch, *saved)

    def _attention_backward(self, n: int) -> None:
        a, w, g = self.a, self.w, self.g
        normed = self._kept(a.ln1, n)
        self._linear_backward(a.branch, a.grad_residual, a.mixed[n], w.attprojw[n], g.attprojw[n], g.attprojb[n])
        self._do(attention_backward, a.grad_qkv, a.scratch, a.branch, a.mixed[n], a.qkv[n], a.logsumexp[n])
        if self.recompute >= 2:
            self._do(layernorm_forward, *self._norm_outputs(n), a.residual[n], *self._norm_weights(n))
        self._linear_backward(a.branch, a.grad_qkv, normed, w.qkvw[n], g.qkvw[n], g.qkvb[n])
        saved = a.residual[n], w.ln1w[n], a.ln1_mean[n], a.ln1_rstd[n]
        self._do(layernorm_backward, a.grad_residual, g.ln1w[n], g.ln1b[n], a.scratch, a.branch, *saved)

    def _linear_backward(
        self,
        grad_inp: Tensor,
        grad_out: Tensor,
        inp: Tensor,
        weight: Tensor,
        grad_weight: Tensor,
        grad_bias: Tensor,
        **epilogue: Tensor,
    ) -> None:
        self._do(matmul_grad_weight, grad_weight, grad_out, inp, grad_bias_N=grad_bias, scratch_S=self.a.scratch)
        self._do(matmul_grad_input, grad_inp, grad_out, weight, **epilogue)
