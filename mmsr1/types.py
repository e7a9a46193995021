"""The stages of the data flow: Example -> Episode -> Reward -> Group -> Batch -> LossOutput.

Every type is frozen and complete when it is made; a later stage holds the earlier ones, never edits them.
Axis suffixes name ragged lists once and for all: `_G` the rollouts of one group, `_T` packed tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

SearchNeed = Literal["free", "required", "image", "text", "both", "unknown"]
SegmentKind = Literal["template", "question", "image", "tool_result", "sampled"]
ToolStatus = Literal["ok", "empty", "infrastructure_error", "malformed_call", "over_budget"]
ToolName = Literal["image_search", "text_search"]
Stop = Literal["answered", "turn_limit", "length_limit", "malformed", "cut", "tool_failure", "engine_failure"]
# Calls that reached a tool: they count against the limits and in every figure of search.
REACHED_TOOL: tuple[ToolStatus, ...] = ("ok", "empty", "infrastructure_error")
# Ends that say nothing about the policy: kept from training, counted in the metrics.
INFRASTRUCTURE_STOPS: tuple[Stop, ...] = ("tool_failure", "engine_failure")


@dataclass(frozen=True)
class Picture:
    """An encoded image (PNG, JPEG or WebP bytes); `digest` is its content hash and its name everywhere."""

    data: bytes = field(repr=False)

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Example:
    """One question about images.

    `search_need` says what an ideal agent would do: `free` no search; `image`, `text`, `both` that search;
    `required` some search, kind not labelled (as in the released FVQA); `unknown` unlabelled.

    >>> Example("q0", "what is the capital?", (), "Dulmen", (), "free", "doc").search_need
    'free'
    """

    id: str
    question: str
    images: tuple[Picture, ...]
    answer: str
    aliases: tuple[str, ...]
    search_need: SearchNeed
    source: str

    @property
    def is_free(self) -> bool | None:
        """True if no search is needed, False if one is, None if unlabelled."""
        return None if self.search_need == "unknown" else self.search_need == "free"


@dataclass(frozen=True)
class StepPrompts:
    """The prompts of one rollout step (0-based)."""

    step: int
    examples: tuple[Example, ...]

    def to(self, *args: Any, **kwargs: Any) -> StepPrompts:
        """Nothing to move; Lightning asks for this of a frozen batch."""
        return self


@dataclass(frozen=True)
class Sampled:
    """What the engine said of the tokens it sampled: log-prob of each, and the weights that made them."""

    logprobs: tuple[float, ...]
    weight_version: int


@dataclass(frozen=True)
class Segment:
    """The tokens that one piece of a conversation adds; nothing is tokenised twice.

    `token_ids` hold one `<|image_pad|>` per image (the form vLLM takes); packing expands them.
    `trusted` is False for text that came from a dataset or a tool: no control token may be in it.
    """

    kind: SegmentKind
    token_ids: tuple[int, ...]
    trusted: bool
    images: tuple[Picture, ...] = ()
    sampled: Sampled | None = None

    def __post_init__(self) -> None:
        if (self.kind == "sampled") != (self.sampled is not None):
            raise ValueError(f"segment of kind {self.kind!r}: log-probs belong to sampled tokens, and only to them")
        if self.sampled is not None and len(self.sampled.logprobs) != len(self.token_ids):
            raise ValueError(f"{len(self.token_ids)} sampled tokens but {len(self.sampled.logprobs)} log-probs")


@dataclass(frozen=True)
class ToolCall:
    """A search the policy asked for; the query of an image search is the digest of the picture.

    `box` is the part of the image that it named (left, top, right, bottom in pixels of the image as the model sees
    it), None for the whole image; the picture searched by is then that part.
    """

    tool: ToolName
    query: str
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class ToolItem:
    """One search hit. All text in it is untrusted."""

    title: str
    text: str = ""
    url: str = ""
    thumbnail: Picture | None = None


@dataclass(frozen=True)
class ToolResult:
    """What came back: `cost_usd` is what a fresh call costs, `paid_usd` what this one did.

    `cached` says that no back end was asked. Not `complete` is a result that lacks something because infrastructure
    failed (a page that could not be read): it is shown to the model, but never kept for others.
    """

    status: ToolStatus
    items: tuple[ToolItem, ...] = ()
    cost_usd: float = 0.0
    latency_s: float = 0.0
    cached: bool = False
    detail: str = ""
    paid_usd: float = 0.0
    complete: bool = True


@dataclass(frozen=True)
class Exchange:
    """A tool call, its result, and the turn (0-based) that asked for it."""

    turn: int
    call: ToolCall
    result: ToolResult


@dataclass(frozen=True)
class Timings:
    """Wall seconds of one episode: in all, waiting for the engine, waiting for tools."""

    total_s: float
    engine_s: float
    tools_s: float


@dataclass(frozen=True)
class Episode:
    """One finished conversation about one example.

    `turns` are the decoded texts of the model's turns (see `rollout.protocol.parse_turn`), `segments` the exact
    tokens of the whole conversation in order. A turn can span several sampled segments.
    """

    example_id: str
    rollout: int
    segments: tuple[Segment, ...]
    turns: tuple[str, ...]
    calls: tuple[Exchange, ...]
    stop: Stop
    weight_version: int
    timings: Timings

    @property
    def sampled_tokens(self) -> int:
        return sum(len(s.token_ids) for s in self.segments if s.sampled is not None)


@dataclass(frozen=True)
class Reward:
    """Outcome of one episode; `parts` hold accuracy, format, penalty and searches (reference: MMSearch-R1, eq. 1)."""

    total: float
    parts: Mapping[str, float]


@dataclass(frozen=True)
class Group:
    """The G rollouts of one example with their rewards and group-relative advantages.

    `trained_G` is False for an episode that must not move the weights (infrastructure failed, not the policy).
    """

    example: Example
    episodes_G: tuple[Episode, ...]
    rewards_G: tuple[Reward, ...]
    advantages_G: tuple[float, ...]
    trained_G: tuple[bool, ...]

    @property
    def all_equal(self) -> bool:
        """True if no episode has an advantage: the group would contribute no gradient."""
        return not any(a != 0.0 and t for a, t in zip(self.advantages_G, self.trained_G, strict=True))


@dataclass(frozen=True)
class Batch:
    """A packed micro-batch: sequences one after another, no padding.

    Arrays are aligned with the token they speak of: `old_logprobs_T[t]` is log p(token t | tokens before t).
    Row 0 of `position_ids` is the text position, which restarts at each sequence and so separates them;
    rows 1-3 are M-RoPE (time, height, width). Each distinct image is in `pixels` once; `image_order` says,
    for every image run of the packed tokens in order, which of the `grids` it shows.
    `weights_T` is the loss weight of a token (0 where nothing is learned), `advantages_T` its advantage.
    `versions_T` names the weights that sampled a token (-1 where nothing was sampled).
    `region_T`: 0 nothing sampled, 1 before any image, 2 after an image, 3 after a tool result.
    """

    token_ids: Int[Tensor, "T"]
    position_ids: Int[Tensor, "4 1 T"]
    image_mask_T: Bool[Tensor, "T"]
    loss_mask_T: Bool[Tensor, "T"]
    weights_T: Float[Tensor, "T"]
    engine_logprobs_T: Float[Tensor, "T"]
    old_logprobs_T: Float[Tensor, "T"]
    advantages_T: Float[Tensor, "T"]
    region_T: Int[Tensor, "T"]
    versions_T: Int[Tensor, "T"]
    offsets: Int[Tensor, "S1"]
    pixels: Float[Tensor, "P D"]
    grids: Int[Tensor, "N 3"]
    image_order: Int[Tensor, "M"]

    def to(self, *args: Any, **kwargs: Any) -> Batch:
        """All tensors moved."""
        return replace(self, **{f.name: getattr(self, f.name).to(*args, **kwargs) for f in fields(self)})

    @property
    def sequence_ids_T(self) -> Int[Tensor, "T"]:
        """Index of the sequence that each packed token belongs to."""
        lengths = self.offsets.diff()
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)


@dataclass(frozen=True)
class LossOutput:
    """A scalar to minimise and figures to log (detached)."""

    loss: Float[Tensor, ""]
    metrics: Mapping[str, float]
