"""A teacher answers questions through the episode loop, and what was good is kept for another policy to imitate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmsr1.assembly.answering import Answered, Answering, Ended, ask_all, questions
from mmsr1.config import Config, ConfigError
from mmsr1.data.traces.folder import FACTS, keep_pictures, tokenizer_name, trace_record
from mmsr1.files import json_line, write_whole
from mmsr1.types import INFRASTRUCTURE_STOPS, Example

TRACES, COMPLETE = "traces", "complete.json"


@dataclass(frozen=True)
class Selection:
    """Of `attempts` episodes a question those with the highest reward are kept, at most `keep`, none below
    `least_reward` (0 to 1); the ones with fewer searches first."""

    attempts: int = 1
    keep: int = 1
    least_reward: float = 0.8

    def chosen(self, found: list[Any]) -> tuple[list[Any], int]:
        """The best scored episodes of one question, and how many were lost to infrastructure."""
        lost = [one for one in found if one.episode.stop in INFRASTRUCTURE_STOPS]
        good = [one for one in found if one not in lost and one.reward.total >= self.least_reward]
        good.sort(key=lambda one: (-one.reward.total, len(one.episode.calls), one.episode.sampled_tokens))
        return good[: self.keep], len(lost)


def make_traces(config: Config, out: Path, selection: Selection, limit: int) -> tuple[Ended, list[dict[str, Any]]]:
    """Have `limit` of the questions (0: all) answered into the folder; how it ended, and its lines without their
    conversations. A folder that was begun is gone on with. Raises ConfigError."""

    def ask(teacher: Answering, examples: list[Example], advance: Callable[[], None]) -> Iterator[Any]:
        write_whole(out / FACTS, json_line({"tokenizer": tokenizer_name(teacher.files.tokenizer)}))
        for found in teacher.episodes(examples, selection.attempts, "traces", on_episode=advance):
            kept, lost = selection.chosen(found)
            keep_pictures(out, [one.episode for one in kept])
            records = [trace_record(one.episode, one.reward) for one in kept]
            row = {"attempts": len(found), "lost": lost, "kept": records}
            yield row if 2 * lost < len(found) else None

    examples = questions(config)  # first: what cannot be read begins no folder
    answered = Answered(out, "traces", config, vars(selection))
    try:
        ended = ask_all(config, examples, answered, limit, selection.attempts, 1, "teacher", ask)
        answered.keep_current(examples)
        rows = [row | {"kept": [{"calls": one["calls"]} for one in row["kept"]]} for row in answered.rows()]
        return ended, rows
    finally:
        answered.close()


def taught(config: Config, run: Path) -> Config:
    """The configuration with the traces of `algorithm.source=teacher`, which are made in the run's folder unless they
    are there. Raises ConfigError if the teacher could not answer everything."""
    out = run / TRACES
    if config.algorithm.kind != "sft" or config.algorithm.source != "teacher":
        return config
    if not (out / COMPLETE).is_file():
        rollout = replace(config.rollout, engine="emblem_teacher")
        ended, rows = make_traces(replace(config, rollout=rollout), out, Selection(), config.algorithm.questions)
        if not ended.complete:
            why = ended.stopped or f"{ended.lost} questions were lost to failures of the tools"
            raise ConfigError(f"algorithm.source=teacher: {why}; resume={run} goes on")
        write_whole(out / COMPLETE, json_line({"questions": len(rows)}))
    return replace(config, algorithm=replace(config.algorithm, source="traces", traces=str(out)))
