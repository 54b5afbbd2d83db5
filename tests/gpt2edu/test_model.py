"""The model equals a float64 computation written independently of it, and starts as llm.c's does."""

import collections
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gpt2edu.config import ModelConfig
from gpt2edu.model import GPT2, causal_attention, named_views
from gpt2edu.parameters import n_parameters, parameter_layout

sys.path.insert(0, str(Path(__file__).parent))
import reference_gpt2

CONFIG = ModelConfig.from_descriptor("d3,h3,c48,t21,v131")


def make_model(config=CONFIG, seed=1):
    """A model all of whose parameters are random, so that no bias hides behind a zero; padding rows stay 0."""
    model = GPT2(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    model.flat_parameters += 0.1 * torch.randn(n_parameters(config), generator=generator)
    model.wte.weight.data[config.vocab_size :] = 0
    model.allocate_gradients()
    return model


def make_batch(config=CONFIG, B=2, T=17, seed=2):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, config.vocab_size, (B, T + 1), generator=generator)
    tokens[0, :2] = config.vocab_size - 1  # the last real column, twice
    return tokens[:, :-1], tokens[:, 1:]


def tensors_by_name(config, flat, dtype=np.float64):
    return {t.name: t.view(flat.detach().numpy().astype(dtype)) for t in parameter_layout(config)}


def reference(model, inputs, targets, dtype):
    return reference_gpt2.forward_backward(
        tensors_by_name(model.config, model.flat_parameters, dtype),
        inputs.numpy(),
        targets.numpy(),
        model.config.n_heads,
        model.config.vocab_size,
    )


def run(model, inputs, targets):
    """Return logits (V columns), losses and gradients by name, as float64 arrays."""
    with torch.no_grad():
        logits = model(inputs)[..., : model.config.vocab_size].float().numpy()
    losses = model.losses(inputs, targets)
    losses.mean().backward()
    return logits, losses.detach().numpy(), tensors_by_name(model.config, model.flat_gradients)


def flattened(result):
    logits, losses, gradients = result
    return {"logits": logits, "losses": losses, **gradients}


def worst(ours, truth):
    return np.abs(np.asarray(ours, dtype=np.float64) - truth).max()


@pytest.mark.parametrize(
    ("descriptor", "B", "T"),
    [("d3,h3,c48,t21,v131", 2, 17), ("d1,h1,c8,t5,v128", 1, 1), ("d2,h4,c64,t40,v1023", 3, 40)],
)
@pytest.mark.parametrize("recompute", [0, 1, 2])
def test_logits_loss_and_all_16_gradients_equal_the_float64_reference(descriptor, B, T, recompute):
    """Our root mean square error over a few models is at most twice that of the plain version in the same type."""
    config = ModelConfig.from_descriptor(descriptor)
    squares = collections.defaultdict(lambda: np.zeros(2))  # name -> ours, plain
    for seed in range(8):
        model = make_model(config, seed)
        model.recompute = recompute
        inputs, targets = make_batch(config, B, T, seed)
        ours = flattened(run(model, inputs, targets))
        truth = flattened(reference(model, inputs, targets, np.float64))
        plain = flattened(reference(model, inputs, targets, np.float32))
        for name, value in truth.items():
            assert ours[name].shape == value.shape
            squares[name] += [((array[name] - value) ** 2).mean() for array in (ours, plain)]
    assert len(squares) == 18  # logits, losses, 16 gradients
    ratios = {name: math.sqrt(ours / plain) for name, (ours, plain) in squares.items()}
    assert max(ratios.values()) <= 2, ratios
    assert max(math.sqrt(plain / 8) for _, plain in squares.values()) < 1e-6  # the yardstick is fp32 rounding


def test_the_reference_gradients_are_the_slopes_of_its_loss():
    config = ModelConfig.from_descriptor("d2,h2,c8,t6,v11")
    model = make_model(config)
    inputs, targets = make_batch(config, 2, 5)
    parameters = tensors_by_name(config, model.flat_parameters)
    _, _, grads = reference(model, inputs, targets, np.float64)
    generator, step = np.random.default_rng(3), 1e-5

    def loss():
        args = (parameters, inputs.numpy(), targets.numpy(), config.n_heads, config.vocab_size)
        return reference_gpt2.forward_backward(*args)[1].mean()

    for name, value in parameters.items():
        direction = generator.standard_normal(value.shape)
        if name == "wte":
            direction[config.vocab_size :] = 0
        value += step * direction
        above = loss()
        value -= 2 * step * direction
        slope = (above - loss()) / (2 * step)
        value += step * direction
        assert slope == pytest.approx((grads[name] * direction).sum(), rel=1e-6, abs=1e-9), name


def test_recompute_keeps_less_and_multiplies_no_matrix_again():
    inputs, targets = make_batch()
    kept, flop = [], []
    for recompute in (0, 1, 2):
        model = make_model()
        model.recompute = recompute
        sizes = {}

        def pack(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                losses = model.losses(inputs, targets)
            losses.mean().backward()
        kept.append(sum(sizes.values()))
        flop.append(counter.get_total_flops())
    assert kept[0] > kept[1] > kept[2]
    assert flop[0] == flop[1] == flop[2]


def test_padding_columns_have_no_say_and_no_gradient():
    model = make_model()
    inputs, targets = make_batch()
    before = model.losses(inputs, targets)
    before.mean().backward()
    assert CONFIG.padded_vocab_size > CONFIG.vocab_size
    assert model.wte.weight.grad[CONFIG.vocab_size :].abs().max() == 0
    model.wte.weight.data[CONFIG.vocab_size :] = 5.0
    assert torch.equal(model.losses(inputs, targets), before)


def test_parameters_and_gradients_are_views_of_flat_buffers_and_stay_so():
    model = make_model()
    assert n_parameters(CONFIG) == model.flat_parameters.numel() == sum(p.numel() for p in model.parameters())
    inputs, targets = make_batch()
    for _ in range(2):  # the second pass adds to the first
        model.losses(inputs, targets).mean().backward()
    twice = model.flat_gradients.clone()
    model.flat_gradients.zero_()
    model.losses(inputs, targets).mean().backward()
    assert torch.allclose(twice, 2 * model.flat_gradients, rtol=1e-5, atol=1e-7)
    offset = 0
    for path, view in named_views(CONFIG, model.flat_parameters):
        parameter = model.get_parameter(path)
        assert parameter.data_ptr() == view.data_ptr() == model.flat_parameters.data_ptr() + 4 * offset
        assert parameter.grad.data_ptr() == model.flat_gradients.data_ptr() + 4 * offset
        offset += view.numel()


def test_a_later_token_changes_nothing_before_it():
    model = make_model()
    inputs, _ = make_batch()
    changed = inputs.clone()
    changed[:, 9] = (changed[:, 9] + 1) % CONFIG.vocab_size
    with torch.no_grad():
        before, after = model(inputs), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_cached_logits_equal_whole_ones_however_the_text_is_cut():
    model = make_model()
    inputs, _ = make_batch(T=21)
    cache = model.new_cache()
    with torch.no_grad():
        whole = model(inputs)
        pieces = [model(piece, cache) for piece in inputs.split([7, 1, 1, 5, 7], dim=1)]
    assert torch.allclose(torch.cat(pieces, dim=1), whole, atol=2e-6)
    with pytest.raises(ValueError, match="context"):
        model(inputs[:, :1], cache)


def test_too_long_a_sequence_is_refused():
    with pytest.raises(ValueError, match="22 tokens do not fit the model's context of 21"):
        GPT2(CONFIG)(torch.zeros(1, 22, dtype=torch.long))


def test_attention_worked_by_hand():
    # one head of one channel: queries 1, keys 0 and ln 3, values 4 and 8; the second position weighs 1/4 and 3/4
    qkv_BTE = torch.tensor([[[1.0, 0.0, 4.0], [1.0, math.log(3), 8.0]]])
    assert causal_attention(qkv_BTE, 1).flatten().tolist() == pytest.approx([4.0, 7.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_under_autocast_are_fp32_and_close(dtype):
    model = make_model()
    inputs, targets = make_batch()
    exact = model.losses(inputs, targets)
    with torch.autocast("cpu", dtype):
        losses = model.losses(inputs, targets)
    losses.mean().backward()
    assert losses.dtype == torch.float32
    assert model.flat_gradients.dtype == torch.float32
    assert 0 < (losses - exact).abs().max() < 0.1
    assert model.flat_gradients.isfinite().all()


def test_init_draws_the_numbers_of_llmc_in_its_order():
    config = ModelConfig.from_descriptor("d2,h1,c16,t4,v3")
    model = GPT2(config)
    model.flat_parameters.fill_(7.0)
    model.init_weights(seed=42)
    got = tensors_by_name(config, model.flat_parameters, np.float32)
    generator = torch.Generator().manual_seed(42)

    def draw(*shape, std=0.02):
        return torch.empty(shape).normal_(0, std, generator=generator).numpy()

    V, P, T, C, L = 3, 128, 4, 16, 2
    assert np.array_equal(got["wte"], np.concatenate([draw(V, C), np.zeros((P - V, C), np.float32)]))
    assert np.array_equal(got["wpe"], draw(T, C))
    for layer in range(L):
        assert np.array_equal(got["qkvw"][layer], draw(3 * C, C))
        assert np.array_equal(got["attprojw"][layer], draw(C, C, std=0.02 / math.sqrt(2 * L)))
        assert np.array_equal(got["fcw"][layer], draw(4 * C, C))
        assert np.array_equal(got["fcprojw"][layer], draw(C, 4 * C, std=0.02 / math.sqrt(2 * L)))
    for name in ("ln1w", "ln2w", "lnfw"):
        assert (got[name] == 1).all()
    for name in ("ln1b", "qkvb", "attprojb", "ln2b", "fcb", "fcprojb", "lnfb"):
        assert (got[name] == 0).all()


def test_torch_draws_normal_numbers_as_llmc_does():
    # the golden numbers in the comment on top of llm.c's llmc/rand.h: integers and normal numbers of one stream
    def low_24_bits():
        return round(torch.rand(1).item() * 2**24)

    torch.manual_seed(137)
    integers = [4053805790, 2173880614, 380293709, 1237255315, 2986595568]
    assert [low_24_bits() for _ in integers] == [integer % 2**24 for integer in integers]
    eight = [0.7947664, 1.4369317, -0.2292192, 0.4755633, -0.6334411, -0.5791954, -0.0925705, -0.8659197]
    assert torch.zeros(8).normal_().tolist() == pytest.approx(eight, abs=1e-6)
    assert low_24_bits() == 2186503452 % 2**24
    sixteen = [-1.2813878, -2.6463957, -0.0656950, 0.2180829, -0.4653617, -0.3310841, 2.5485482, 0.1042538]
    sixteen += [0.8460660, 0.9462449, -0.2913765, 0.3431381, -1.1186705, -0.1830533, -2.3153160, 0.3961988]
    assert torch.zeros(16).normal_().tolist() == pytest.approx(sixteen, abs=1e-6)
    assert low_24_bits() == 2756748748 % 2**24


def test_the_first_loss_is_about_that_of_guessing():
    config = ModelConfig.from_descriptor("d2,h2,c64,t32,v1000")
    model = GPT2(config)
    model.init_weights()
    inputs, targets = make_batch(config, 4, 32)
    assert model.losses(inputs, targets).mean().item() == pytest.approx(math.log(1000), abs=0.05)


@pytest.mark.gpu
@pytest.mark.parametrize("recompute", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_compiled_on_a_gpu_as_on_the_cpu(dtype, recompute):
    cpu, gpu = make_model(), GPT2(CONFIG, device="cuda")
    gpu.flat_parameters.copy_(cpu.flat_parameters)
    gpu.allocate_gradients()
    gpu.recompute = recompute
    inputs, targets = make_batch()
    _, losses, grads = run(cpu, inputs, targets)
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        got = torch.compile(gpu.losses)(inputs.cuda(), targets.cuda())
    loss_scale = 1024  # small gradients would vanish in fp16
    (loss_scale * got.mean()).backward()
    gpu.flat_gradients /= loss_scale
    tolerance = {torch.bfloat16: 5e-2, torch.float16: 2e-2, torch.float32: 2e-3}[dtype]
    assert np.allclose(got.detach().cpu().numpy(), losses, atol=tolerance)
    for name, gradient in tensors_by_name(CONFIG, gpu.flat_gradients.cpu()).items():
        assert worst(gradient, grads[name]) <= tolerance * np.abs(grads[name]).max(), name
