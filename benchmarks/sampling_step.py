"""A rollout of one turn and the training step on it, both on one device: tokens sampled and trained a second.

On a CUDA device a Qwen2.5-VL-3B (its real sizes, random weights, bfloat16), else a tiny one. The engine is the one that
needs no vLLM. 8 questions with a picture of 256 tokens, 8 answers each of 128 tokens; the second of two rounds counts.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from lightning import Callback  # noqa: E402
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from benchmarks._policy import random_picture, tokenizer, write_policy  # noqa: E402
from benchmarks._training import fit  # noqa: E402
from mmsr1.models.buffer import RolloutBuffer  # noqa: E402
from mmsr1.models.grpo import LossSpec  # noqa: E402
from mmsr1.models.grpo_module import Encoding, GRPOModule  # noqa: E402
from mmsr1.models.images import ImageFeatures  # noqa: E402
from mmsr1.models.loading import PolicyFiles, load_policy, save_policy  # noqa: E402
from mmsr1.models.module import OptimSpec, Sharding  # noqa: E402
from mmsr1.models.plan import SHAPES  # noqa: E402
from mmsr1.models.policy import Policy  # noqa: E402
from mmsr1.models.tiny import tiny_image_processor  # noqa: E402
from mmsr1.rewards.advantage import make_group  # noqa: E402
from mmsr1.rollout.engines.base import Completion, Sampling, TokenPrompt  # noqa: E402
from mmsr1.rollout.engines.transformers import TransformersEngine  # noqa: E402
from mmsr1.tools.pictures import decode  # noqa: E402
from mmsr1.types import Episode, Example, Group, Reward, Sampled, Segment, StepPrompts, Timings  # noqa: E402

QUESTIONS, ROLLOUTS, TOKENS, EDGE = 8, 8, 128, 448
Asked = list[tuple[TokenPrompt, Sampling]]


def measure() -> dict[str, Any]:
    """Figures of the sampling and of the training step, on a GPU if there is one."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", "bfloat16") if on_gpu else ("cpu", "float32")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if on_gpu:
            _write_3b(folder)
        else:
            write_policy(folder)
        files = load_policy(str(folder), dtype, decode)
        asked = _asked(files)
        answers, sampling_s = _sample(folder, asked, device, dtype)
    groups = _groups(files, asked, answers)
    watch = Watch(groups, on_gpu)
    fit(_module(files, dtype, on_gpu), [StepPrompts(step, ()) for step in range(2)], watch, on_gpu)
    sampled = sum(len(answer.token_ids) for answer in answers)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "parameters": sum(parameter.numel() for parameter in files.model.parameters()),
        "episodes": len(answers),
        "tokens_sampled": sampled,
        "tokens_trained_on": watch.tokens,
        "seconds_sampling": sampling_s,
        "seconds_training": watch.seconds,
        "sampled_per_s": sampled / sampling_s,
        "trained_per_s": watch.tokens / watch.seconds,
        "gap_mean": watch.figures["logprob_gap_mean"],
        "gap_max": watch.figures["logprob_gap_max"],
    }


def _write_3b(folder: Path) -> None:
    """The shape of Qwen2.5-VL-3B, with the tokenizer of the small policies: what is said has no meaning anyway."""
    words = tokenizer()
    shape = json.loads((SHAPES / "Qwen2.5-VL-3B-Instruct.json").read_text(encoding="utf-8"))
    names = {"image": "image_pad", "video": "video_pad", "vision_start": "vision_start", "vision_end": "vision_end"}
    ids = {f"{key}_token_id": words.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}
    config = Qwen2_5_VLConfig(**{**shape, **ids, "bos_token_id": None, "eos_token_id": None})
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    processor = tiny_image_processor(max_tokens=1024)
    save_policy(folder, PolicyFiles(model, words, processor, ImageFeatures(processor, decode)), None, torch.bfloat16)


def _asked(files: PolicyFiles) -> Asked:
    words = files.tokenizer
    asked = []
    for number in range(QUESTIONS):
        text = f"<|vision_start|><|image_pad|><|vision_end|>what does picture {number} show?"
        ids = tuple(words.encode(text, add_special_tokens=False))
        prompt = TokenPrompt(ids, (random_picture(0, number, EDGE),))
        asked += [(prompt, Sampling(1.0, 1.0, TOKENS, seed=ROLLOUTS * number + i)) for i in range(ROLLOUTS)]
    return asked


def _sample(folder: Path, asked: Asked, device: str, dtype: str) -> tuple[list[Completion], float]:
    async def main() -> tuple[list[Any], float]:
        engine = TransformersEngine(folder, dtype=dtype, device=device, max_batch=QUESTIONS * ROLLOUTS)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            answers = await asyncio.gather(*(engine.generate(*one) for one in asked))
            seconds = time.perf_counter() - start
        await engine.close()
        return answers, seconds

    answers, seconds = asyncio.run(main())
    failures = [answer for answer in answers if not isinstance(answer, Completion)]
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(answers)} requests failed: {failures[0].reason}")
    return answers, seconds


def _groups(files: PolicyFiles, asked: Asked, answers: list[Completion]) -> tuple[Group, ...]:
    groups = []
    for number in range(QUESTIONS):
        rows = range(ROLLOUTS * number, ROLLOUTS * (number + 1))
        prompt = asked[rows[0]][0]
        said = Segment("template", prompt.token_ids, trusted=True, images=prompt.images)
        episodes = []
        for rollout, row in enumerate(rows):
            drawn = Sampled(answers[row].logprobs, 0)
            turn = Segment("sampled", answers[row].token_ids, trusted=False, sampled=drawn)
            nothing = Timings(0.0, 0.0, 0.0)
            episodes.append(Episode(f"q{number}", rollout, (said, turn), ("",), (), "answered", 0, nothing))
        example = Example(f"q{number}", "what does it show?", prompt.images, "it", (), "free", "drawn")
        rewards = [Reward(float(rollout % 2), {}) for rollout in range(ROLLOUTS)]
        groups.append(make_group(example, episodes, rewards, [True] * ROLLOUTS, "std"))
    return tuple(groups)


def _module(files: PolicyFiles, dtype: str, on_gpu: bool) -> GRPOModule:
    model: Any = files.model  # the library annotates its own `to` wrongly
    model = model.to("cuda") if on_gpu else model
    if on_gpu:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return GRPOModule(
        Policy(model),
        RolloutBuffer(),
        Encoding(files.patches, files.image_token, files.merge, frozenset()),
        LossSpec(),
        OptimSpec(1e-6, "constant", 2, moments="bfloat16" if on_gpu else "float32"),
        mini_batches=1,
        token_budget=16_384,
        gap_limit=None,
        freeze_vision=False,
        sharding=Sharding(getattr(torch, dtype)),
        max_staleness=1,  # the second step trains on the same episodes
    )


class Watch(Callback):
    """Hands each step its groups; seconds of the last one, and the figures of the first, whose weights sampled."""

    def __init__(self, drawn: tuple[Group, ...], on_gpu: bool) -> None:
        self.drawn, self.on_gpu = drawn, on_gpu
        self.seconds, self.tokens = 0.0, 0
        self.figures: dict[str, float] = {}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        pl_module.buffer.put(batch.step, self.drawn)
        self._wait()
        self.seconds = -time.perf_counter()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._wait()
        self.seconds += time.perf_counter()
        self.figures = self.figures or dict(pl_module.figures)
        episodes = [episode for group in self.drawn for episode in group.episodes_G]
        self.tokens = sum(map(pl_module._expanded_length, episodes))

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
