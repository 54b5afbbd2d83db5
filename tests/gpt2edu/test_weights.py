"""Model files equal llm.c's byte for byte; Hugging Face's model reads ours and we read theirs."""

import json
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gpt2edu import weights
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.huggingface import export_huggingface, import_huggingface
from gpt2edu.model import GPT2
from gpt2edu.parameters import n_parameters, parameter_layout
from gpt2edu.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer

sys.path.insert(0, str(Path(__file__).parent))
import reference_gpt2

CONFIG = ModelConfig.from_descriptor("d2,h3,c48,t20,v131")
TINY = ModelConfig(max_seq_len=3, vocab_size=2, padded_vocab_size=4, n_layers=1, n_heads=1, channels=2)


def random_flat(config, seed=1):
    flat = 0.1 * torch.randn(n_parameters(config), generator=torch.Generator().manual_seed(seed))
    parameter_layout(config)[0].view(flat)[config.vocab_size :] = 0
    return flat


def their_model(seed=0, **changes):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(seed)
    shape = dict(vocab_size=131, n_positions=20, n_embd=48, n_layer=2, n_head=3, bos_token_id=130, eos_token_id=130)
    dropout = dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, **dropout, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def our_model(config, flat):
    model = GPT2(config)
    model.flat_parameters.copy_(flat)
    model.allocate_gradients()
    return model


# --------------------------------------------------------------------------------------------------
# llm.c's files


def golden_header(version):
    return struct.pack("<256i", 20240326, version, 3, 2, 1, 1, 2, 4, *[0] * 248)


def test_fp32_file_is_llmc_s_byte_for_byte(tmp_path):
    path, n = tmp_path / "model.bin", n_parameters(TINY)
    weights.write_model_file(path, TINY, torch.arange(n, dtype=torch.float32))
    assert path.read_bytes() == golden_header(3) + struct.pack(f"<{n}f", *range(n))


def test_bf16_file_is_llmc_s_byte_for_byte_and_rounds_to_nearest_even(tmp_path):
    path, n = tmp_path / "model.bin", n_parameters(TINY)
    flat = torch.zeros(n)
    flat[:4] = torch.tensor([1.0, -2.0, 1 + 2**-8, 1 + 3 * 2**-8])  # the last two lie halfway
    weights.write_model_file(path, TINY, flat, dtype="bf16")
    assert path.read_bytes() == golden_header(5) + struct.pack(f"<{n}H", 0x3F80, 0xC000, 0x3F80, 0x3F82, *[0] * (n - 4))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_is_written_is_read(tmp_path, dtype):
    flat = random_flat(CONFIG)
    weights.write_model_file(tmp_path / "model.bin", CONFIG, flat, dtype)
    config, found = weights.read_model_file(tmp_path / "model.bin")
    assert config == CONFIG
    assert found.dtype == torch.float32
    assert torch.equal(found, flat if dtype == "fp32" else flat.bfloat16().float())


def set_word(path, index, value):
    data = bytearray(path.read_bytes())
    data[4 * index : 4 * index + 4] = struct.pack("<i", value)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: path.unlink(), "cannot be read (No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:1000]), "cut short inside its header"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "its header promises"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), "its header promises"),
        (lambda path: set_word(path, 0, 20240520), "is not a model file (it starts with 20240520"),
        (lambda path: set_word(path, 1, 1), "has version 1 of the model format"),
        (lambda path: set_word(path, 4, 2), "its header promises"),
        (lambda path: set_word(path, 5, 0), "header of"),
        (lambda path: set_word(path, 5, 5), "header of"),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(tmp_path, damage, words):
    path = tmp_path / "model_00000005.bin"
    weights.write_model_file(path, TINY, random_flat(TINY))
    damage(path)
    with pytest.raises(Gpt2EduError) as caught:
        weights.read_model_file(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 1


# --------------------------------------------------------------------------------------------------
# Hugging Face


def in_our_layout(named):
    """Put tensors that carry their names (parameters or gradients) into one flat buffer of ours."""
    flat = torch.zeros(n_parameters(CONFIG))
    for tensor in parameter_layout(CONFIG):
        view = tensor.view(flat)
        for layer in range(tensor.n_slices):
            theirs = named[f"transformer.{THEIR_NAMES[tensor.name].format(layer)}"].detach()
            target = view[layer] if tensor.stacked else view[: len(theirs)]
            target.copy_(theirs.T if tensor.stacked and theirs.dim() == 2 else theirs)
    return flat


# written out once more, independently of gpt2edu.huggingface
THEIR_NAMES = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln1w": "h.{}.ln_1.weight",
    "ln1b": "h.{}.ln_1.bias",
    "qkvw": "h.{}.attn.c_attn.weight",
    "qkvb": "h.{}.attn.c_attn.bias",
    "attprojw": "h.{}.attn.c_proj.weight",
    "attprojb": "h.{}.attn.c_proj.bias",
    "ln2w": "h.{}.ln_2.weight",
    "ln2b": "h.{}.ln_2.bias",
    "fcw": "h.{}.mlp.c_fc.weight",
    "fcb": "h.{}.mlp.c_fc.bias",
    "fcprojw": "h.{}.mlp.c_proj.weight",
    "fcprojb": "h.{}.mlp.c_proj.bias",
    "lnfw": "ln_f.weight",
    "lnfb": "ln_f.bias",
}


def logits_and_gradients(ours, theirs, dtype=torch.float32):
    """Return (ours, theirs) of logits, mean loss and flat gradients on the same batch."""
    tokens = torch.randint(0, 131, (3, 21), generator=torch.Generator().manual_seed(5))
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        our_logits = ours(inputs)[..., :131].float()
        our_loss = ours.losses(inputs, targets).mean()
        their_logits = theirs(inputs).logits.float()
        their_loss = torch.nn.functional.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    our_loss.backward()
    theirs.zero_grad()
    their_loss.backward()
    their_gradients = in_our_layout({name: parameter.grad for name, parameter in theirs.named_parameters()})
    numbers = [(our_logits, their_logits), (our_loss, their_loss), (ours.flat_gradients, their_gradients)]
    return [tuple(array.detach().double().numpy() for array in pair) for pair in numbers], inputs, targets


def test_we_read_theirs_and_they_read_ours(tmp_path):
    theirs = their_model()
    theirs.save_pretrained(tmp_path / "theirs")
    config, flat = import_huggingface(tmp_path / "theirs")
    assert config == CONFIG
    assert torch.equal(flat, in_our_layout(dict(theirs.named_parameters())))
    export_huggingface(config, flat, tmp_path / "ours")
    again = type(theirs).from_pretrained(tmp_path / "ours")
    assert again.config.eos_token_id == 130
    for name, parameter in theirs.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter), name
    numbers, _, _ = logits_and_gradients(our_model(config, flat), again.train())
    for ours, expected in numbers:
        assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(numbers[2][1]) == n_parameters(CONFIG)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_our_error_in_half_precision_is_at_most_twice_theirs(dtype):
    squares = np.zeros((3, 2))
    for seed in range(3):
        theirs = their_model(seed, attn_implementation="eager")
        flat = in_our_layout(dict(theirs.named_parameters()))
        ours = our_model(CONFIG, flat)
        numbers, inputs, targets = logits_and_gradients(ours, theirs, dtype)
        parameters = {t.name: t.view(flat.double().numpy()) for t in parameter_layout(CONFIG)}
        logits, losses, grads = reference_gpt2.forward_backward(parameters, inputs.numpy(), targets.numpy(), 3, 131)
        flat_grads = np.concatenate([grads[t.name].ravel() for t in parameter_layout(CONFIG)])
        for row, (pair, truth) in enumerate(zip(numbers, (logits, losses.mean(), flat_grads), strict=True)):
            squares[row] += [((value - truth) ** 2).mean() for value in pair]
    ours, plain = np.sqrt(squares / 3).T
    assert (ours <= 2 * plain)[[0, 2]].all(), (ours, plain)
    assert ours[1] <= max(2 * plain[1], 1e-3)  # the loss is one number, and may be exact by luck
    assert (plain > 1e-6).all()


def test_openai_s_names_without_prefix_and_with_causal_masks(tmp_path):
    flat = random_flat(CONFIG)
    export_huggingface(CONFIG, flat, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    assert "h.1.attn.c_attn.weight" in tensors
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 20, 20).tril()
    tensors["h.1.attn.masked_bias"] = torch.tensor(-1e4)
    tensors["lm_head.weight"] = tensors["wte.weight"].clone()
    save_file({name: tensor.half() if name == "wpe.weight" else tensor for name, tensor in tensors.items()}, path)
    config, found = import_huggingface(tmp_path)
    assert config == CONFIG
    expected = flat.clone()
    wpe = parameter_layout(CONFIG)[1].view(expected)
    wpe.copy_(wpe.half().float())
    assert torch.equal(found, expected)


def test_weights_in_several_files_are_put_together(tmp_path):
    flat = random_flat(CONFIG)
    export_huggingface(CONFIG, flat, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"model-1.safetensors": names[:9], "model-2.safetensors": names[9:]}
    for part, members in parts.items():
        save_file({name: tensors[name] for name in members}, tmp_path / part)
    weight_map = {name: part for part, members in parts.items() for name in members}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(import_huggingface(tmp_path)[1], flat)


def edit_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "not whole JSON"),
        (lambda f: (f / "config.json").write_text("{}"), "lacks a GPT-2's sizes"),
        (lambda f: edit_config(f, n_head=7), "cannot be split"),
        (lambda f: edit_config(f, n_embd=64), "64 channels cannot be split over 3 heads"),
        (lambda f: edit_config(f, n_positions=21), "disagree"),
        (lambda f: edit_config(f, n_layer=3), "has no tensor h.2.ln_1.weight"),
        (lambda f: edit_config(f, n_layer=1), "has no place"),
        (lambda f: edit_config(f, model_type="llama"), "model_type is 'llama'"),
        (lambda f: edit_config(f, activation_function="relu"), "activation_function is 'relu'"),
        (lambda f: edit_config(f, n_inner=100), "n_inner is 100"),
        (lambda f: (f / "model.safetensors").unlink(), "pickle files (.bin) are not read"),
        (lambda f: (f / "model.safetensors").write_bytes(b"12345678" * 9), "damaged or cut short"),
        (lambda f: edit_tensors(f, lambda t: t.update({"lm_head.weight": torch.ones(131, 48)})), "lm_head.weight has"),
        (lambda f: edit_tensors(f, lambda t: t.update({"score.weight": torch.ones(2)})), "score.weight has no place"),
    ],
)
def test_a_folder_that_is_no_plain_gpt2_is_refused_with_a_sentence(tmp_path, damage, words):
    export_huggingface(CONFIG, random_flat(CONFIG), tmp_path)
    damage(tmp_path)
    with pytest.raises(Gpt2EduError) as caught:
        import_huggingface(tmp_path)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_no_network_is_one_clear_error(tmp_path, monkeypatch):
    import huggingface_hub

    def unreachable(name, **options):
        assert options["cache_dir"] == tmp_path / "huggingface"
        assert not any(pattern.endswith(".bin") for pattern in options["allow_patterns"])
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network")

    monkeypatch.setenv("GPT2EDU_DATA", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(Gpt2EduError, match="openai-community/gpt2 is no file or folder here, and it cannot be had"):
        weights.load_model("openai-community/gpt2")


@pytest.mark.network
def test_openai_s_gpt2_from_the_hub():
    config, flat = weights.load_model("openai-community/gpt2")
    assert config == ModelConfig()
    assert flat.isfinite().all()


@pytest.mark.parametrize("kind", ["gpt2", "ours"])
def test_their_tokenizer_reads_our_vocabulary(tmp_path, kind):
    transformers = pytest.importorskip("transformers")
    tokenizer = load_tokenizer() if kind == "gpt2" else train_tokenizer("the cat sat on the mat " * 9, 262)
    config = ModelConfig.from_descriptor(f"d1,h1,c8,t64,v{tokenizer.vocab_size}")
    export_huggingface(config, random_flat(config), tmp_path, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    text = "the cat's 고양이 🐈\n\n  sat "
    assert theirs(text)["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(tokenizer.encode(text)) == text
    assert theirs.eos_token_id == tokenizer.eot == config.vocab_size - 1


# --------------------------------------------------------------------------------------------------
# load_model, find_tokenizer, the command


def test_load_model_takes_files_folders_and_descriptors(tmp_path):
    flat = random_flat(CONFIG)
    weights.write_model_file(tmp_path / "mine.bin", CONFIG, flat)
    export_huggingface(CONFIG, flat, tmp_path / "folder")
    for spec in (tmp_path / "mine.bin", str(tmp_path / "mine.bin"), tmp_path / "folder"):
        config, found = weights.load_model(spec)
        assert config == CONFIG
        assert torch.equal(found, flat)
    config, drawn = weights.load_model("d2,h3,c48,t20,v131", seed=7)
    model = GPT2(CONFIG)
    model.init_weights(7)
    assert config == CONFIG
    assert torch.equal(drawn, model.flat_parameters)


def test_a_run_folder_gives_its_newest_finished_checkpoint(tmp_path, capsys):
    for step in (5, 10, 15):
        weights.write_model_file(tmp_path / f"model_{step:08d}.bin", CONFIG, random_flat(CONFIG, step))
        (tmp_path / f"state_{step:08d}_00000.bin").write_bytes(b"")
    path = tmp_path / "model_00000005.bin"
    with pytest.raises(Gpt2EduError, match="holds no finished checkpoint"):
        weights.load_model(tmp_path)
    checkpoint = pytest.importorskip("gpt2edu.checkpoint")
    entry = {"size": path.stat().st_size, "sha256": checkpoint.sha256_file(path)}
    (tmp_path / "DONE_00000005").write_text(json.dumps({"files": {path.name: entry}}))
    (tmp_path / "DONE_00000010").write_text(json.dumps({"files": {"model_00000010.bin": entry | {"size": 1}}}))
    assert torch.equal(weights.load_model(tmp_path)[1], random_flat(CONFIG, 5))
    assert "passing over it" in capsys.readouterr().err


@pytest.mark.parametrize("spec", ["d13", "gpt3:c1", "d6x", "log 124M"])
def test_a_spec_that_names_nothing_is_a_usage_error(spec):
    with pytest.raises(UsageError):
        weights.load_model(spec)


def test_find_tokenizer_looks_beside_the_weights(tmp_path):
    ours = train_tokenizer("the cat sat on the mat " * 9, 260)
    save_tokenizer(ours, tmp_path / "tokenizer.json")
    config = ModelConfig.from_descriptor("d1,h1,c8,t8,v260")
    assert weights.find_tokenizer(tmp_path, config).name == "bpe-260"
    assert weights.find_tokenizer(tmp_path / "model_00000001.bin", config).name == "bpe-260"
    assert weights.find_tokenizer(tmp_path, ModelConfig(), chosen="gpt2").name == "gpt2"
    (tmp_path / "config.json").write_text("{}")  # now it is a Hugging Face folder, whose tokenizer.json is another's
    assert weights.find_tokenizer(tmp_path, ModelConfig()).name == "gpt2"
    with pytest.raises(UsageError, match="has a vocabulary of 260 tokens, tokenizer gpt2 has 50,257"):
        weights.find_tokenizer("d12", config)


def test_the_command_converts_there_and_back(tmp_path, capsys):
    flat = random_flat(CONFIG)
    weights.write_model_file(tmp_path / "a.bin", CONFIG, flat)
    weights.main([str(tmp_path / "a.bin"), str(tmp_path / "folder")])
    assert "without a vocabulary" in capsys.readouterr().out
    weights.main([str(tmp_path / "folder"), str(tmp_path / "b.bin")])
    assert (tmp_path / "b.bin").read_bytes() == (tmp_path / "a.bin").read_bytes()
    weights.main([str(tmp_path / "folder"), str(tmp_path / "new" / "c.bin"), "--dtype", "bf16"])
    assert (tmp_path / "new" / "c.bin").stat().st_size == 1024 + 2 * n_parameters(CONFIG)
