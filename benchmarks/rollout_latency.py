"""Rollouts with slow tools: ours, ours in its turn-synchronous mode, and TRL's tool path, on the same latency draws.

8 questions x 4 episodes with a picture each, a tiny random Qwen2.5-VL, vLLM inside the process in all three. Latencies
are log-normal (sigma 1) with medians of 0, 0.1, 0.5 and 2 s. An episode makes 1 to 3 search calls and answers. Beside
TRL, whose calls run strictly one after another, only the first call of each is made. What the policy says is forced
(`_forced`): turns of TURN_TOKENS tokens, sampled by the engine in every system. Each run has fresh questions and an
engine without caches, as after a weight sync. TRL's seconds are those of its `_generate`: template, sampling, tools.

The bound of a run is what no system with this engine could go below: its slowest episode with the engine for itself, or
all its generation without any latency. The turn-synchronous bound is the slowest call of each wave and that mode's own
generation. Beside TRL the bounds are the sum of the calls, and the slowest episode.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import _peer
from benchmarks._forced import ForcedEngine, SlowSearch
from benchmarks._latency import Calls, counts, critical_path, draw, scaled, total, waves
from benchmarks._policy import as_task, questions, read_policy, write_policy
from benchmarks._process import Channel, Part
from benchmarks._worker import make_worker, sampling
from mmsr1.rollout.engines.base import request_seed
from mmsr1.types import Example

PROMPTS, ROLLOUTS, SEED = 8, 4, 1
MEDIANS = (0.0, 0.1, 0.5, 2.0)
TURN_TOKENS, ALONE_REPEATS = 48, 5
PASSAGE = "it lies by the sea, north of the hills, and was founded by three brothers"
TURN = "<reason>I do not know this place</reason><text_search>{query}</text_search>"
ANSWER = "<reason>now I know</reason><answer>it</answer>"
TRL_TURN = '<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>'


def measure() -> dict[str, Any]:
    """Figures by median latency; None for TRL where it cannot be installed, and `trl_missing` says why."""
    many = draw(PROMPTS * ROLLOUTS, 1, 3, SEED)
    first = tuple(one[:1] for one in many)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_policy(folder / "policy")
        task = {
            "policy": str(folder / "policy"),
            "scratch": scratch,
            "prompts": PROMPTS,
            "rollouts": ROLLOUTS,
            "tokens": TURN_TOKENS,
        }
        with Part.of("rollout_latency") as ours, _peer.TrlPart("rollouts") as trl:
            ours.ask(**task, turn=TURN, answer=ANSWER, passage=PASSAGE)
            trl.ask(**task, turn=TRL_TURN, answer=ANSWER, passage=PASSAGE)
            systems = Systems(ours, trl, folder)
            systems.all_three(many, first, 0.0)  # not counted
            alone = systems.alone(counts(many))
            rows = {at: systems.all_three(many, first, at) for at in MEDIANS}
    return {
        "engine": "vllm",
        "episodes": len(many),
        "alone_s": alone,
        "trl_version": None if trl.missing else _peer.TRL,
        "trl_missing": trl.missing,
        "medians": [_figures(rows[at], rows[0.0], many, first, at, alone) for at in MEDIANS],
    }


@dataclass
class Systems:
    """The processes that roll out. Every run has its number, and so its own questions and draws."""

    ours: Part
    trl: _peer.TrlPart
    folder: Path
    run: int = 0

    def all_three(self, many: Calls, first: Calls, at: float) -> dict[str, Any]:
        """Wall seconds of each system at this median; `one_` where each episode makes its first call only."""
        several, single = scaled(many, at), scaled(first, at)
        return {
            "ours": self._ours(several),
            "sync": self._ours(several, synchronous=True),
            "one_ours": self._ours(single),
            "one_trl": self.trl.ask(calls=single, rows=as_task(questions(PROMPTS, self.run), self.folder)),
        }

    def alone(self, calls: Sequence[int]) -> dict[int, float]:
        """What generating takes an episode of so many calls that has the engine for itself."""
        return {count: median(self._ours([[0.0] * count]) for _ in range(ALONE_REPEATS)) for count in calls}

    def _ours(self, calls: Sequence[Sequence[float]], synchronous: bool = False) -> float:
        self.run += 1
        return self.ours.ask(calls=calls, run=self.run, synchronous=synchronous)


def _figures(
    found: dict[str, Any], at_zero: dict[str, Any], many: Calls, first: Calls, at: float, alone: dict[int, float]
) -> dict[str, Any]:
    """`allowed` is the speed-up of one bound over the other, `share` what there is of it."""
    several, single = scaled(many, at), scaled(first, at)
    bound = max(critical_path(several, alone), at_zero["ours"])
    speedup, allowed = found["sync"] / found["ours"], (waves(several) + at_zero["sync"]) / bound
    beside_trl = found["one_trl"] / found["one_ours"] if found["one_trl"] else None
    trl_allowed = total(single) / critical_path(single, alone) if at else None
    return {
        "median_s": at,
        "ours_s": found["ours"],
        "bound_s": bound,
        "over_bound": found["ours"] / bound,
        "sync_s": found["sync"],
        "speedup": speedup,
        "speedup_allowed": allowed,
        "speedup_share": speedup / allowed,
        "one_call_ours_s": found["one_ours"],
        "one_call_trl_s": found["one_trl"],
        "trl_speedup": beside_trl,
        "trl_speedup_allowed": trl_allowed,
        "trl_share": beside_trl / trl_allowed if beside_trl and trl_allowed else None,
    }


class Ours:
    """Rolls out scripted episodes, each run with fresh pictures and an engine without caches."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.files = read_policy(Path(task["policy"]))
        self.search = SlowSearch(task["passage"])
        policy, tools = Path(task["policy"]), {"text_search": self.search}
        self.worker = make_worker(policy, self.files, task["tokens"], turns=4, tools=tools, wrap=ForcedEngine)

    def run(self, calls: Calls, run: int, synchronous: bool = False) -> float:
        """Wall seconds of a rollout. Raises RuntimeError if an episode did not go as told."""
        size = min(len(calls), self.task["rollouts"])
        asked = questions(len(calls) // size, run)
        self._tell(asked, calls, size, run)
        self.worker.load_weights(self.files.model.named_parameters(), run)
        self.worker.deterministic = synchronous
        start = time.perf_counter()
        groups = self.worker.rollout(asked, size, sampling(self.task["tokens"]), "train", run)
        seconds = time.perf_counter() - start
        made = [len(episode.calls) if episode.stop == "answered" else None for group in groups for episode in group]
        if made != list(map(len, calls)):
            raise RuntimeError(f"calls that were made: {made}; told: {calls}")
        return seconds

    def _tell(self, asked: Sequence[Example], calls: Calls, size: int, run: int) -> None:
        """The script of every request, by its seed, and the seconds of every call, by its query."""
        turns, seconds = {}, {}
        for number, one in enumerate(calls):
            key = (self.worker.seed, "train", run, asked[number // size].id, number % size)
            queries = [f"{number} {call}" for call in range(len(one))]
            texts = [*(self.task["turn"].format(query=query) for query in queries), self.task["answer"]]
            turns.update((request_seed(*key, turn, 0), self._padded(text)) for turn, text in enumerate(texts))
            seconds.update(zip(queries, one, strict=True))
        self.search.seconds = seconds
        self.worker.engine.turns = turns  # pyright: ignore[reportAttributeAccessIssue]  (a ForcedEngine)

    def _padded(self, text: str) -> tuple[int, ...]:
        """The text in front of which enough is said for a turn of the right length."""
        ids = self.files.tokenizer.encode(text, add_special_tokens=False)
        filler = self.files.tokenizer.encode(".", add_special_tokens=False)
        return (*filler * (self.task["tokens"] - len(ids)), *ids)


def main(channel: Channel) -> None:
    task = channel.receive()
    assert task is not None
    torch.set_num_threads(1)
    system = Ours(task)
    channel.send({})
    while (wanted := channel.receive()) is not None:
        channel.send(system.run(**wanted))


if __name__ == "__main__":
    main(Channel())
