"""GPT-2's loss and all its gradients in NumPy, written from the formulas and without automatic differentiation.

The yardstick of the models: run in float64 it is the truth, run in float32 it is the plain version whose error
bounds ours. Shape suffix legend as in `gpt2edu.model`; R = B * T rows.
"""

import math

import numpy as np

GELU_SCALE = math.sqrt(2 / math.pi)
EPSILON = 1e-5


def layernorm(x_RC, weight_C, bias_C):
    """Return the output and what backward needs: the normalised rows and one over the standard deviation."""
    mean_R1 = x_RC.mean(-1, keepdims=True)
    variance_R1 = ((x_RC - mean_R1) ** 2).mean(-1, keepdims=True)
    rstd_R1 = 1 / np.sqrt(variance_R1 + x_RC.dtype.type(EPSILON))
    normed_RC = (x_RC - mean_R1) * rstd_R1
    return normed_RC * weight_C + bias_C, (normed_RC, rstd_R1)


def layernorm_backward(grad_out_RC, weight_C, saved):
    """Return the gradients of input, weight and bias."""
    normed_RC, rstd_R1 = saved
    grad_normed_RC = grad_out_RC * weight_C
    grad_x_RC = rstd_R1 * (
        grad_normed_RC
        - grad_normed_RC.mean(-1, keepdims=True)
        - normed_RC * (grad_normed_RC * normed_RC).mean(-1, keepdims=True)
    )
    return grad_x_RC, (grad_out_RC * normed_RC).sum(0), grad_out_RC.sum(0)


def linear_backward(grad_out, x, weight):
    """Return the gradients of input, weight (out, in) and bias of x @ weight.T + bias."""
    return grad_out @ weight, grad_out.T @ x, grad_out.sum(0)


def gelu(x):
    """Return the tanh form of GELU."""
    return 0.5 * x * (1 + np.tanh(GELU_SCALE * (x + 0.044715 * x**3)))


def gelu_backward(grad_out, x):
    """Return the gradient of gelu's input."""
    tanh = np.tanh(GELU_SCALE * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * GELU_SCALE * (1 + 3 * 0.044715 * x**2)
    return grad_out * slope


def softmax(x):
    """Return probabilities along the last axis."""
    exponentials = np.exp(x - x.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def attention(qkv_RE, B, H):
    """Return mixed values (R, C) and what backward needs."""
    C = qkv_RE.shape[1] // 3
    T, D = qkv_RE.shape[0] // B, C // H
    query, key, value = qkv_RE.reshape(B, T, 3, H, D).transpose(2, 0, 3, 1, 4)
    scores_BHTS = np.einsum("bhtd,bhsd->bhts", query, key) / qkv_RE.dtype.type(math.sqrt(D))
    future_TS = np.triu(np.ones((T, T), dtype=bool), 1)
    weights_BHTS = softmax(np.where(future_TS, -np.inf, scores_BHTS).astype(qkv_RE.dtype))
    mixed_BHTD = np.einsum("bhts,bhsd->bhtd", weights_BHTS, value)
    return mixed_BHTD.transpose(0, 2, 1, 3).reshape(B * T, C), (query, key, value, weights_BHTS)


def attention_backward(grad_mixed_RC, saved):
    """Return the gradient of qkv (R, E)."""
    query, key, value, weights_BHTS = saved
    B, H, T, D = query.shape
    grad_mixed = grad_mixed_RC.reshape(B, T, H, D).transpose(0, 2, 1, 3)
    grad_value = np.einsum("bhts,bhtd->bhsd", weights_BHTS, grad_mixed)
    grad_weights = np.einsum("bhtd,bhsd->bhts", grad_mixed, value)
    grad_scores = weights_BHTS * (grad_weights - (grad_weights * weights_BHTS).sum(-1, keepdims=True))
    grad_scores = grad_scores / query.dtype.type(math.sqrt(D))
    grad_query = np.einsum("bhts,bhsd->bhtd", grad_scores, key)
    grad_key = np.einsum("bhts,bhtd->bhsd", grad_scores, query)
    grad_qkv = np.stack([grad_query, grad_key, grad_value])  # three B H T D -> (B T) (three H D)
    return grad_qkv.transpose(1, 3, 0, 2, 4).reshape(B * T, 3 * H * D)


def forward_backward(parameters, tokens_BT, targets_BT, n_heads, vocab_size):
    """Compute everything in the dtype of the parameters.

    Args:
        parameters: the 16 tensors by name, as `gpt2edu.parameters` shapes them.

    Returns:
        logits (B, T, V), losses (B, T), and the gradients of the mean loss, by name.
    """
    p = parameters
    B, T = tokens_BT.shape
    tokens_R, targets_R = tokens_BT.reshape(-1), targets_BT.reshape(-1)
    rows_R, n_layers = np.arange(B * T), len(p["ln1w"])

    hidden = p["wte"][tokens_R] + np.tile(p["wpe"][:T], (B, 1))
    saved = []
    for n in range(n_layers):
        normed1, ln1 = layernorm(hidden, p["ln1w"][n], p["ln1b"][n])
        mixed, att = attention(normed1 @ p["qkvw"][n].T + p["qkvb"][n], B, n_heads)
        hidden = hidden + mixed @ p["attprojw"][n].T + p["attprojb"][n]
        normed2, ln2 = layernorm(hidden, p["ln2w"][n], p["ln2b"][n])
        expanded = normed2 @ p["fcw"][n].T + p["fcb"][n]
        activated = gelu(expanded)
        hidden = hidden + activated @ p["fcprojw"][n].T + p["fcprojb"][n]
        saved.append((normed1, ln1, att, mixed, normed2, ln2, expanded, activated))
    final, lnf = layernorm(hidden, p["lnfw"], p["lnfb"])
    head_VC = p["wte"][:vocab_size]
    logits_RV = final @ head_VC.T
    probabilities_RV = softmax(logits_RV)
    losses_R = -np.log(probabilities_RV[rows_R, targets_R])

    grads = {name: np.zeros_like(value) for name, value in p.items()}
    grad_logits_RV = probabilities_RV.copy()
    grad_logits_RV[rows_R, targets_R] -= 1
    grad_logits_RV /= B * T
    grads["wte"][:vocab_size] = grad_logits_RV.T @ final
    grad_hidden, grads["lnfw"], grads["lnfb"] = layernorm_backward(grad_logits_RV @ head_VC, p["lnfw"], lnf)
    for n in reversed(range(n_layers)):
        normed1, ln1, att, mixed, normed2, ln2, expanded, activated = saved[n]
        grad, grads["fcprojw"][n], grads["fcprojb"][n] = linear_backward(grad_hidden, activated, p["fcprojw"][n])
        grad, grads["fcw"][n], grads["fcb"][n] = linear_backward(gelu_backward(grad, expanded), normed2, p["fcw"][n])
        grad, grads["ln2w"][n], grads["ln2b"][n] = layernorm_backward(grad, p["ln2w"][n], ln2)
        grad_hidden = grad_hidden + grad
        grad, grads["attprojw"][n], grads["attprojb"][n] = linear_backward(grad_hidden, mixed, p["attprojw"][n])
        grad, grads["qkvw"][n], grads["qkvb"][n] = linear_backward(attention_backward(grad, att), normed1, p["qkvw"][n])
        grad, grads["ln1w"][n], grads["ln1b"][n] = layernorm_backward(grad, p["ln1w"][n], ln1)
        grad_hidden = grad_hidden + grad
    np.add.at(grads["wte"], tokens_R, grad_hidden)
    grads["wpe"][:T] = grad_hidden.reshape(B, T, -1).sum(0)
    return logits_RV.reshape(B, T, -1), losses_R.reshape(B, T), grads
