"""The recipes that `gpt2edu.reproduce` knows: a text, a model, and the flags it is trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gpt2edu.cli import parse_settings
from gpt2edu.config import ModelConfig, TrainConfig

SHARD_TOKENS = 100_000_000


@dataclass(frozen=True)
class TextSource:
    """The text of a preset: the arguments of `gpt2edu.data`, the folder below the data folder, and its size."""

    title: str
    command: tuple[str, ...]
    folder: str
    train_tokens: int  # in the whole source, about
    val_tokens: int
    own_vocabulary: bool = False


@dataclass(frozen=True)
class Preset:
    """A recipe: a text and the flags of `gpt2edu.train`, micro-batch and recomputation left to the machine."""

    name: str
    title: str
    text: TextSource
    flags: str
    micro_batch: int  # sequences a GPU at most
    prompts: tuple[str, ...]

    @property
    def settings(self) -> TrainConfig:
        """The flags, read by the trainer's own parser."""
        return parse_settings(self.flags.split())

    @property
    def model(self) -> ModelConfig:
        """The shape of the model."""
        return ModelConfig.from_descriptor(self.settings.model)

    @property
    def tokens(self) -> int:
        """Tokens that training reads."""
        return self.settings.max_steps * (self.settings.total_batch or 0)

    @property
    def train_shards(self) -> int:
        """Shards of training text that are needed, at most all there are."""
        return math.ceil(min(self.tokens, self.text.train_tokens) / SHARD_TOKENS)


FINEWEB_10B = TextSource(
    "FineWeb 10B", ("fineweb", "--version", "10B", "--ready-made"), "fineweb10B", 10_255_000_000, SHARD_TOKENS
)
FINEWEB_100B = TextSource(
    "FineWeb 100B", ("fineweb", "--version", "100B"), "fineweb100B", 102_700_000_000, SHARD_TOKENS
)
FINEWEB_EDU_100B = TextSource(
    "FineWeb-Edu 100B",
    ("fineweb", "--version", "100B", "--edu", "--ready-made"),
    "edu_fineweb100B",
    99_900_000_000,
    SHARD_TOKENS,
)
KING_JAMES = TextSource("the King James Bible", ("kjv",), "kjv", 1_290_000, 70_000, own_vocabulary=True)
KING_JAMES_512 = TextSource(
    "the King James Bible",
    ("kjv", "--tokenizer", "train:512"),
    "kjv-train512",
    1_650_000,
    91_000,
    own_vocabulary=True,
)

WEB_PROMPTS = ("", "Once upon a time", "The meaning of life is", "A GPU differs from a CPU in")
BIBLE_PROMPTS = ("", "And it came to pass", "Jesus said unto them", "The LORD is my")

# The four GPT-2 recipes are those of llm.c's scripts/run_gpt2_*.sh; --order-ranks and --order-batch give their data
# order on any number of GPUs. The larger ones keep only the newest checkpoints, which llm.c's scripts do not.
# In the small ones --order-batch 1 draws each sequence by itself: with few sequences to a step, neighbors in the text
# would make its gradient one-sided.
PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "gpt2-124m",
            "GPT-2 124M, the recipe of the original post",
            FINEWEB_10B,
            "-e d12 -t 1024 -d 524288 -x 18865 -c 0.1 -l 0.0006 -q 0.0 -u 700 -n 5000 -v 250 -s 20000 -g 144 -h 1 "
            "--order-ranks 8 --order-batch 64",
            64,
            WEB_PROMPTS,
        ),
        Preset(
            "gpt2-350m",
            "GPT-2 350M on 31B tokens",
            FINEWEB_100B,
            "-e d24 -t 1024 -d 524288 -x 60000 -c 0.1 -l 0.0003 -q 0.0 -u 700 -n 2000 -nk 2 -v 250 -s 100000 -g 144 "
            "-h 1 --order-ranks 8 --order-batch 64",
            64,
            WEB_PROMPTS,
        ),
        Preset(
            "gpt2-774m",
            "GPT-2 774M on 150B tokens",
            FINEWEB_100B,
            "-e d36 -t 1024 -d 524288 -x 286102 -c 0.1 -l 0.00025 -q 0.0 -u 700 -n 4000 -nk 2 -v 250 -s 300000 "
            "-g 144 -h 1 --order-ranks 8 --order-batch 32",
            32,
            WEB_PROMPTS,
        ),
        Preset(
            "gpt2-1558m",
            "GPT-2 1558M on 33.6B tokens",
            FINEWEB_EDU_100B,
            "-e d48 -t 1024 -d 1048576 -x 32000 -c 0.1 -l 0.0006 -q 0.1 -u 700 -n 2000 -nk 2 -v 250 -s 300000 -g 384 "
            "-h 1 --order-ranks 8 --order-batch 16",
            16,
            WEB_PROMPTS,
        ),
        Preset(
            "laptop",
            "a GPT-2 of 1.4M parameters for two processor cores",
            KING_JAMES,
            "-e d4,h5,c160,t256,v1024 -t 256 -d 1024 -x 3000 -c 0.1 -l 0.003 -q 0.05 -u 100 -n 1500 -nk 1 -v 375 -s 0 "
            "--compile 0 --order-batch 1",
            4,
            BIBLE_PROMPTS,
        ),
        Preset(
            "smoke",
            "the same path in seconds, for tests",
            KING_JAMES_512,
            "-e d2,h2,c64,t64,v512 -t 64 -d 1024 -x 400 -c 0.1 -l 0.005 -q 0.1 -u 40 -n 200 -nk 1 -v 100 -s 0 "
            "--compile 0 --order-batch 1",
            16,
            BIBLE_PROMPTS[:2],
        ),
    )
}
