"""Sampling: the cache changes nothing, padding is never drawn, and the filters keep the right tokens."""

from collections import Counter

import pytest
import torch

from gpt2edu import sample
from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError
from gpt2edu.model import GPT2
from gpt2edu.tokenizer import save_tokenizer, train_tokenizer
from gpt2edu.weights import write_model_file

CONFIG = ModelConfig.from_descriptor("d2,h2,c32,t24,v131")
PROMPT = [5, 130, 0, 7]


def make_model(config=CONFIG, seed=3):
    model = GPT2(config)
    model.init_weights(seed)
    model.flat_parameters *= 8  # so that the likeliest token depends on the text
    padding = model.wte.weight.data[config.vocab_size :]
    padding.copy_(9 * torch.randn(padding.shape, generator=torch.Generator().manual_seed(seed)))  # large scores
    return model


def tokens(model, n=20, prompt=PROMPT, **options):
    return list(sample.generate(model, prompt, n, **options))


def test_greedy_tokens_are_equal_with_and_without_the_cache_and_those_of_the_plain_loop():
    model = make_model()
    expected = list(PROMPT)
    for _ in range(20):
        with torch.no_grad():
            logits_V = model(torch.tensor([expected]))[0, -1, : CONFIG.vocab_size]
        expected.append(int(logits_V.argmax()))
    lengths = []  # of what the model is given each time
    model.register_forward_pre_hook(lambda _, arguments: lengths.append(arguments[0].shape[1]))
    cached = tokens(model, temperature=0)
    whole = tokens(model, temperature=0, use_cache=False)
    assert lengths == [4, *[1] * 19, *range(4, 24)]
    assert cached == whole == expected[4:]
    assert len(set(cached)) > 3


def test_drawn_tokens_depend_on_the_seed_alone():
    model = make_model()
    first = tokens(model, seed=1)
    assert first == tokens(model, seed=1) == tokens(model, seed=1, use_cache=False)
    assert first != tokens(model, seed=2)
    assert tokens(model, top_k=1) == tokens(model, temperature=0)


def test_padding_is_never_drawn():
    model = make_model()
    logits = model(torch.tensor([PROMPT]))[0, -1]
    assert logits[CONFIG.vocab_size :].abs().max() > logits[: CONFIG.vocab_size].abs().max()
    for temperature in (0, 1, 50):
        for seed in range(5):
            assert max(tokens(model, temperature=temperature, seed=seed)) < CONFIG.vocab_size


def draws(n=4000, **options):
    """How often each of five tokens with probabilities 0.1, 0.4, 0.3, 0.05, 0.15 is drawn."""
    logits_V = torch.log(torch.tensor([0.1, 0.4, 0.3, 0.05, 0.15])) + 3
    generator = torch.Generator().manual_seed(0)
    settings = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} | options
    counts = Counter(sample.choose_token(logits_V, generator=generator, **settings) for _ in range(n))
    return [counts[i] / n for i in range(5)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.1, 0.4, 0.3, 0.05, 0.15]),
        ({"temperature": 0}, [0, 1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.01, 0.16, 0.09, 0.0025, 0.0225]),
        ({"top_k": 2}, [0, 0.4, 0.3, 0, 0]),
        ({"top_k": 9}, [0.1, 0.4, 0.3, 0.05, 0.15]),
        ({"top_p": 0.39}, [0, 1, 0, 0, 0]),
        ({"top_p": 0.5}, [0, 0.4, 0.3, 0, 0]),
        ({"top_p": 0.84}, [0, 0.4, 0.3, 0, 0.15]),
        ({"top_k": 3, "top_p": 0.5}, [0, 0.4, 0.3, 0, 0]),
    ],
)
def test_filters_keep_the_likeliest_and_their_odds(options, expected):
    total = sum(expected)
    assert draws(**options) == pytest.approx([share / total for share in expected], abs=0.025)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 21}, "a prompt of 4 tokens and --length 21 do not fit the model's context of 24 tokens"),
        ({"n": 1, "prompt": list(range(24))}, "give a shorter --prompt"),
        ({"n": 0}, "--length 0"),
        ({"prompt": []}, "the prompt is empty"),
        ({"temperature": -1}, "--temperature"),
        ({"top_k": -1}, "--top-k"),
        ({"top_p": 0}, "--top-p"),
        ({"top_p": 1.5}, "--top-p"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_first_token(options, words):
    with pytest.raises(UsageError) as caught:
        sample.generate(make_model(), options.pop("prompt", PROMPT), options.pop("n", 5), **options)
    assert words in str(caught.value)


@pytest.fixture
def run_folder(tmp_path):
    """A model with a vocabulary of its own, in which every text ends at once or goes on for ever."""
    tokenizer = train_tokenizer("the cat sat on the mat " * 9, 262)
    save_tokenizer(tokenizer, tmp_path / "tokenizer.json")
    config = ModelConfig.from_descriptor(f"d1,h1,c16,t32,v{tokenizer.vocab_size}")
    write_model_file(tmp_path / "model_00000001.bin", config, make_model(config).flat_parameters)
    return tmp_path


def run(capsys, folder, *options):
    sample.main(["--checkpoint", str(folder / "model_00000001.bin"), "--device", "cpu", *options])
    return capsys.readouterr().out


def test_the_command_prints_prompt_and_continuation(run_folder, capsys):
    text = run(capsys, run_folder, "--prompt", "the 고양이 cat", "--length", "9", "--seed", "4")
    assert text.startswith("the 고양이 cat")
    assert len(text) > len("the 고양이 cat\n")
    assert text == run(capsys, run_folder, "--prompt", "the 고양이 cat", "--length", "9", "--seed", "4", "--no-cache")
    assert text != run(capsys, run_folder, "--prompt", "the 고양이 cat", "--length", "9", "--seed", "5")


def test_the_command_stops_at_the_end_of_the_text_and_joins_bytes_to_letters(run_folder, capsys, monkeypatch):
    tokenizer = sample.find_tokenizer(run_folder, ModelConfig.from_descriptor("d1,h1,c8,t8,v262"))
    assert len(tokenizer.encode("é")) == 2
    ids = [*tokenizer.encode("é cat"), tokenizer.eot, *tokenizer.encode("never")]
    monkeypatch.setattr(sample, "generate", lambda model, prompt, *args, **options: iter(ids))
    assert run(capsys, run_folder, "--prompt", "the") == "theé cat\n"


def test_without_a_prompt_it_starts_a_document(run_folder, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr(sample, "generate", lambda model, prompt, *args, **options: seen.append(prompt) or iter([]))
    assert run(capsys, run_folder) == "\n"
    assert seen == [[261]]


def test_bad_input_is_one_sentence(run_folder, capsys):
    with pytest.raises(UsageError, match="--device foo"):
        run(capsys, run_folder, "--device", "foo")
    with pytest.raises(UsageError, match="context of 32 tokens"):
        run(capsys, run_folder, "--prompt", "the cat " * 40)
    with pytest.raises(UsageError, match="give the tokenizer.json"):
        run(capsys, run_folder, "--tokenizer", "gpt2")
    with pytest.raises(Gpt2EduError, match="cannot be read"):
        sample.main(["--checkpoint", str(run_folder / "none.bin")])


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit) as caught:
        sample.main(["--help"])
    assert caught.value.code == 0
    assert "examples:" in capsys.readouterr().out
