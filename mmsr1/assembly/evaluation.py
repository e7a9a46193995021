"""An evaluation: every question through the episode loop of training, judged, kept line by line, summed up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from mmsr1.assembly.answering import Answering, causes
from mmsr1.assembly.benchmarks import Asked
from mmsr1.assembly.branches import WAYS, Branches, price
from mmsr1.assembly.services import check_key, ledger_folder, provider_of
from mmsr1.config import ConfigError
from mmsr1.config.evaluate import EvaluateConfig
from mmsr1.evaluation import contamination, counterfactual, metrics
from mmsr1.evaluation.agreement import Labels, agreement, read_labels
from mmsr1.evaluation.benchmarks import Question
from mmsr1.evaluation.judge import Judge, judged
from mmsr1.evaluation.lines import BRANCHES_FILE, SPLIT, Lines
from mmsr1.evaluation.marking import Marking, verdict_of
from mmsr1.evaluation.scorecard import scorecard
from mmsr1.files import append_line, json_line
from mmsr1.report.progress import episodes_bar
from mmsr1.report.searches import tool_table
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.record import SHOWN, refusal, trajectory
from mmsr1.rollout.worker import Job, Prompt
from mmsr1.run_directory import episode_pictures
from mmsr1.tools.chat import CHAT
from mmsr1.tools.ledger import read_totals
from mmsr1.tools.meter import merge
from mmsr1.tools.providers.chat import openai_chat
from mmsr1.types import Episode


def remarks(config: EvaluateConfig, asked: Asked) -> Iterator[str]:
    """What a user should know of this configuration before it is run."""
    local = [name for name in ("image_search", "text_search") if getattr(config.tools, name).provider == "local"]
    own = config.tools.image_index or config.tools.text_index
    if local and not own and not asked.name.startswith("emblem"):
        yield f"tools: {' and '.join(local)} look into the built-in emblem world, which knows nothing of {asked.title}"
    trained = Path(config.policy) / "config.yaml"
    prompts = OmegaConf.select(OmegaConf.load(trained), "rollout.prompts") if trained.is_file() else None
    if prompts not in (None, config.rollout.prompts) and config.workflow.prompts is None:
        yield f"policy={config.policy} was trained with rollout.prompts={prompts}; here it is {config.rollout.prompts}"
    if asked.judged and config.judge.api.provider == "none":
        yield f"{asked.title}: its authors score by a judge; without judge=openai answers are compared as text"
    if config.judge.api.provider == "none" and config.judge.labels is not None:
        yield "judge.labels: there is no judge to compare them with; give judge=openai"


def policy_label(config: EvaluateConfig) -> str:
    """What tables call the policy."""
    if config.policy == "openai":
        return str(config.rollout.api.options.get("model") or "openai")
    folder = Path(config.policy)
    return f"{folder.parent.name}/{folder.name}" if (folder / "run.json").is_file() else config.policy


def judge(config: EvaluateConfig, policy: Answering) -> Judge | None:
    """The judge of the configuration, asked through the services of the run. Raises ConfigError."""
    part = config.judge.api
    if part.provider == "none":
        return None
    provider = provider_of("judge.api", part, openai_chat, {})
    check_key("judge.api", provider)
    services = policy.services
    services.closing.append(provider.aclose)
    try:
        model = str(part.options.get("model", ""))
        return Judge(services.part(provider, part, CHAT), model, with_image=config.judge.with_image)
    except ValueError as error:
        raise ConfigError(f"judge.api.options.model: {error}") from error


def human_labels(config: EvaluateConfig) -> Labels | None:
    """The file of human verdicts, if one is given. Raises ConfigError."""
    if config.judge.labels is None:
        return None
    try:
        return read_labels(Path(config.judge.labels))
    except (ValueError, OSError) as error:
        raise ConfigError(f"judge.labels={error}") from error


def workflow_limits(config: EvaluateConfig, policy: Answering) -> Limits:
    """What the turns must do. An image search that begins a fixed workflow is made whatever the model would say."""
    actions: Any = tuple(config.workflow.actions)
    first = policy.worker.renderer.prompts.fixed_search if actions[:1] == ("image_search",) else ""
    return replace(policy.limits(actions), first_turn=first)


@dataclass(frozen=True)
class Evaluating:
    """What the parts of an evaluation share."""

    config: EvaluateConfig
    asked: Asked
    policy: Answering
    marking: Marking
    lines: Lines
    labels: Labels | None = None

    def answers(self) -> None:
        """Have every question answered that is not answered yet, and every answer judged."""
        repeats, limits = self.config.repeats, workflow_limits(self.config, self.policy)
        missing = {id: self.lines.missing(id, repeats) for id in self.asked.contents}
        # A question in one go; of one that was asked before only what was lost, each draw as it would have been.
        left = {id: [(0, repeats)] if len(gone) == repeats else [(n, 1) for n in gone] for id, gone in missing.items()}
        waiting: dict[tuple[str, int], Question] = {}

        def jobs() -> Iterator[Job]:
            for question in self.asked.questions(frozenset(id for id, parts in left.items() if parts)):
                for first, size in left[question.example.id]:
                    if self.policy.spent() is None:
                        waiting[question.example.id, first] = question
                        yield Job(Prompt(question.example, first, 0), size, SPLIT, self.policy.sampling, limits)

        with episodes_bar("questions", max(1, sum(map(len, left.values()))), "questions") as advance:

            async def judged_and_kept(job: Job, episodes: tuple[Episode, ...]) -> None:
                question = waiting.pop((job.prompt.example.id, job.prompt.first))
                for episode in episodes:
                    lost = refusal(episode, self.policy.worker.limits.searches) is not None
                    found, line = await self.marking(question, episode, lost)
                    self.lines.add(line, found, episode_pictures(question.example, episode))
                advance()

            self.policy.worker.flow(jobs(), judged_and_kept)

    def judge_again(self) -> None:
        """Ask the judge about the answers of an earlier process that it could not be asked about then."""
        wanted: dict[str, list[dict[str, Any]]] = {}
        for line in self.lines:
            if _unjudged(line):
                wanted.setdefault(line["example_id"], []).append(line)
        if wanted and self.marking.judge is not None:
            with episodes_bar("verdicts", sum(map(len, wanted.values()))) as advance:
                questions = self.asked.questions(frozenset(wanted))
                while some := list(islice(questions, self.config.concurrent)):  # their pictures are in memory
                    self.policy.worker.call(self._again([(one, wanted[one.example.id]) for one in some], advance))

    async def _again(self, asked: Sequence[tuple[Question, list[dict[str, Any]]]], advance: Callable[[], None]) -> None:
        async def one(question: Question, line: dict[str, Any]) -> None:
            found, fresh = await self.marking.judged(question, line)
            self.lines.add(fresh, found, ())
            advance()

        await asyncio.gather(*(one(question, line) for question, lines in asked for line in lines))

    def branches(self) -> None:
        """Roll out every question freely and with each way of searching forced."""
        size, file = self.config.counterfactual, self.lines.run.path / BRANCHES_FILE
        left = frozenset(self.asked.contents.keys() - self.lines.branches().keys())
        if left:
            with episodes_bar("branches", len(left) * len(WAYS) * size) as advance:
                branches = Branches(self.config, self.policy.worker, size, self.policy.spent, advance)
                examples = (question.example for question in self.asked.questions(left))
                branches.roll(examples, lambda line: append_line(file, json_line(line)))

    def summary(self, before: Mapping[str, Any], seconds: Mapping[str, float]) -> dict[str, Any]:
        """The run directory's summary.json: `before` is that of the process that this one goes on with ({} without),
        whose seconds and searches are added to those that were measured now."""
        config, run = self.config, self.lines.run
        outcomes = [found for (_, rollout), found in sorted(self.lines.outcomes.items()) if rollout < config.repeats]
        told = scorecard(outcomes, config.rollout.turns - 1) if outcomes else {}
        labelled = [(line.get("labels", {}), line["reward"]["parts"]) for line in self.lines if line["trained"]]
        paid = read_totals(ledger_folder(run.path))
        branches, judging = self.lines.branches(), self._judged()
        if judging.get("judge_outage_rate"):  # answers that repeat the truth are right without a judge: not a fair part
            told = {name: value for name, value in told.items() if not name.startswith("score_judge")}
        called = merge(before.get("tool_rows", {}), self.policy.rows())
        return {
            "benchmark": self.asked.name,
            "title": self.asked.title,
            "workflow": config.workflow.name,
            "policy": policy_label(config),
            "temperature": config.rollout.temperature,
            "final": told | metrics.summarise(self.asked.metric, labelled),
            "counterfactual": counterfactual.figures(list(branches.values()), price(config)),
            "contamination": contamination.contamination(self.lines),
            "judge": judging,
            "questions": self.asked.digest,
            "asked": len(self.asked.contents),
            "answered": sum(not self.lines.missing(id, config.repeats) for id in self.asked.contents),
            "branches_missing": len(self.asked.contents) - len(branches) if config.counterfactual else 0,
            "skipped_rows": self.asked.skipped,
            "set_aside": self.lines.aside,
            "remarks": list(self.asked.remarks),
            **{name: spent + before.get(name, 0.0) for name, spent in seconds.items()},
            "tool_calls": sum(one.calls for one in outcomes),
            "backend_calls": paid.started,
            "cost_usd": paid.spent_usd,
            "cost_usd_uncached": sum(one.cost_usd for one in outcomes),
            "tools": tool_table(called),
            "tool_rows": called,
        }

    def trajectories(self) -> list[list[Any]]:
        """Some episodes, as rows of `mmsr1.rollout.record.TRAJECTORY`."""
        return [trajectory(line) for line in islice(self.lines, SHOWN)]

    def _judged(self) -> dict[str, Any]:
        if self.marking.judge is None:
            return {}
        verdicts = {(line["example_id"], line["rollout"]): verdict_of(line) for line in self.lines}
        found = {key: verdict for key, verdict in verdicts.items() if verdict is not None}
        told = {**self.marking.judge.described, **judged(list(found.values()))}
        if self.labels is not None:  # people label one answer of a question, the first
            told |= agreement({id: verdict for (id, rollout), verdict in found.items() if not rollout}, self.labels)
        return told


def nothing_counts(summary: Mapping[str, Any], policy: Answering) -> str | None:
    """Why an evaluation that asked says nothing, if infrastructure lost every episode."""
    lost = bool(summary["final"]) and not summary["final"]["questions"]
    return f"no episode counts{causes(policy.rows())}" if lost else None


def _unjudged(line: Mapping[str, Any]) -> bool:
    return line.get("verdict", {}).get("status") == "outage"
