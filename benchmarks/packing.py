"""Trained tokens per second: packed micro-batches beside batches padded to their longest episode.

The same small Qwen2.5-VL (float32, one thread, vision tower trained), the same episodes and the same log-prob head;
forward, loss and backward are timed, the optimiser is not. Episodes have the lengths of real multi-turn trajectories
and stand in groups of 8 rollouts of one question. The padded batch is a group, right-padded with an attention mask,
each rollout with its own copies of its images, as the reference and TRL train. The packed one encodes an image once.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from mmsr1.models.grpo import LossSpec, MiniBatchSize, policy_loss
from mmsr1.models.images import ImageFeatures
from mmsr1.models.logprob_head import token_logprobs
from mmsr1.models.packing import FlatSequence, by_token_budget, flatten, pack
from mmsr1.models.policy import Policy
from mmsr1.models.tiny import tiny_image_processor
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture, Sampled, Segment, SegmentKind

ensure_torchvision()

from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

TRACES = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "mmsearch_r1_7b_traces.jsonl"
GROUP, BUDGET, CHUNK, REPEATS, VOCABULARY = 8, 16_384, 1024, 2, 2048
IMAGE_TOKEN = VOCABULARY - 1
# Tokens, counted with Qwen's tokenizer: our prompt with its system message, what stands around results, and a passage
# (mean of 100 from Wikipedia) or a title with its item line. Five results each, as conf/tools/local.yaml asks for.
CHARACTERS_PER_TOKEN = 4.5
PROMPT, AROUND_IMAGES, AROUND_TEXTS, PASSAGE, TITLE, RESULTS = 160, 75, 67, 141, 20, 5
QUESTION_EDGE, THUMBNAIL_EDGE = 448, 112  # pixels: 256 and 16 tokens


@dataclass(frozen=True)
class Trajectory:
    """Characters of the question, and action and characters of every answer of the model."""

    question: int
    rounds: tuple[tuple[str, int], ...]


# The lengths of the 25 trajectories of MMSearch-R1-7B in TRACES, for where that file is absent.
# i: image search, t: text search, a: answer.
RECORDED = (
    "136 i295 t269;48 i407 t298;32 a416;38 a268;203 i402;51 i489 t327 a256;39 a362;46 i502 a404;38 i352 t485;78 i347;"
    "119 i429 t388;126 i458 t270;57 i433 t362 a323;132 i423;56 a385;84 i384 t391 a262;40 i526 a331;"
    "53 i341 t314 a247;90 i366 t307 a453;27 a256;137 i402 t483 a481;60 a400;52 a465;41 a267;82 i564 t545 a413"
)
ACTIONS = {"i": "image_search", "t": "text_search", "a": "answer"}


def recorded() -> list[Trajectory]:
    made = []
    for row in RECORDED.split(";"):
        question, *rounds = row.split()
        made.append(Trajectory(int(question), tuple((ACTIONS[one[0]], int(one[1:])) for one in rounds)))
    return made


def trajectories(file: Path = TRACES) -> list[Trajectory]:
    """From the file where it is, else as recorded here."""
    if not file.is_file():
        return recorded()
    rows = [json.loads(row) for row in file.read_text().splitlines()]
    return [
        Trajectory(len(row["question"]), tuple((one["action"], len(one["response"])) for one in row["rounds"]))
        for row in rows
    ]


def measure() -> dict[str, Any]:
    """Seconds are of the processor (one thread), the best of REPEATS for all groups together; the two take turns."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = _model()
    groups = _groups(trajectories())
    ways = {"packed": Packed(model), "padded": Padded(model)}
    for way in ways.values():
        way.step(groups[0])  # not counted: kernels are set up
    best = dict.fromkeys(ways, math.inf)
    losses = dict.fromkeys(ways, 0.0)
    for _ in range(REPEATS):
        for name, way in ways.items():
            model.zero_grad()
            seconds, losses[name] = _timed(lambda way=way: sum(way.step(group) for group in groups))
            best[name] = min(best[name], seconds)
    if not math.isclose(losses["packed"], losses["padded"], abs_tol=1e-3):
        raise RuntimeError(f"the two ways compute different losses: {losses}")
    trained = sum(int(flat.loss_mask.sum()) for group in groups for flat in group)
    lengths = [len(flat) for group in groups for flat in group]
    rectangles = sum(len(group) * max(len(flat) for flat in group) for group in groups)
    return {
        "episodes": len(lengths),
        "tokens_mean": sum(lengths) / len(lengths),
        "tokens_max": max(lengths),
        "tokens_trained": trained,
        "padding_share": 1 - sum(lengths) / rectangles,
        "packed_tokens_per_second": trained / best["packed"],
        "padded_tokens_per_second": trained / best["padded"],
        "packed_over_padded": best["padded"] / best["packed"],
        **_vision(ways, groups),
    }


class Packed:
    """The product: no padding, every image of a micro-batch once."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.policy = Policy(model, CHUNK)

    def step(self, group: Sequence[FlatSequence]) -> float:
        total = 0.0
        size = _size(group)
        for part in by_token_budget(list(zip(group, _advantages(group), strict=True)), lambda one: len(one[0]), BUDGET):
            batch = pack([flat for flat, _ in part], PATCHES, [advantage for _, advantage in part])
            stats = self.policy(batch)
            old, learned = stats.logprobs_T.detach(), batch.loss_mask_T
            loss = policy_loss(
                stats.logprobs_T, old, batch.advantages_T, learned, batch.sequence_ids_T, size, LossSpec()
            ).loss
            loss.backward()
            total += loss.item()
        return total

    def vision_inputs(self, group: Sequence[FlatSequence]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        parts = by_token_budget(group, len, BUDGET)
        return [(batch.pixels, batch.grids) for batch in (pack(part, PATCHES) for part in parts)]


class Padded:
    """The library's model on a rectangle of ids with an attention mask."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def step(self, group: Sequence[FlatSequence]) -> float:
        longest = max(len(flat) for flat in group)

        def rectangle(name: str) -> torch.Tensor:
            rows = [torch.from_numpy(getattr(flat, name)) for flat in group]
            return torch.stack([torch.nn.functional.pad(row, (0, longest - row.shape[-1])) for row in rows], -2)

        ids, learned = rectangle("token_ids"), rectangle("loss_mask")
        present = torch.arange(longest) < torch.tensor([len(flat) for flat in group])[:, None]
        [(pixels, grids)] = self.vision_inputs(group)
        hidden = self.model.model(
            input_ids=ids,
            attention_mask=present.long(),
            position_ids=rectangle("positions"),
            pixel_values=pixels,
            image_grid_thw=grids,
            use_cache=False,
        ).last_hidden_state
        row, column = learned.nonzero(as_tuple=True)
        logprobs, _ = token_logprobs(hidden[row, column - 1], self.model.lm_head.weight, ids[row, column], CHUNK)
        everything = torch.ones_like(row, dtype=torch.bool)
        gain = torch.tensor(_advantages(group))[row]
        loss = policy_loss(logprobs, logprobs.detach(), gain, everything, row, _size(group), LossSpec()).loss
        loss.backward()
        return loss.item()

    def vision_inputs(self, group: Sequence[FlatSequence]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        made = [PATCHES(image) for flat in group for image in flat.images]
        return [(torch.cat([pixels for pixels, _ in made]), torch.tensor([grid for _, grid in made]))]


PATCHES = ImageFeatures(tiny_image_processor(max_tokens=256), decode)


def _vision(ways: dict[str, Packed | Padded], groups: Sequence[Sequence[FlatSequence]]) -> dict[str, Any]:
    """What goes through the vision tower, and what the tower takes for it, forward and backward."""
    figures: dict[str, Any] = {}
    for name, way in ways.items():
        visual = way.model.model.visual
        inputs = [one for group in groups for one in way.vision_inputs(group)]
        figures[f"vision_patches_{name}"] = sum(len(pixels) for pixels, _ in inputs)
        figures[f"vision_seconds_{name}"], _ = _timed(
            lambda visual=visual, inputs=inputs: [
                visual(pixels, grid_thw=grids).pooler_output.sum().backward() for pixels, grids in inputs
            ]
        )
    return {
        **figures,
        "vision_saved": 1 - figures["vision_patches_packed"] / figures["vision_patches_padded"],
        "vision_seconds_saved": 1 - figures["vision_seconds_packed"] / figures["vision_seconds_padded"],
    }


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """(processor seconds of this process, what `work` returned)."""
    start = time.process_time()
    made = work()
    return time.process_time() - start, made


def _advantages(group: Sequence[FlatSequence]) -> list[float]:
    return [1.0 if index % 2 else -1.0 for index in range(len(group))]


def _size(group: Sequence[FlatSequence]) -> MiniBatchSize:
    return MiniBatchSize(sum(int(flat.loss_mask.sum()) for flat in group), len(group))


def _groups(found: Sequence[Trajectory]) -> list[list[FlatSequence]]:
    """As many whole groups as the trajectories make, in an order drawn once."""
    draw = random.Random(0)
    order = draw.sample(found, len(found) // GROUP * GROUP)
    return [
        [_episode(one, draw, question, thumbnails) for one in order[start : start + GROUP]]
        for start in range(0, len(order), GROUP)
        for question in [_picture(QUESTION_EDGE, start)]
        for thumbnails in [[_picture(THUMBNAIL_EDGE, start + 1 + index) for index in range(RESULTS)]]
    ]


def _episode(
    trajectory: Trajectory, draw: random.Random, question: Picture, thumbnails: Sequence[Picture]
) -> FlatSequence:
    """An image search of the same image finds the same thumbnails. No result follows the last round."""

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(IMAGE_TOKEN) for _ in range(count))

    def given(kind: SegmentKind, count: int, images: Sequence[Picture] = (), title: int = 0) -> Segment:
        shown = tuple(token for _ in images for token in (IMAGE_TOKEN, *tokens(title)))
        return Segment(kind, (*tokens(count), *shown), trusted=True, images=tuple(images))

    def spoken(characters: int) -> Segment:
        count = math.ceil(characters / CHARACTERS_PER_TOKEN)
        return Segment("sampled", tokens(count), trusted=False, sampled=Sampled((0.0,) * count, 0))

    asked = math.ceil(trajectory.question / CHARACTERS_PER_TOKEN)
    segments = [given("template", PROMPT + asked, [question])]
    for index, (action, characters) in enumerate(trajectory.rounds):
        segments.append(spoken(characters))
        if index + 1 == len(trajectory.rounds):
            break
        if action == "image_search":
            segments.append(given("image", AROUND_IMAGES + asked, thumbnails, TITLE))
        else:
            segments.append(given("tool_result", AROUND_TEXTS + asked + RESULTS * PASSAGE))
    return flatten(segments, PATCHES, IMAGE_TOKEN)


def _picture(edge: int, seed: int) -> Picture:
    draw = random.Random(seed)
    image = Image.new("RGB", (edge // 28, edge // 28))
    image.putdata([tuple(draw.randrange(256) for _ in range(3)) for _ in range(image.width * image.height)])
    return encode_png(image.resize((edge, edge), Image.Resampling.NEAREST))


def _model() -> Any:
    """A tower that costs 0.4 of what the decoder layers cost for a token of an image, as in Qwen2.5-VL-7B (matrices:
    4 x 0.17M + 0.18M here against 2.0M)."""
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [8, 12, 12]},
            "bos_token_id": None,
            "eos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 80,
            "intermediate_size": 240,
            "num_heads": 4,
            "out_hidden_size": 256,
            "window_size": 112,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE_TOKEN,
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=torch.float32)
