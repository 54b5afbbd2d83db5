"""Let a model continue a text: `python -m gpt2edu.sample`."""

from __future__ import annotations

import argparse
import codecs
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gpt2edu.config import ModelConfig
from gpt2edu.errors import Gpt2EduError, UsageError, run_main
from gpt2edu.model import GPT2
from gpt2edu.torch_engine import choose_device
from gpt2edu.weights import find_tokenizer, load_model


def choose_token(logits_V: Tensor, *, temperature: float, top_k: int, top_p: float, generator: torch.Generator) -> int:
    """Return one token id drawn from the scores of all V tokens.

    Args:
        logits_V: the scores, on any device.
        temperature: the scores are divided by it; below 1 bold tokens win more often, and 0 takes the best one.
        top_k: only the k best tokens can be drawn; 0 allows all.
        top_p: only the fewest best tokens that together have this probability can be drawn; 1 allows all.
        generator: of random numbers, on the CPU so that every device draws alike.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    scores, ids = torch.sort(logits_V.float().cpu() / temperature, descending=True, stable=True)
    probabilities = torch.softmax(scores, dim=0)
    better = probabilities.cumsum(0) - probabilities  # probability of the tokens before each one
    allowed = better < top_p
    if top_k:
        allowed[top_k:] = False
    return int(ids[torch.multinomial(probabilities * allowed, 1, generator=generator)])


def generate(
    model: GPT2,
    prompt_ids: Sequence[int],
    n_tokens: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 42,
    use_cache: bool = True,
) -> Iterator[int]:
    """Return an iterator over `n_tokens` new token ids that continue the prompt.

    With the cache each step computes the newest token alone; without it, the whole text again. Both give the same
    scores up to rounding. For the other arguments see `choose_token`.

    Raises:
        UsageError: an argument is out of range, or prompt and new tokens do not fit the context together.
    """
    context = model.config.max_seq_len
    if not prompt_ids:
        raise UsageError("the prompt is empty; start from <|endoftext|> for a text from nothing")
    room = context - len(prompt_ids)
    if not 1 <= n_tokens <= room:
        remedy = f"a --length from 1 to {room:,} or a shorter --prompt" if room > 0 else "a shorter --prompt"
        raise UsageError(
            f"a prompt of {len(prompt_ids):,} tokens and --length {n_tokens:,} do not fit the model's context of "
            f"{context:,} tokens; give {remedy}"
        )
    if temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise UsageError("--temperature and --top-k cannot be negative, and --top-p lies above 0 and at most at 1")
    generator = torch.Generator().manual_seed(seed)
    drawing = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "generator": generator}
    return _generate(model, list(prompt_ids), n_tokens, drawing, model.new_cache() if use_cache else None)


def _generate(model: GPT2, ids: list[int], n_tokens: int, drawing: dict, cache: list | None) -> Iterator[int]:
    device = model.flat_parameters.device
    for _ in range(n_tokens):
        known = cache[0].length if cache else 0
        with torch.inference_mode():
            logits_BTP = model(torch.tensor([ids[known:]], device=device), cache)
        ids.append(choose_token(logits_BTP[0, -1, : model.config.vocab_size], **drawing))
        yield ids[-1]


def model_on_device(config: ModelConfig, flat: Tensor, device: str | None = None) -> GPT2:
    """Return a model with these weights on `device` (default: the GPU if there is one).

    Raises:
        Gpt2EduError: there is no such device, or the model does not fit its memory.
    """
    chosen = choose_device(device)
    try:
        model = GPT2(config, device=chosen)
    except torch.OutOfMemoryError as problem:
        raise Gpt2EduError(f"the model does not fit the memory of {chosen}; use --device cpu") from problem
    model.flat_parameters.copy_(flat)
    return model


def build_parser() -> argparse.ArgumentParser:
    """Return the command line of `python -m gpt2edu.sample`."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2edu.sample",
        description="Continue a text with a trained GPT-2.",
        epilog="examples:\n"
        '  python -m gpt2edu.sample --checkpoint log124M --prompt "The capital of France"\n'
        "  python -m gpt2edu.sample --checkpoint openai-community/gpt2 --temperature 0.8 --top-k 50\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--checkpoint", required=True, help="run folder, model_*.bin, or Hugging Face folder or hub name")
    add("--prompt", default="", help="the text to continue (default: none, the model starts a document)")
    add("--length", type=int, default=64, help="at most so many new tokens; it stops at <|endoftext|> (default 64)")
    add("--temperature", type=float, default=1.0, help="0 takes the likeliest token (default 1: the model's own odds)")
    add("--top-k", type=int, default=0, help="draw from the k likeliest tokens only; 0 from all (default 0)")
    add("--top-p", type=float, default=1.0, help="draw from the likeliest tokens that together reach this probability")
    add("--seed", type=int, default=42, help="of the random numbers (default 42)")
    add("--no-cache", action="store_true", help="compute the whole text again for each token: same text, slower")
    add("--tokenizer", help='"gpt2" or a tokenizer.json (default: the one beside the checkpoint, else gpt2)')
    add("--device", help="cpu, cuda, mps ... (default: the GPU if there is one)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Print the prompt and its continuation while it is made."""
    options = build_parser().parse_args(argv)
    config, flat = load_model(options.checkpoint)
    tokenizer = find_tokenizer(options.checkpoint, config, options.tokenizer)
    new_ids = generate(
        model_on_device(config, flat, options.device),
        tokenizer.encode(options.prompt) or [tokenizer.eot],
        options.length,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
        use_cache=not options.no_cache,
    )
    decoder = codecs.getincrementaldecoder("utf-8")("replace")  # a letter may be spread over two tokens
    print(options.prompt, end="", flush=True)
    for token in new_ids:
        if token == tokenizer.eot:
            break
        print(decoder.decode(tokenizer.decode_bytes([token])), end="", flush=True)
    print(decoder.decode(b"", final=True))


if __name__ == "__main__":
    run_main(main)
