"""The rollout callback in a Lightning run: a scripted engine, tools in memory, and a module that only counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsr1.evaluation import scorecard
from mmsr1.evaluation.outcome import outcomes_of
from mmsr1.models import checkpoint
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.ranks import Ranks
from mmsr1.rewards.price import PriceSpec
from mmsr1.rewards.reward import RewardSpec
from mmsr1.rollout.callback import RolloutCallback, RolloutPlan, Schedule
from mmsr1.rollout.engines.base import EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.record import RunRecord
from mmsr1.rollout.stream import StreamSpec
from mmsr1.rollout.supply import SupplySpec
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.run_directory import RunDirectory
from mmsr1.types import Episode, Example, Group, StepPrompts, Timings, ToolResult
from tests.models.fitting import fit
from tests.rollout.conversation import SAMPLING, MemoryTool, make_renderer, picture, titled

from lightning import LightningModule  # isort: skip
from lightning.pytorch.loggers.logger import DummyLogger  # isort: skip

SEARCH = "<reason>r</reason><search><img></search>"
FOUND = titled("the flag of Dulmen", thumbnails=1)
RIGHT, WRONG = (f"<reason>r</reason><answer>{answer}</answer>" for answer in ("Dulmen", "Zanzol"))


def question(name: str, number: int) -> Example:
    """Even numbers need no search."""
    need = "image" if number % 2 else "free"
    return Example(name, f"what is {name}?", (picture(number),), "Dulmen", (), need, "test")


QUESTIONS = [question(f"t{n}", n) for n in range(6)]
TWO_PROMPTS = StreamSpec(2)
VALIDATION = [question(f"v{n}", 10 + n) for n in range(4)]


class Counter(LightningModule):
    """Takes the groups of its step, adds 1 to its only weight, and notes it."""

    def __init__(self, log: list[Any], buffer: RolloutBuffer | None, late: int = 0) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.log_, self.buffer, self.late = log, buffer, late
        self.groups: list[tuple[Group, ...]] = []
        self.probes: list[tuple[Episode, ...]] = []
        self.figures: dict[str, float] = {}

    def configure_model(self) -> None:
        """Nothing to shard."""

    def training_step(self, batch: StepPrompts, index: int) -> None:
        if self.buffer is not None:
            taken = self.buffer.take(batch.step + self.late)
            self.groups.append(taken.groups)
            self.probes.append(taken.probes)
        self.weight.data += 1
        self.figures = {"loss": 0.5 * batch.step, "kl": 0.25}
        self.log_.append(("training_step", batch.step))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def write_checkpoint(self, folder: Path, step: int, state: Mapping[str, Any], stream: bytes = b"") -> Path:
        return checkpoint.write(folder, step, self, [], state, Ranks(), stream)

    def restore(self, path: Path) -> dict[str, Any]:
        return checkpoint.restore(path, self, [], Ranks())

    def full_weights(self) -> Iterable[tuple[str, torch.Tensor]]:
        yield "weight", self.weight.detach()


class Engine(ScriptedEngine):
    """Says what `answer` says, and notes the weights it is given."""

    def __init__(self, log: list[Any], answer: Any, tokenizer: Any) -> None:
        super().__init__(answer, tokenizer)
        self.log = log
        self.answer_until: int | None = None

    async def generate(self, prompt: TokenPrompt, sampling: Sampling) -> Any:
        if self.answer_until is not None and self.versions and self.versions[-1] >= self.answer_until:
            return EngineFailure("dead")
        return await super().generate(prompt, sampling)

    async def load_weights(self, tensors: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        self.log.append(("weights", version, [tensor.item() for _, tensor in tensors]))
        await super().load_weights([], version)


class Progress:
    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.advanced = 0
        self.said: list[str] = []
        self.shown: dict[tuple[str, int], Mapping[str, Any]] = {}

    def begin(self, phase: str, total: int) -> None:
        self.log.append((phase, total))

    def advance(self) -> None:
        self.advanced += 1

    def show(self, split: str, step: int, figures: Mapping[str, Any]) -> None:
        self.log.append((f"{split} figures", step))
        self.shown[split, step] = figures

    def say(self, text: str) -> None:
        self.said.append(text)


class Logger(DummyLogger):
    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.tables: list[tuple[int, list[str], list[list[Any]]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int) -> None:
        self.rows.append((step, metrics))

    def log_table(self, key: str, columns: list[str], data: list[list[Any]], step: int) -> None:
        self.tables.append((step, columns, data))


class Rehearsal:
    """One whole fit with everything fake around the callback, and what can be seen of it afterwards."""

    def __init__(
        self,
        tokenizer: Any,
        path: Path,
        answer: Any = RIGHT,
        result: Any = FOUND,
        steps: int = 3,
        supervised: bool = False,
        late: int = 0,
        on_tool_failure: Any = "stop",
        resume: Path | None = None,
        first: int = 0,
        stream: StreamSpec = TWO_PROMPTS,
        overlap: bool = False,
        sleep: bool = False,
        deterministic: bool = False,
        spent_at: int = 0,
        stops: bool = True,
        price: PriceSpec | None = None,
    ) -> None:
        self.spent_at, self.stops = spent_at, stops
        self.log: list[Any] = []
        self.run, self.progress, self.logger = RunDirectory(path), Progress(self.log), Logger()
        self.record = RunRecord(
            self.run,
            figures=lambda groups: scorecard.figures(outcomes_of(groups), 2),
            scorecard=lambda groups: scorecard.figures_with_intervals(outcomes_of(groups), 2),
            progress=self.progress,
            episodes_every=3,
        )
        self.run.start("test", 0, "", {}, None)
        self.buffer = None if supervised else RolloutBuffer()
        self.module = Counter(self.log, self.buffer, late)
        says = answer if callable(answer) else lambda prompt, sampling: answer
        self.engine = Engine(self.log, says, tokenizer)
        self.tool = MemoryTool("image_search", result)
        limits = Limits(turns=3, turn_tokens=40, episode_tokens=512, on_tool_failure=on_tool_failure)
        self.callback = RolloutCallback(
            lambda run, rank: RolloutWorker(
                self.engine,
                {"image_search": self.tool},
                make_renderer(tokenizer),
                limits,
                seed=5,
                deterministic=deterministic,
            ),
            self.buffer,
            lambda step: [QUESTIONS[(2 * step + i) % len(QUESTIONS)] for i in range(2)],
            VALIDATION,
            RolloutPlan(
                SAMPLING,
                RewardSpec(),
                "std" if price is None else "none",
                None if supervised else SupplySpec(stream, 3, steps),
                overlap,
                sleep,
                price,
            ),
            schedule=Schedule(steps, val_every=2, checkpoint_every=2, keep_last=1),
            record=self.record,
            tool_rows=lambda tools: {
                name: {"calls": len(tools["image_search"].asked), "hits": 0}
                for name in ("image_search", "service_behind_it")
            },
            spent=lambda tools: self.budget_line(len(tools["image_search"].asked)),
            resume=resume,
        )
        self.batches = [StepPrompts(step, tuple(QUESTIONS[2 * step : 2 * step + 2])) for step in range(first, steps)]

    def fit(self) -> Rehearsal:
        self.trainer = fit(self.module, self.batches, self.callback, logger=self.logger)
        return self

    def budget_line(self, calls: int) -> str | None:
        return f"{calls} calls made" if self.stops and 0 < self.spent_at <= calls else None

    def rows(self, split: str) -> dict[int, dict[str, Any]]:
        return {row["step"]: row for row in self.run.read_metrics(split)}


def search_then_answer(prompt: TokenPrompt, sampling: Sampling) -> str:
    return RIGHT if len(prompt.images) > 1 else SEARCH


def seeded(says: Mapping[int, str]) -> Any:
    """Another answer for each remainder of the request's seed: rollouts of a group differ, and repeat in every run."""
    return lambda prompt, sampling: says[sampling.seed % len(says)]


def test_everything_happens_in_order(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path).fit()

    def step(number: int) -> list[Any]:
        return [
            ("train rollouts", 6),
            ("update", 1),
            ("training_step", number - 1),
            ("weights", number, [number]),
            ("train figures", number),
        ]

    def validation(number: int) -> list[Any]:
        return [("val rollouts", 4), ("val figures", number)]

    assert done.log == [
        ("starting the engine", 1),
        ("weights", 0, [0]),
        *validation(0),
        *step(1),
        *step(2),
        *validation(2),
        *step(3),
        *validation(3),
    ]
    assert done.engine.closed
    assert done.progress.advanced == 3 * 6 + 3 * 4
    assert done.record.steps_done == 3


def test_each_step_trains_on_its_own_prompts_sampled_with_the_weights_before_it(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path).fit()
    for step, groups in enumerate(done.module.groups):
        assert [group.example for group in groups] == list(done.batches[step].examples)
        for group in groups:
            assert [(e.example_id, e.rollout) for e in group.episodes_G] == [(group.example.id, i) for i in range(3)]
            assert {e.weight_version for e in group.episodes_G} == {step}
    validated = {step: done.run.read_episodes("val", step) for step in (0, 2, 3)}
    for step, records in validated.items():
        assert {record["weight_version"] for record in records} == {step}
        assert [record["example_id"] for record in records] == [example.id for example in VALIDATION]


def test_no_two_requests_of_a_run_share_a_seed(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer).fit()
    seeds = [sampling.seed for _, sampling in done.engine.calls]
    assert len(seeds) == 2 * (3 * 6 + 3 * 4) and len(set(seeds)) == len(seeds)


def test_rewards_and_advantages_follow_the_answers(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, answer=seeded({0: RIGHT, 1: WRONG})).fit()
    groups = [group for step in done.module.groups for group in step]
    for group in groups:
        right = ["Dulmen" in episode.turns[-1] for episode in group.episodes_G]
        assert [reward.total for reward in group.rewards_G] == pytest.approx([1.0 if r else 0.1 for r in right])
        if 0 < sum(right) < 3:
            assert [advantage > 0 for advantage in group.advantages_G] == right
        else:
            assert group.advantages_G == (0.0, 0.0, 0.0)
    assert any(not group.all_equal for group in groups)


def test_metric_rows_hold_the_figures_of_module_rollouts_and_clock(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer).fit()
    assert [*done.rows("train")] == [1, 2, 3] and [*done.rows("val")] == [0, 2, 3]
    row = done.rows("train")[2]
    expected = {
        "reward": 0.91,
        "accuracy": 1.0,
        "format": 1.0,
        "search_ratio": 1.0,
        "search_ratio_free": 1.0,
        "search_ratio_required": 1.0,
        "calls_per_question": 1.0,
        "calls_per_allowed": 0.5,
        "tool_failure_rate": 0.0,
        "loss": 0.5,
        "kl": 0.25,
        "masked_episodes": 0,
        "stop_answered": 1.0,
        "cache_calls": 6,
        "tokens_sampled": sum(e.sampled_tokens for group in done.module.groups[1] for e in group.episodes_G),
    }
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    for name in ("seconds_rollout", "seconds_train", "seconds_sync", "seconds_tools_critical"):
        assert row[name] >= 0
    card = done.rows("val")[3]
    assert card["search_ratio_free"] == 1.0 and card["seconds_validation"] > 0
    assert not [name for name in card if name.endswith("_ci95")]
    assert done.progress.shown["train", 2]["kl"] == 0.25


def test_the_summary_cards_carry_intervals_of_the_first_and_the_last_validation(tiny, tmp_path):
    def learns(prompt: TokenPrompt, sampling: Sampling) -> str:
        return RIGHT if len(rehearsal.engine.versions) > 3 else WRONG

    rehearsal = Rehearsal(tiny, tmp_path, answer=learns)
    done = rehearsal.fit().record
    assert (done.initial["accuracy"], done.final["accuracy"]) == (0.0, 1.0)
    low, high = done.initial["accuracy_ci95"], done.final["reward_ci95"]
    assert low[0] == 0.0 < low[1] < 1.0 and 0.0 < high[0] < high[1] == 1.0


def test_the_same_figures_reach_the_logger(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path).fit()
    steps = [(step, next(iter(metrics)).partition("/")[0]) for step, metrics in done.logger.rows]
    assert steps == [(0, "val"), (1, "train"), (2, "train"), (2, "val"), (3, "train"), (3, "val")]
    _, last = done.logger.rows[-2]
    assert last["train/kl"] == 0.25 and "train/reward" in last


def test_some_trajectories_of_each_validation_reach_the_logger(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path).fit()
    assert [step for step, _, _ in done.logger.tables] == [0, 2, 3]
    _, columns, rows = done.logger.tables[-1]
    records = done.run.read_episodes("val", 3)
    assert [row[columns.index("id")] for row in rows] == [record["example_id"] for record in records]
    assert rows[0][columns.index("said")] == "\n".join(records[0]["turns"])
    assert rows[0][columns.index("calls")] == len(records[0]["calls"])


def test_the_end_of_a_run_has_figures_of_its_own_and_its_calls_are_counted(tiny, tmp_path):
    rehearsal = Rehearsal(tiny, tmp_path, answer=search_then_answer)
    met = []

    def at_end(worker: RolloutWorker, ranks: Ranks) -> dict[str, Any]:
        met.append(rehearsal.engine.versions[-1])
        return {"over_search": 0.5, "over_search_ci95": [0.4, 0.6]}

    rehearsal.callback.at_end = at_end
    done = rehearsal.fit()
    assert met == [3], "the last weights, once"
    assert done.record.counterfactual["over_search"] == 0.5 == done.record.state()["counterfactual"]["over_search"]
    assert done.logger.rows[-1] == (3, {"counterfactual/over_search": 0.5})


def test_episodes_are_written_for_the_first_every_third_and_every_validation_step(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, steps=3).fit()
    assert done.run.episode_steps("train") == [1, 3] and done.run.episode_steps("val") == [0, 2, 3]
    assert len(done.run.read_episodes("train", 3)) == 6
    digest = done.run.read_episodes("train", 3)[0]["images"][0]
    assert done.run.read_picture(digest) in [image for example in QUESTIONS for image in example.images]


@pytest.mark.parametrize("on_tool_failure", ["stop", "tell"])
def test_episodes_whose_tool_failed_are_kept_from_training_and_counted(tiny, tmp_path, on_tool_failure):
    def answer(prompt: TokenPrompt, sampling: Sampling) -> str:
        """Some rollouts search; whoever has been told of the failure, or did not search, answers."""
        told = "failed" in tiny.decode(prompt.token_ids)
        return SEARCH if sampling.seed % 2 and not told else RIGHT

    broken = ToolResult("infrastructure_error", detail="unplugged")
    done = Rehearsal(tiny, tmp_path, answer=answer, result=broken, on_tool_failure=on_tool_failure).fit()
    seen = set()
    for step, groups in enumerate(done.module.groups, start=1):
        failed = [bool(episode.calls) for group in groups for episode in group.episodes_G]
        trained = [trained for group in groups for trained in group.trained_G]
        assert trained == [not failure for failure in failed]
        for group in groups:
            assert all(a == 0 for a, t in zip(group.advantages_G, group.trained_G, strict=True) if not t)
        row = done.rows("train")[step]
        assert row["masked_episodes"] == sum(failed)
        assert row["tool_failure_rate"] == (1.0 if any(failed) else 0.0)
        assert row.get("stop_tool_failure", 0.0) == (sum(failed) / 6 if on_tool_failure == "stop" else 0.0)
        seen |= set(failed)
    assert seen == {True, False}


def test_episodes_whose_engine_failed_are_kept_from_training(tiny, tmp_path):
    def answer(prompt: TokenPrompt, sampling: Sampling) -> str | EngineFailure:
        return EngineFailure("too long") if sampling.seed % 3 == 0 else RIGHT

    done = Rehearsal(tiny, tmp_path, answer=answer).fit()
    failures = 0
    for step, groups in enumerate(done.module.groups, start=1):
        stops = [episode.stop for group in groups for episode in group.episodes_G]
        assert [trained for group in groups for trained in group.trained_G] == [stop == "answered" for stop in stops]
        failed = stops.count("engine_failure")
        row = done.rows("train")[step]
        assert (row["masked_episodes"], row.get("stop_engine_failure", 0.0)) == (failed, failed / 6)
        failures += failed
    assert 0 < failures < 18


def test_what_a_deployed_agent_would_pay_counts_cached_calls_as_well(tiny, tmp_path):
    result = replace(FOUND, cost_usd=0.5, cached=True)
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, result=result).fit().record
    # Every episode searches by its picture: 3 x 2 questions of 3 rollouts each, and 4 questions validated 3 times.
    assert done.cost_usd_uncached == pytest.approx(0.5 * (18 + 12))


def test_the_last_checkpoint_and_the_best_one_are_kept(tiny, tmp_path):
    def only_right_after_two_steps(prompt: TokenPrompt, sampling: Sampling) -> str:
        return RIGHT if len(rehearsal.engine.versions) == 3 else WRONG

    rehearsal = Rehearsal(tiny, tmp_path, answer=only_right_after_two_steps)
    rehearsal.fit()
    folder = tmp_path / "checkpoints"
    assert sorted(entry.name for entry in folder.iterdir()) == ["00000002", "00000003"]
    assert checkpoint.best(folder) == folder / "00000002"
    for found in checkpoint.complete(folder):
        module = Counter([], None)
        checkpoint.read_weights(found, module)
        assert module.weight.item() == int(found.name)


PRICE = PriceSpec(target=0.5, proportional=0.2, integral=0.1)


def test_training_is_charged_for_its_calls_and_validation_is_not(tiny, tmp_path):
    """One call a question, 0.5 above the target: 0 for the first step, 0.2 x 0.5 + 0.1 x 0.5, then 0.1 x 0.5 more."""
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, price=PRICE).fit()
    rows = done.rows("train")
    assert [rows[step]["search_price"] for step in (1, 2, 3)] == pytest.approx([0.0, 0.15, 0.2])
    assert [rows[step]["reward"] for step in (1, 2, 3)] == pytest.approx([0.91, 0.76, 0.71])
    assert [row["reward"] for row in done.rows("val").values()] == pytest.approx([0.91] * 3)
    assert "search_price" not in Rehearsal(tiny, tmp_path / "free").fit().rows("train")[1]


@pytest.mark.parametrize("price", [None, PRICE], ids=["plain", "priced"])
def test_a_resumed_run_writes_what_an_uninterrupted_one_does(tiny, tmp_path, price):
    whole = Rehearsal(tiny, tmp_path / "whole", answer=search_then_answer, price=price).fit()
    broken = Rehearsal(tiny, tmp_path / "broken", answer=search_then_answer, price=price)
    broken.callback.schedule = replace(broken.callback.schedule, checkpoint_every=1)
    broken.engine.answer_until = 2  # the engine dies when it has the weights of step 2, which is written by then
    with pytest.raises(RuntimeError, match="failed in each of 4 val episodes of step 2"):
        broken.fit()
    assert [*broken.rows("train")] == [1, 2]
    last = checkpoint.complete(tmp_path / "broken" / "checkpoints")[-1]
    again = Rehearsal(tiny, tmp_path / "broken", answer=search_then_answer, resume=last, first=1, price=price).fit()

    def figures(done: Rehearsal) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in row.items() if not name.startswith("seconds_")}
            for row in done.run.read_metrics()
        ]

    assert figures(again) == figures(whole)
    assert again.run.read_consumed() == whole.run.read_consumed()
    assert [row["examples"] for row in whole.run.read_consumed()] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"]]
    assert again.record.state() == whole.record.state()
    assert again.module.weight.item() == whole.module.weight.item() == 3
    assert again.engine.versions == [1, 2, 3]  # the weights of the checkpoint before anything is sampled


def test_a_run_killed_before_its_first_checkpoint_starts_over(tiny, tmp_path):
    run = RunDirectory(tmp_path)
    run.start("test", 0, "", {}, None)
    run.log_metrics(0, "val", {"reward": -1.0})
    run.log_consumed(1, ["t0"])
    done = Rehearsal(tiny, tmp_path).fit()
    assert [*done.rows("val")] == [0, 2, 3] and [row["step"] for row in done.run.read_consumed()] == [1, 2, 3]
    assert done.rows("val")[0]["reward"] == 1.0


def test_a_run_whose_budget_is_spent_ends_after_the_step_and_can_go_on(tiny, tmp_path):
    """4 calls in the first validation and 6 in each step: the sixteenth is made in the second step."""
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, spent_at=16).fit()
    assert done.record.stopped == "16 calls made" and done.record.steps_done == 2
    assert [*done.rows("train")] == [1, 2] and done.engine.closed
    assert [*done.rows("val")] == [0]  # nothing is left to validate with
    last = checkpoint.complete(tmp_path / "checkpoints")[-1]
    assert last.name == "00000002"
    again = Rehearsal(tiny, tmp_path, answer=search_then_answer, resume=last, first=2).fit()
    assert again.record.stopped is None
    assert [*again.rows("train")] == [1, 2, 3] and [*again.rows("val")] == [0, 3]
    assert again.record.tool_calls["calls"] == 16 + 6 + 4
    assert again.record.tools["service_behind_it"]["calls"] == 16 + 6 + 4


def test_a_budget_that_the_first_validation_spends_lets_no_step_begin(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, spent_at=4).fit()
    assert done.record.stopped == "4 calls made" and done.rows("train") == {} and [*done.rows("val")] == [0]
    assert checkpoint.complete(tmp_path / "checkpoints") == [] and done.engine.closed


def test_a_budget_that_the_last_step_spends_is_told_and_nothing_is_validated_without_money(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, spent_at=24).fit()
    assert done.record.stopped == "26 calls made" and done.record.steps_done == 3
    assert [*done.rows("val")] == [0, 2] and done.record.validated == 2
    assert done.callback.weights  # for the export: the run is whole


def test_a_budget_that_a_validation_spends_ends_the_run_after_it(tiny, tmp_path):
    """4 + 6 + 6 calls until step 2 is trained, 4 more for its validation."""
    done = Rehearsal(tiny, tmp_path, answer=search_then_answer, spent_at=18).fit()
    assert done.record.stopped == "20 calls made" and done.record.steps_done == 2
    assert [*done.rows("val")] == [0, 2]
    assert checkpoint.complete(tmp_path / "checkpoints")[-1].name == "00000002"


class LimitedTool(MemoryTool):
    """Finds something until `most` calls were made; then the money is gone."""

    def __init__(self, most: int) -> None:
        super().__init__("image_search", FOUND)
        self.most = most

    async def __call__(self, query: Any) -> ToolResult:
        refused = len(self.asked) >= self.most
        found = await super().__call__(query)
        return ToolResult("over_budget", detail="image_search: tools.budget.calls_per_run: spent") if refused else found


def searches_once(tiny: Any) -> Any:
    return lambda prompt, sampling: RIGHT if tiny.decode(prompt.token_ids).count("<search>") else SEARCH


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("stops", [True, False])
def test_what_the_budget_refuses_is_told_to_people_and_trained_on_only_if_the_run_is_to_go_on(
    tiny, tmp_path, stops, overlap
):
    """7 calls: 4 of the first validation, then the first 3 of step 1."""
    rehearsal = Rehearsal(
        tiny, tmp_path, answer=searches_once(tiny), spent_at=7, stops=stops, overlap=overlap, deterministic=True
    )
    rehearsal.tool = LimitedTool(7)
    done = rehearsal.fit()
    if stops:  # told once, at the end
        assert done.progress.said == [] and done.record.stopped == "10 calls made"
    else:
        (line,) = done.progress.said
        where = "train rollouts of step 1: the budget refuses searches, first in 3 of 6 episodes: "
        assert line.startswith(where) and "calls_per_run" in line
    first = done.module.groups[0]
    refused = [any(call.result.status == "over_budget" for call in e.calls) for g in first for e in g.episodes_G]
    assert sum(refused) == 3
    trained = [trained for group in first for trained in group.trained_G]
    assert trained == [not (was and stops) for was in refused]
    assert done.rows("train")[1]["failed_share"] == (0.5 if stops else 0.0)
    if stops:
        assert [*done.rows("train")] == [1] and len(done.tool.asked) == 10  # with overlap too, nothing more is asked
    else:
        assert [*done.rows("train")] == [1, 2, 3] and done.record.stopped is None


def test_a_search_beyond_the_episodes_own_number_is_no_matter_of_money(tiny, tmp_path):
    """Two image searches, where one is allowed: told, trained on, and nothing is said."""
    done = Rehearsal(
        tiny,
        tmp_path,
        answer=lambda prompt, sampling: RIGHT if tiny.decode(prompt.token_ids).count("<search>") > 1 else SEARCH,
        spent_at=16,
    ).fit()
    calls = [call for group in done.module.groups[-1] for e in group.episodes_G for call in e.calls]
    assert {call.result.status for call in calls} == {"ok", "over_budget"}
    assert all(all(group.trained_G) for groups in done.module.groups for group in groups)
    assert done.progress.said == []


def test_supervised_runs_roll_out_only_for_validation(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, supervised=True).fit()
    assert ("train rollouts", 6) not in done.log
    assert [entry for entry in done.log if entry[0] == "weights"] == [
        ("weights", 0, [0]),
        ("weights", 2, [2]),
        ("weights", 3, [3]),
    ]
    assert [*done.rows("train")] == [1, 2, 3] and [*done.rows("val")] == [0, 2, 3]
    assert "reward" not in done.rows("train")[1] and done.rows("train")[1]["loss"] == 0.0
    assert done.run.episode_steps("train") == []


def test_training_on_another_steps_groups_is_refused_and_the_engine_is_closed(tiny, tmp_path):
    rehearsal = Rehearsal(tiny, tmp_path, late=1)
    with pytest.raises(RuntimeError, match=r"holds steps \[0\]; step 1 was asked for"):
        rehearsal.fit()
    assert rehearsal.engine.closed
    assert [*rehearsal.rows("val")] == [0] and rehearsal.rows("train") == {}


def test_an_engine_that_answers_nothing_stops_the_run(tiny, tmp_path):
    rehearsal = Rehearsal(tiny, tmp_path, answer=lambda prompt, sampling: EngineFailure("gone"))
    with pytest.raises(RuntimeError, match="failed in each of 4 val episodes of step 0"):
        rehearsal.fit()
    assert rehearsal.engine.closed and not rehearsal.module.groups


def test_an_engine_that_does_not_start_is_the_error_one_sees(tiny, tmp_path):
    rehearsal = Rehearsal(tiny, tmp_path)

    def unable(run: Path, rank: int) -> Any:
        raise OSError("no such model")

    rehearsal.callback.make_worker = unable
    with pytest.raises(OSError, match="no such model"):
        rehearsal.fit()


def test_with_overlap_a_step_is_rolled_out_while_the_one_before_it_trains(tiny, tmp_path):
    done = Rehearsal(tiny, tmp_path, overlap=True, deterministic=True).fit()
    versions = [{e.weight_version for group in groups for e in group.episodes_G} for groups in done.module.groups]
    assert versions == [{0}, {0}, {1}]  # the first two before any update, the third before the second
    assert [row["examples"] for row in done.run.read_consumed()] == [["t0", "t1"], ["t2", "t3"], ["t4", "t5"]]
    assert done.rows("train")[2]["seconds_waited"] <= done.rows("train")[2]["seconds_rollout"] + 1


def test_where_rollouts_may_be_stale_every_step_compares_a_few_short_fresh_turns(tiny, tmp_path):
    ahead = StreamSpec(2, max_staleness=1)
    settings: dict[str, Any] = {"answer": search_then_answer, "deterministic": True}
    done = Rehearsal(tiny, tmp_path, overlap=True, stream=ahead, **settings).fit()
    assert [{probe.weight_version for probe in probes} for probes in done.module.probes] == [{0}, {1}, {2}]
    for groups, probes in zip(done.module.groups, done.module.probes, strict=True):
        assert [probe.example_id for probe in probes] == [group.example.id for group in groups]
        assert all(len(probe.turns) == 1 and not probe.calls for probe in probes)  # it would search, if it could
    none = Rehearsal(tiny, tmp_path / "fresh", **settings).fit()
    assert not any(none.module.probes)


def test_a_run_with_overlap_resumes_with_the_groups_it_had_ready(tiny, tmp_path):
    settings: dict[str, Any] = {"answer": search_then_answer, "overlap": True, "deterministic": True}
    whole = Rehearsal(tiny, tmp_path / "whole", **settings).fit()
    broken = Rehearsal(tiny, tmp_path / "broken", **settings)
    broken.callback.schedule = replace(broken.callback.schedule, checkpoint_every=1)
    broken.engine.answer_until = 2
    with pytest.raises(RuntimeError, match="failed in each of 4 val episodes of step 2"):
        broken.fit()
    last = checkpoint.complete(tmp_path / "broken" / "checkpoints")[-1]
    again = Rehearsal(tiny, tmp_path / "broken", resume=last, first=1, **settings).fit()
    assert [bare(groups) for groups in again.module.groups] == [bare(groups) for groups in whole.module.groups[1:]]
    assert again.run.read_consumed() == whole.run.read_consumed()
    # Step 2 was rolled out before the kill, and is not rolled out again.
    assert len(again.engine.calls) == len(whole.engine.calls) - 2 * (4 + 2 * 6)


def bare(groups: Any) -> list[Any]:
    """Without timings, which no two runs share."""
    nothing = Timings(0.0, 0.0, 0.0)
    return [replace(g, episodes_G=tuple(replace(e, timings=nothing) for e in g.episodes_G)) for g in groups]


def test_groups_without_gradient_are_refilled_and_every_prompt_is_consumed_once(tiny, tmp_path):
    refilling = StreamSpec(2, refill=True, max_refills=2)
    done = Rehearsal(tiny, tmp_path, answer=seeded({0: RIGHT, 1: WRONG}), stream=refilling).fit()
    plain = Rehearsal(tiny, tmp_path / "plain", answer=seeded({0: RIGHT, 1: WRONG})).fit()
    assert any(group.all_equal for groups in plain.module.groups for group in groups)
    for groups in done.module.groups:
        assert sum(not group.all_equal for group in groups) == 2
    consumed = [name for row in done.run.read_consumed() for name in row["examples"]]
    order = [f"t{i % 6}" for i in range(len(consumed))]
    assert sorted(consumed) == sorted(order)
    # Every draw is its prompt's own, whatever step it came to.
    first = {e.turns for g in plain.module.groups[0] for e in g.episodes_G if g.example.id == "t1"}
    again = {e.turns for g in done.module.groups[0] for e in g.episodes_G if g.example.id == "t1"}
    assert first == again


def test_the_engine_sleeps_while_the_trainer_works(tiny, tmp_path):
    assert Rehearsal(tiny, tmp_path / "awake").fit().engine.naps == 0
    assert Rehearsal(tiny, tmp_path / "asleep", sleep=True).fit().engine.naps == 3


def test_a_tool_that_fails_most_calls_is_told_once_with_their_reason(tiny, tmp_path):
    broken = ToolResult("infrastructure_error", detail="serpapi: key refused (401)")
    done = Rehearsal(tiny, tmp_path, answer=SEARCH, result=broken).fit()
    said = "val rollouts of step 0: image_search failed in 4 of 4 calls: serpapi: key refused (401)"
    assert done.progress.said == [said]
    assert {row["failed_share"] for row in (*done.rows("train").values(), *done.rows("val").values())} == {1.0}
    assert done.record.best is None  # a validation in which everything failed is nobody's best
    assert not checkpoint.read_state(checkpoint.complete(tmp_path / "checkpoints")[-1])["reward"]
