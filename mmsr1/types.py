"""The stages of the data flow: Example -> Episode -> Reward -> Group -> Batch -> LossOutput.

Every type is frozen and complete when it is made; a later stage holds the earlier ones, never edits them.
Axis suffixes name ragged lists once and for all: `_G` the rollouts of one group, `_T` packed tokens.
The last two hold tensors and stand in `mmsr1/batch.py`: who only searches need not load torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

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
class Evidence:
    """Where an answer was found. All text in it is untrusted."""

    title: str
    url: str = ""
    text: str = ""


@dataclass(frozen=True)
class Notes:
    """What is known of an example beyond what a policy is asked and judged by.

    `taxonomy` is its class, `difficulty` the share of a policy's rollouts that failed (0 to 1, None if nobody tried),
    `licence` that of the picture and the page, as far as they say.
    """

    taxonomy: str = ""
    difficulty: float | None = None
    licence: str = ""
    evidence: tuple[Evidence, ...] = ()


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
    notes: Notes = Notes()

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
