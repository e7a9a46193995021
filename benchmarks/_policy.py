"""A random Qwen2.5-VL on disk that never ends a turn by itself, and questions to ask it, each about one picture.

Its tokenizer names no end-of-turn token, and splits the protocol's tags as real ones do, so a turn has as many tokens
as it is given room for: what is set side by side samples the same number of tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402
from transformers import PreTrainedTokenizerFast  # noqa: E402

from mmsr1.data.emblem.tokenizer import CONTROL_TOKENS  # noqa: E402
from mmsr1.models.images import ImageFeatures  # noqa: E402
from mmsr1.models.loading import PolicyFiles, load_policy, save_policy  # noqa: E402
from mmsr1.models.tiny import tiny_config, tiny_image_processor, tiny_model  # noqa: E402
from mmsr1.tools.pictures import decode, encode_png  # noqa: E402
from mmsr1.types import Example, Picture  # noqa: E402

EDGE = 112  # pixels of a question's picture: 16 tokens
# Words and punctuation of these are tokens; other text is spelt out.
SENTENCES = (
    "what does picture 17 show? I do not know this place now it lies by the sea north of the hills, and was founded by",
    '<reason> </reason><text_search> </text_search><answer> </answer> information "search", "arguments": {"query": "}}',
    '<tool_call> </tool_call> {"name": "',
)


def write_policy(
    folder: Path, hidden: int = 128, layers: int = 3, vision: int = 64, depth: int = 2, vocabulary: int | None = None
) -> None:
    """Random weights, tokenizer and image processor as a Hugging Face folder; the sizes are those of the shipped
    policy unless others are given."""
    words = tokenizer()
    config = tiny_config(words, hidden, layers, vision, depth)
    text: Any = config.text_config
    text.eos_token_id = None
    text.vocab_size = vocabulary or text.vocab_size
    processor = tiny_image_processor()
    files = PolicyFiles(tiny_model(config, seed=0), words, processor, ImageFeatures(processor, decode))
    save_policy(folder, files, None, torch.float32)


def read_policy(folder: Path) -> PolicyFiles:
    return load_policy(str(folder), "float32", decode)


def questions(count: int, run: int) -> list[Example]:
    """`count` questions whose pictures no other run has: an image that was processed before would cost nothing."""
    shown = [random_picture(run, number) for number in range(count)]
    return [
        Example(f"q{number}", f"what does picture {number} show?", (picture,), "it", (), "both", "drawn")
        for number, picture in enumerate(shown)
    ]


def as_task(asked: Sequence[Example], folder: Path) -> list[dict[str, str]]:
    """The same questions for a process without this project: text, and the picture as a file in `folder`."""
    rows = []
    for example in asked:
        (picture,) = example.images
        (folder / f"{picture.digest}.png").write_bytes(picture.data)
        rows.append({"question": example.question, "image": str(folder / f"{picture.digest}.png")})
    return rows


def random_picture(run: int, number: int, edge: int = EDGE) -> Picture:
    """Coloured squares of 14 pixels, drawn from the two numbers; `edge` is its width and height in pixels."""
    patches = (edge // 14, edge // 14)
    noise = random.Random(f"{run} {number}").randbytes(3 * patches[0] * patches[1])
    return encode_png(Image.frombytes("RGB", patches, noise).resize((edge, edge), Image.Resampling.NEAREST))


def tokenizer() -> PreTrainedTokenizerFast:
    spelling = Tokenizer(models.BPE())
    spelling.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    spelling.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=512, min_frequency=1, initial_alphabet=alphabet, show_progress=False)
    spelling.train_from_iterator(SENTENCES, trainer)
    spelling.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in CONTROL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=spelling,
        pad_token="<|endoftext|>",
        model_max_length=32768,
        clean_up_tokenization_spaces=False,
    )
