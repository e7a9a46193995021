"""Engine, tools and reward, and the callback that owns them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mmsr1.assembly.data import emblem_store
from mmsr1.assembly.engines import engine
from mmsr1.assembly.policy import renderer
from mmsr1.assembly.tools import SearchTools, search_tools
from mmsr1.config import Config
from mmsr1.data.formats import load_examples
from mmsr1.files import json_line, write_whole
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.loading import PolicyFiles
from mmsr1.models.ranks import Ranks
from mmsr1.rewards.price import PriceSpec
from mmsr1.rewards.reward import RewardSpec
from mmsr1.rollout.callback import RolloutCallback, RolloutPlan, Schedule
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.protocol import STOP_STRINGS
from mmsr1.rollout.record import RunRecord
from mmsr1.rollout.stream import StreamSpec
from mmsr1.rollout.supply import SupplySpec
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.types import Example


def rollout_worker(
    config: Config, files: PolicyFiles, weights: Path, run: Path, rank: int, concurrent: int = 512
) -> RolloutWorker:
    """Engine, tools and renderer on their own thread, `concurrent` episodes at a time. The engine starts from the
    folder `weights`."""
    rollout, trainer = config.rollout, config.trainer
    tools = search_tools(config, run, rank, trainer.devices * trainer.num_nodes)
    limits = Limits(
        turns=rollout.turns,
        turn_tokens=rollout.turn_tokens,
        episode_tokens=rollout.episode_tokens,
        searches={"image_search": rollout.image_searches, "text_search": rollout.text_searches},
        on_tool_failure=rollout.on_tool_failure,  # type: ignore[arg-type]  (checked by the schema)
        on_over_budget=rollout.on_over_budget,  # type: ignore[arg-type]
        crops=rollout.crops,
    )
    return RolloutWorker(
        engine(config, files, weights, rank, tools.services),
        tools,
        renderer(config, files),
        limits,
        seed=config.seed,
        concurrent=concurrent,
        deterministic=rollout.deterministic,
        on_close=tools.aclose,
    )


def sampling(config: Config) -> Sampling:
    rollout = config.rollout
    return Sampling(rollout.temperature, rollout.top_p, max_tokens=rollout.turn_tokens, seed=0, stop=STOP_STRINGS)


def reward_spec(config: Config) -> RewardSpec:
    rewards = config.rewards
    return RewardSpec(
        format_weight=rewards.format_weight,
        search_penalty=rewards.search_penalty,
        match=rewards.match,  # type: ignore[arg-type]  (checked by the schema)
        aliases=rewards.aliases,
        penalty_mode=rewards.penalty_mode,  # type: ignore[arg-type]
        penalty_warmup_steps=rewards.penalty_warmup_steps,
        crops=config.rollout.crops,
    )


def price_spec(config: Config) -> PriceSpec | None:
    rewards = config.rewards
    if rewards.target_calls is None:
        return None
    return PriceSpec(rewards.target_calls, rewards.price_proportional, rewards.price_integral)


def rollout_plan(config: Config) -> RolloutPlan:
    algorithm, rollout = config.algorithm, config.rollout
    if algorithm.kind == "sft":
        return RolloutPlan(sampling(config), reward_spec(config), "std", None)
    per_step = algorithm.prompts_per_step
    stream = StreamSpec(
        quota=per_step,
        extra=round(rollout.oversample * per_step),
        refill=algorithm.all_equal == "refill",
        max_refills=round(algorithm.max_refills * per_step),
        max_staleness=max_staleness(config),
    )
    supply = SupplySpec(stream, algorithm.group_size, config.trainer.max_steps)
    return RolloutPlan(
        sampling(config),
        reward_spec(config),
        algorithm.advantage,
        supply,
        rollout.overlap > 0,
        rollout.sleep,
        price_spec(config),
        algorithm.efficiency_weight,
    )


def max_staleness(config: Config) -> int:
    """Updates that may lie between the weights that sampled a token and those that train on it."""
    rollout = config.rollout
    least = rollout.overlap + (rollout.oversample > 0)
    return least if rollout.max_staleness is None else rollout.max_staleness


def rollout_callback(
    config: Config,
    make_worker: Callable[[Path, int], RolloutWorker],
    buffer: RolloutBuffer | None,
    prompts: Callable[[int], Sequence[Example]],
    validation: Sequence[Example],
    record: RunRecord,
    resume: Path | None,
) -> RolloutCallback:
    """The callback with the schedule of this configuration; `prompts` gives the examples of a step, `resume` is a
    checkpoint."""
    trainer = config.trainer
    return RolloutCallback(
        make_worker,
        buffer,
        prompts,
        validation,
        rollout_plan(config),
        schedule=Schedule(trainer.max_steps, trainer.val_every, trainer.checkpoint_every, trainer.keep_last),
        record=record,
        tool_rows=SearchTools.rows,  # type: ignore[arg-type]  (the worker holds the tools as they were made)
        spent=SearchTools.spent,  # type: ignore[arg-type]
        resume=resume,
        at_end=_counterfactual(config, validation, record) if trainer.counterfactual else None,
    )


def _counterfactual(
    config: Config, validation: Sequence[Example], record: RunRecord
) -> Callable[[RolloutWorker, Ranks], dict[str, Any]]:
    """What searching was worth on some questions, of which each rank asks its share, for the end of a run. The run
    keeps a line of each."""
    from mmsr1.assembly.branches import WAYS, Branches, price, spread
    from mmsr1.evaluation.counterfactual import figures
    from mmsr1.evaluation.lines import BRANCHES_FILE

    def roll(worker: RolloutWorker, ranks: Ranks) -> dict[str, Any]:
        examples, size = validation, config.trainer.counterfactual
        if config.trainer.counterfactual_split == "graded" and config.data.kind == "emblem":
            examples, _ = load_examples(emblem_store(config).split("graded"))
        examples = spread(examples, config.trainer.counterfactual_questions)
        mine = ranks.mine(examples)
        record.progress.begin("branches", len(mine) * len(WAYS) * size)
        found: list[dict[str, Any]] = []
        spent = worker.tools.spent  # type: ignore[attr-defined]  (the tools of a configuration)
        Branches(config, worker, size, spent, record.progress.advance).roll(mine, found.append)
        lines = [line for part in ranks.gather(found) for line in part]
        if ranks.rank == 0:
            write_whole(record.run.path / BRANCHES_FILE, b"".join(map(json_line, lines)))
        return figures(lines, price(config))

    return roll
