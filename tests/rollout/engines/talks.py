"""The tiny model's conversations, and what the Hugging Face model says of the same tokens."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from transformers import AutoImageProcessor, PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from mmsr1.rollout.engines.base import Completion, Sampling, TokenPrompt  # noqa: E402
from mmsr1.rollout.engines.vllm import VllmEngine  # noqa: E402
from mmsr1.tools.pictures import decode, encode_png  # noqa: E402
from mmsr1.types import Picture  # noqa: E402
from tests.tiny_model import save_tiny_model, tiny_tokenizer  # noqa: E402

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


@dataclass(frozen=True)
class Tiny:
    """A saved tiny model, the same weights in memory, and its tokenizer."""

    folder: Path
    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerFast

    def prompt(self, text: str, *images: Picture) -> TokenPrompt:
        return TokenPrompt(tuple(self.tokenizer.encode(text)), images)

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids))

    def logprobs(self, prompt: TokenPrompt, sampled: Sequence[int]) -> torch.Tensor:
        """Log-probs of `sampled` after `prompt`."""
        return self.scores(prompt, sampled).gather(1, torch.tensor(sampled)[:, None])[:, 0]

    @torch.no_grad()
    def scores(self, prompt: TokenPrompt, sampled: Sequence[int]) -> torch.Tensor:
        """[sampled, vocabulary] log-probs of every token in each place of `sampled`, from one forward pass over the
        whole conversation."""
        images = AutoImageProcessor.from_pretrained(self.folder)
        pad = self.model.config.image_token_id
        ids, types, tensors = [], [], {}
        counts: list[int] = []
        if prompt.images:
            tensors = dict(images([decode(image) for image in prompt.images], return_tensors="pt"))
            counts = (tensors["image_grid_thw"].prod(1) // images.merge_size**2).tolist()
        runs = iter(counts)
        for token in prompt.token_ids:
            run = next(runs) if token == pad else 1
            ids += [token] * run
            types += [int(token == pad)] * run
        ids += sampled
        types += [0] * len(sampled)
        ids_BT, types_BT = torch.tensor([ids]), torch.tensor([types])
        positions, _ = self.model.model.get_rope_index(
            ids_BT, types_BT, image_grid_thw=tensors.get("image_grid_thw"), attention_mask=torch.ones_like(ids_BT)
        )
        logits = self.model(input_ids=ids_BT, position_ids=positions, mm_token_type_ids=types_BT, **tensors).logits[0]
        start = len(ids) - len(sampled)
        return logits[start - 1 : -1].float().log_softmax(-1)

    def gap(self, prompt: TokenPrompt, completion: Completion) -> float:
        """Largest difference between the engine's log-probs and this model's."""
        expected = self.logprobs(prompt, completion.token_ids)
        return (torch.tensor(completion.logprobs) - expected).abs().max().item()


def picture(seed: int, width: int = 56, height: int = 56) -> Picture:
    """A picture of random coloured patches."""
    draw = random.Random(seed)
    patches = Image.new("RGB", (width // 14, height // 14))
    for x in range(patches.width):
        for y in range(patches.height):
            patches.putpixel((x, y), tuple(draw.randrange(256) for _ in range(3)))
    return encode_png(patches.resize((width, height), Image.Resampling.NEAREST))


def sampling(seed: int, max_tokens: int = 12, temperature: float = 1.0, stop: tuple[str, ...] = ()) -> Sampling:
    return Sampling(temperature=temperature, top_p=1.0, max_tokens=max_tokens, seed=seed, stop=stop)


def question(tiny: Tiny, number: int, *images: Picture) -> TokenPrompt:
    """A first turn about these images; the number makes its text unlike the others'."""
    text = f"<|im_start|>user\n{IMAGE * len(images)}what is shown in picture {number}?<|im_end|>\n"
    return tiny.prompt(text + "<|im_start|>assistant\n", *images)


def followed_by(tiny: Tiny, prompt: TokenPrompt, answer: Completion, text: str, *images: Picture) -> TokenPrompt:
    """The conversation after this answer and one more message."""
    more = tiny.tokenizer.encode(f"\n<|im_start|>user\n{text}{IMAGE * len(images)}<|im_end|>\n<|im_start|>assistant\n")
    return TokenPrompt((*prompt.token_ids, *answer.token_ids, *more), (*prompt.images, *images))


async def converse(engine: Any, tiny: Tiny, seed: int) -> list[tuple[TokenPrompt, Completion]]:
    """Three turns with none, one or two images each; every turn with the prompt it answered."""
    prompt = question(tiny, seed, *(picture(seed * 10 + i) for i in range(seed % 3)))
    turns = []
    for turn in range(3):
        answer = await engine.generate(prompt, sampling(100 * seed + turn))
        assert isinstance(answer, Completion), answer
        turns.append((prompt, answer))
        prompt = followed_by(tiny, prompt, answer, f"and {turn}?", picture(1000 + seed + turn, 56 + 28 * turn, 84))
    return turns


async def conversations(engine: Any, tiny: Tiny, count: int) -> list[tuple[TokenPrompt, Completion]]:
    """All turns of `count` concurrent conversations."""
    return [turn for talk in await asyncio.gather(*(converse(engine, tiny, i) for i in range(count))) for turn in talk]


def save_tiny(folder: Path, tied: bool) -> Tiny:
    return Tiny(folder, save_tiny_model(folder, tied), tiny_tokenizer())


def start_engine(tiny: Tiny, **arguments: Any) -> VllmEngine:
    return VllmEngine(tiny.folder, max_model_len=512, max_num_seqs=16, kv_cache_bytes=2**26, **arguments)
