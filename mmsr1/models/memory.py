"""How much memory a training process takes, part by part, and which settings make it fit: pure arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

from mmsr1.models.step_memory import BYTES, Engine, TrainingPlan, batch_bytes, moments

GIB = 2**30


@dataclass(frozen=True)
class MemoryBreakdown:
    """Bytes per GPU at the peak of a step, which comes at `peak`; `host` are bytes per process in CPU memory.

    `gathered`: whole layers with their gradients and the buffers between ranks. `activations`: what the backward pass
    needs, and temporaries.
    """

    weights: float
    gradients: float
    optimizer_states: float
    reference: float
    micro_batches: float
    gathered: float
    activations: float
    logits: float
    engine_weights: float
    kv_cache: float
    engine_workspace: float
    overhead: float
    peak: str
    host: float

    @property
    def parts(self) -> dict[str, float]:
        """What is on the GPU."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name not in ("peak", "host")}

    @property
    def total(self) -> float:
        return sum(self.parts.values())


def breakdown(plan: TrainingPlan) -> MemoryBreakdown:
    """What the plan needs."""
    shape, width = plan.shape, BYTES[plan.param_dtype]
    held, trained = plan.held / plan.ranks, plan.trained / plan.ranks
    weights, gradients, states = held * width, trained * width, 2 * trained * BYTES[plan.optimizer_state]
    copied = plan.reference and not plan.lora_rank  # adapters are left out for the reference
    reference = shape.parameters / plan.ranks * BYTES[plan.dtype] * copied
    # The reference's embedding and head stay gathered: as the outermost group they are not sharded again.
    rooted = shape.root * BYTES[plan.dtype] * (copied and plan.sharded)
    on_gpu = 0 if plan.offload else 1
    peak = max(moments(plan), key=lambda moment: moment.total(plan.slack))
    engine = Engine() if plan.engine.sleeps and not peak.engine else plan.engine
    return MemoryBreakdown(
        weights=weights * on_gpu,
        gradients=gradients * on_gpu,
        optimizer_states=states * on_gpu,
        reference=reference * on_gpu + rooted,
        micro_batches=batch_bytes(plan),
        gathered=peak.gathered,
        activations=peak.activations,
        logits=peak.logits,
        engine_weights=engine.weights,
        kv_cache=engine.cache,
        engine_workspace=engine.workspace,
        overhead=plan.overhead + plan.slack * peak.trainer,
        peak=peak.name,
        host=(weights + gradients + states + reference) * (1 - on_gpu),
    )


def by_moment(plan: TrainingPlan) -> dict[str, float]:
    """Bytes on the GPU in all at each kind of moment of a step."""
    found: dict[str, float] = {}
    for moment in moments(plan):
        found[moment.name] = max(moment.total(plan.slack), found.get(moment.name, 0))
    always = breakdown(plan).total - max(found.values())
    return {name: always + size for name, size in found.items()}


def choose(
    plan: TrainingPlan,
    gpu_bytes: float | None,
    optimizer_state: str | None = None,
    offload: bool | None = None,
    host_bytes: float | None = None,
) -> tuple[str, bool]:
    """(optimizer_state, offload) for a GPU of `gpu_bytes`; None says no limit. What is given is not changed.

    In this order the first that fits: float32 moments, bfloat16 moments, then the same with everything that is sharded
    in CPU memory, of which a process has `host_bytes` (None: enough). Raises ValueError, in one line that names what
    to change, if none does.
    """
    states = [optimizer_state] if optimizer_state else ["float32", "bfloat16"]
    found = [
        replace(plan, optimizer_state=state, offload=away)
        for away in ([offload] if offload is not None else [False, True])
        for state in states
    ]
    for one in found:
        if fits(one, gpu_bytes, host_bytes):
            return one.optimizer_state, one.offload
    raise ValueError(remedy(found[-1], gpu_bytes, host_bytes))


def fits(plan: TrainingPlan, gpu_bytes: float | None, host_bytes: float | None = None) -> bool:
    need = breakdown(plan)
    on_host = host_bytes is None or need.host <= host_bytes
    return on_host and (gpu_bytes is None or need.total <= gpu_bytes)


def remedy(plan: TrainingPlan, gpu_bytes: float | None, host_bytes: float | None = None) -> str:
    """One line for a plan that does not fit: key, value, what is missing, and the first change that alone makes it fit.

    Where none does, what is largest.
    """
    need = breakdown(plan)
    if gpu_bytes is not None and need.total > gpu_bytes:
        start = f"trainer.gpu_memory_gib={gpu_bytes / GIB:g}: a step needs {need.total / GIB:.1f} GiB"
    else:
        start = f"trainer.offload=true: a process needs {need.host / GIB:.0f} GiB of CPU memory"
    for knob, changed in _knobs(plan):
        if fits(changed, gpu_bytes, host_bytes):
            return f"{start}; {knob} makes it {breakdown(changed).total / GIB:.1f} GiB"
    largest = sorted(need.parts.items(), key=lambda part: -part[1])[:2]
    named = " and ".join(f"{name} ({size / GIB:.1f})" for name, size in largest)
    knobs = ", ".join(dict.fromkeys(knob.partition("=")[0] for knob, _ in _knobs(plan)))
    return f"{start}, most of it {named}; no change alone makes it fit, combine those of {knobs}"


def _knobs(plan: TrainingPlan) -> Iterator[tuple[str, TrainingPlan]]:
    """Changes that save memory, the cheapest in time and quality first, as (key=value, plan after it)."""
    if not plan.activation_checkpointing:
        yield "model.activation_checkpointing=true", replace(plan, activation_checkpointing=True)
    if plan.logprob_chunk > 1024:
        yield "model.logprob_chunk=1024", replace(plan, logprob_chunk=1024)
    budget = plan.token_budget
    while budget > 2048:
        budget //= 2
        changed = replace(plan, token_budget=budget)
        yield f"algorithm.token_budget={budget}", changed
    if plan.optimizer_state == "float32":
        yield "trainer.optimizer_state=bfloat16", replace(plan, optimizer_state="bfloat16")
    for share in (0.5, 0.25):
        cache = plan.engine.cache * share
        if cache >= plan.engine.least_cache > 0:
            changed = replace(plan, engine=replace(plan.engine, cache=cache))
            yield f"rollout.vllm.kv_cache_gib={cache / GIB:.1f}", changed
    episode = plan.episode_tokens // 2
    if episode > 2048:
        changed = replace(plan, episode_tokens=episode, token_budget=min(plan.token_budget, episode))
        yield f"rollout.episode_tokens={episode} algorithm.token_budget={changed.token_budget}", changed
    if plan.engine.total and not plan.engine.sleeps:
        yield "rollout.sleep=true", replace(plan, engine=replace(plan.engine, sleeps=True))
    if not plan.offload:
        yield "trainer.offload=true", replace(plan, offload=True)
    for ranks in (2 * plan.ranks, 4 * plan.ranks, 8 * plan.ranks):
        yield f"trainer.devices x trainer.num_nodes={ranks}", replace(plan, ranks=ranks)
    if not plan.lora_rank:
        yield "model.lora_rank=64", replace(plan, lora_rank=64)
