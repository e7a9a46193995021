"""The moments of a training step at which memory can be at its peak, from the sizes alone: pure arithmetic, no torch.

What is counted follows `PolicyModule.shard` (FSDP2: every vision block, the rest of the vision tower and every decoder
layer by itself; embedding and head with the wrapper, which stays gathered), the library's layers and `logprob_head`,
tensor by tensor as MemTracker sees them live (tests/models/test_memory.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mmsr1.models.policy_shape import PolicyShape

BYTES = {"float32": 4, "bfloat16": 2}
HEAD_ROWS = 32  # rows of a chunk whose probabilities exist at once (logprob_head)
INPUT = 80  # bytes of one token in a `Batch`: ids, positions, log-probs, masks
OPTIMIZER_COPIES = 6  # float32 copies of one parameter that LowMemoryAdamW makes


@dataclass(frozen=True)
class Engine:
    """Bytes that the engine holds beside the trainer: weights, key/value cache, and what a forward pass takes.

    `least_cache` is what one sequence of the greatest length takes. One that `sleeps` holds nothing while the trainer
    works.
    """

    weights: float = 0
    cache: float = 0
    workspace: float = 0
    least_cache: float = 0
    sleeps: bool = False

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.workspace


@dataclass(frozen=True)
class TrainingPlan:
    """What decides the memory of each of `ranks` processes. Fields are named after the configuration.

    A micro-batch holds several episodes with `token_budget` tokens together, or a longer one of up to `episode_tokens`.
    `image_share` of the tokens show distinct images, of `learned_share` log-probs are taken. The `step_tokens` of all
    ranks' micro-batches are on the GPUs from the beginning of a step. `overhead` (bytes) is what the GPU's libraries
    take, `slack` the share by which the allocator exceeds what is asked of it.
    """

    shape: PolicyShape
    token_budget: int
    episode_tokens: int
    logprob_chunk: int
    ranks: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"
    optimizer_state: str = "float32"
    offload: bool = False
    lora_rank: int = 0
    freeze_vision: bool = False
    activation_checkpointing: bool = True
    entropy_gradient: bool = False
    reference: bool = False
    image_share: float = 0.5
    learned_share: float = 0.25
    step_tokens: int = 0
    engine: Engine = Engine()
    overhead: float = 0
    slack: float = 0

    @property
    def tokens(self) -> int:
        """Of the largest micro-batch."""
        return max(self.token_budget, self.episode_tokens)

    @property
    def patches(self) -> float:
        """Of the images in that micro-batch."""
        return self.tokens * self.image_share * self.shape.vision.merge

    @property
    def sharded(self) -> bool:
        """Whether FSDP2 holds the policy: not if one process computes in the precision it holds."""
        return self.ranks > 1 or self.dtype != self.param_dtype or self.offload

    @property
    def trained(self) -> int:
        return self.shape.trained(self.lora_rank, self.freeze_vision)

    @property
    def trains_vision(self) -> bool:
        return not self.freeze_vision and not self.lora_rank

    @property
    def held(self) -> int:
        return self.shape.parameters + (self.trained if self.lora_rank else 0)


@dataclass(frozen=True)
class Moment:
    """Bytes that are there at one moment of a step beside what is always there.

    `gathered`: whole layers with their gradients and the buffers to and from the other ranks. `engine`: what an engine
    that sleeps at all other moments holds at this one.
    """

    name: str
    gathered: float
    activations: float
    logits: float = 0
    engine: float = 0

    @property
    def trainer(self) -> float:
        """What torch's allocator is asked for."""
        return self.gathered + self.activations + self.logits

    def total(self, slack: float) -> float:
        """With the share by which that allocator exceeds it."""
        return self.trainer * (1 + slack) + self.engine


def batch_bytes(plan: TrainingPlan) -> float:
    """This rank's micro-batches of a step; their patches are float32."""
    v = plan.shape.vision
    return max(plan.tokens, plan.step_tokens / plan.ranks) * (INPUT + 4 * v.patch * v.merge * plan.image_share)


def moments(plan: TrainingPlan) -> Iterator[Moment]:
    """The moments that can be the peak of a step, each with the gradients of an earlier micro-batch already there."""
    yield _head(plan)
    for behind in (0, 1):
        yield _decoder_layer(plan, behind)
        if plan.trains_vision:
            yield _vision_block(plan, behind)
    yield _end_of_backward(plan)
    yield _optimizer_step(plan)
    if plan.engine.sleeps:
        yield Moment("sampling", 0, 0, engine=plan.engine.total)


def _head(plan: TrainingPlan) -> Moment:
    """The log-prob head between forward and backward pass: everything is saved, and one chunk of logits is there."""
    s, c = plan.shape, BYTES[plan.dtype]
    learned = plan.tokens * plan.learned_share
    # Float32 logits beside those in the precision of the computation, or beside the probabilities for the entropy.
    beside = 4 if plan.entropy_gradient else c % 4
    logits = (min(plan.logprob_chunk, learned) * (4 + beside) + 4 * HEAD_ROWS) * s.vocabulary
    last_norm = (4 + c) * s.hidden * plan.tokens
    gathered = c * (s.root + s.layer) * plan.sharded + _head_gradient(plan)
    return Moment("the log-prob head", gathered, _saved(plan) + last_norm + 2 * c * learned * s.hidden, logits)


def _decoder_layer(plan: TrainingPlan, behind: int) -> Moment:
    """The backward pass of a decoder layer, in its MLP, `behind` layers after the last."""
    s, c = plan.shape, BYTES[plan.dtype]
    gathered = c * (s.root + 2 * s.layer) * plan.sharded + _head_gradient(plan)
    if behind and not plan.lora_rank:  # the gradients of the layer above are being summed over ranks
        gathered += _reduced(plan, s.layer)
    weight = 0 if plan.lora_rank else c * s.hidden * s.intermediate
    inside = _layer_saved(plan) if plan.activation_checkpointing else 0
    inside += c * (2 * s.intermediate + s.hidden) * plan.tokens + weight
    return Moment("the backward pass of a decoder layer", gathered, _saved(plan, s.layers - behind) + inside)


def _vision_block(plan: TrainingPlan, behind: int) -> Moment:
    """The backward pass of a vision block, in its MLP; the decoder's activations are gone but for one gradient."""
    s, v, c = plan.shape, plan.shape.vision, BYTES[plan.dtype]
    # The merger is a group with the tower's first layer: it stays, with its gradients, until the end of the tower.
    gathered = c * (s.root + 2 * s.merger + 2 * v.block) * plan.sharded + _head_gradient(plan)
    gathered += _reduced(plan, v.block if behind else s.layer)
    inside = _block_saved(plan) * plan.patches if plan.activation_checkpointing else 0
    inside += c * (2 * v.intermediate + v.hidden) * plan.patches + c * s.hidden * plan.tokens
    saved = _tower_saved(plan, v.depth - behind)
    return Moment("the backward pass of a vision block", gathered, saved + inside)


def _end_of_backward(plan: TrainingPlan) -> Moment:
    """Gradients of embedding and head, whole, and being summed over ranks."""
    s, c = plan.shape, BYTES[plan.dtype]
    if plan.lora_rank:
        return Moment("the end of the backward pass", 0, 0)
    whole = c * s.root + _reduced(plan, s.root) if plan.sharded else c * s.head
    return Moment("the end of the backward pass", whole, 0)


def _optimizer_step(plan: TrainingPlan) -> Moment:
    """What the optimiser makes beside its moments. torch's AdamW works on all parameters at once on a GPU."""
    if plan.offload:
        return Moment("the optimiser step", 0, 0)
    if plan.optimizer_state == "bfloat16":
        largest = plan.shape.adapters(plan.lora_rank) if plan.lora_rank else plan.shape.head
        return Moment("the optimiser step", 0, OPTIMIZER_COPIES * 4 * largest / plan.ranks)
    return Moment("the optimiser step", 0, 4 * plan.trained / plan.ranks)


def _head_gradient(plan: TrainingPlan) -> float:
    """The head's own gradient, there from the beginning of the backward pass to its end; else it is among the rest."""
    return BYTES[plan.dtype] * plan.shape.head if plan.sharded and not plan.lora_rank else 0


def _reduced(plan: TrainingPlan, parameters: float) -> float:
    """Gradients on their way to the other ranks, as precise as they are kept, and this rank's part of their sum before
    that is added."""
    own = 1 / plan.ranks if plan.ranks > 1 else 0
    return BYTES[plan.param_dtype] * parameters * (1 + own) if plan.sharded else 0


def _saved(plan: TrainingPlan, layers: int | None = None) -> float:
    """What `layers` (all) decoder layers and the vision tower keep for the backward pass."""
    s, c = plan.shape, BYTES[plan.dtype]
    layers = s.layers if layers is None else layers
    each = c * s.hidden * plan.tokens if plan.activation_checkpointing else _layer_saved(plan)
    turns = 2 * c * s.attention // s.heads * plan.tokens
    tower = _tower_saved(plan, s.vision.depth) + _merger_saved(plan) if plan.trains_vision else 0
    return layers * each + turns + tower


def _layer_saved(plan: TrainingPlan) -> float:
    """What one decoder layer keeps: two norms, queries, keys and values, the output of the attention as it was computed
    for each episode and of all together, the MLP."""
    s, c = plan.shape, BYTES[plan.dtype]
    attention = c * (3 * s.attention + 2 * s.key_value) + 4 * s.heads
    between = c * s.hidden if c == 4 else 0  # in float32 the norm keeps its input, else a float32 copy of it
    return plan.tokens * (16 * s.hidden + attention + between + 4 * c * s.intermediate)


def _tower_saved(plan: TrainingPlan, blocks: int) -> float:
    """What patch embedding and `blocks` blocks keep for the backward pass."""
    v, c = plan.shape.vision, BYTES[plan.dtype]
    each = c * v.hidden if plan.activation_checkpointing else _block_saved(plan)
    turns = 2 * 4 * v.hidden // v.heads
    # In float32 the patches are the micro-batch's own, else a copy.
    return plan.patches * (blocks * each + c % 4 * v.patch + turns)


def _block_saved(plan: TrainingPlan) -> float:
    """Bytes per patch that one vision block keeps: as in the decoder, but the values keep all of q, k and v alive, and
    the windows' outputs are there once as they were computed and once together."""
    v, c = plan.shape.vision, BYTES[plan.dtype]
    between = c * v.hidden if c == 4 else 0
    return (16 + 7 * c) * v.hidden + between + 4 * v.heads + 4 * c * v.intermediate


def _merger_saved(plan: TrainingPlan) -> float:
    """Its norm, and its MLP, which is as wide as the patches of a token together."""
    v, c = plan.shape.vision, BYTES[plan.dtype]
    return (8 + 2 * c) * v.hidden * plan.patches
