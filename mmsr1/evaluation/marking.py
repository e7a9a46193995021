"""How an evaluated episode is judged: the reward of training, the benchmark's own metric, and a judge."""

from __future__ import annotations

from typing import Any

from mmsr1.data.review.decisions import content_of
from mmsr1.evaluation import metrics
from mmsr1.evaluation.benchmarks import Question
from mmsr1.evaluation.judge import Judge, Verdict
from mmsr1.evaluation.outcome import Outcome, outcome_of
from mmsr1.rewards.reward import RewardSpec, score
from mmsr1.rewards.rule import final_answer
from mmsr1.run_directory import episode_record
from mmsr1.types import INFRASTRUCTURE_STOPS, Episode, Reward


class Marking:
    """`metric` is a key of `metrics.METRICS`; without a `judge` answers are compared as text alone."""

    def __init__(self, reward: RewardSpec, metric: str, judge: Judge | None = None) -> None:
        self._reward, self._metric, self.judge = reward, metric, judge

    async def __call__(self, question: Question, episode: Episode, lost: bool) -> tuple[Outcome, dict[str, Any]]:
        """The episode in figures, and its line for the run directory."""
        example = question.example
        plain, said = score(example, episode, self._reward), final_answer(episode.turns)
        truths = (example.answer, *example.aliases)
        scores: dict[str, float] = {**plain.parts, **metrics.score(self._metric, said, truths, question.labels)}
        lost = lost or episode.stop in INFRASTRUCTURE_STOPS
        record = episode_record(example, episode, Reward(plain.total, scores), trained=not lost)
        record["content"] = content_of(example)
        if question.labels:
            record["labels"] = dict(question.labels)
        return await self.judged(question, record)

    async def judged(self, question: Question, record: dict[str, Any]) -> tuple[Outcome, dict[str, Any]]:
        """The line with what the judge says of it now, if there is one and it says something about the policy."""
        if self.judge is not None and record["trained"]:
            verdict = await self.judge.verdict(question.example, final_answer(record["turns"]))
            record = {**record, "verdict": vars(verdict)}
            if verdict.score is not None:
                parts = {**record["reward"]["parts"], "judge": verdict.score}
                record["reward"] = {**record["reward"], "parts": parts}
        return outcome_of(record), record


def verdict_of(record: dict[str, Any]) -> Verdict | None:
    """What the judge said of a line, None if it was not asked."""
    return Verdict(**record["verdict"]) if "verdict" in record else None
