"""A policy that only answers: what balancing and traces have in common.

Many questions go through the episode loop that training uses, in portions; what became of each is one line of a file,
so that a command that was killed goes on with the questions that have none.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from rich.console import Console

from mmsr1.assembly.branches import Scored
from mmsr1.assembly.data import skipped_rows, training_examples
from mmsr1.assembly.policy import base_policy, starting_weights
from mmsr1.assembly.rollout import reward_spec, rollout_worker, sampling
from mmsr1.assembly.services import Services, ledger_folder
from mmsr1.assembly.settings import FREE, decides_nothing, settle
from mmsr1.assembly.tools import check_tools
from mmsr1.config import Config, ConfigError, check
from mmsr1.data.review.decisions import content_of
from mmsr1.data.table import ExampleTable
from mmsr1.files import append_line, json_line, write_whole
from mmsr1.models.loading import PolicyFiles
from mmsr1.report.progress import episodes_bar
from mmsr1.report.searches import search_table, tool_table
from mmsr1.rewards.reward import score
from mmsr1.rollout.episode import Limits
from mmsr1.rollout.protocol import ActionName
from mmsr1.rollout.worker import RolloutWorker
from mmsr1.tools.ledger import read_totals
from mmsr1.types import Example, ToolStatus

SETTINGS = "config.yaml"


class Answering:
    """A worker, and how its episodes are drawn and scored."""

    def __init__(self, config: Config, files: PolicyFiles, worker: RolloutWorker) -> None:
        self.config, self.files, self.worker = config, files, worker
        self.sampling, self._reward = sampling(config), reward_spec(config)

    @property
    def services(self) -> Services:
        """Those of the search tools, which a judge shares: one budget, one cache, one ledger."""
        return self.worker.tools.services  # type: ignore[attr-defined]  (the tools of a configuration)

    def limits(self, actions: tuple[ActionName, ...] = ()) -> Limits:
        """The worker's, with these actions forced."""
        return replace(self.worker.limits, actions=actions)

    def episodes(
        self,
        examples: Sequence[Example],
        each: int,
        split: str,
        actions: tuple[ActionName, ...] = (),
        on_episode: Callable[[], None] = lambda: None,
    ) -> list[list[Scored]]:
        """`each` scored episodes of every example, in order; `split` and the seed decide every draw."""
        found = self.worker.rollout(
            examples, each, self.sampling, split, 0, lambda episode: on_episode(), limits=self.limits(actions)
        )
        return [
            [Scored(example, episode, score(example, episode, self._reward)) for episode in episodes]
            for example, episodes in zip(examples, found, strict=True)
        ]

    def spent(self) -> str | None:
        """Why it is of no use to ask on: a budget or an account is spent."""
        return self.worker.tools.spent()  # type: ignore[attr-defined]  (the tools of a configuration)

    def rows(self) -> Any:
        """Figures of the search tools, and of the model if it is a service."""
        return self.worker.tools.rows()  # type: ignore[attr-defined]


@contextmanager
def answering(config: Config, run: Path, concurrent: int = 512) -> Iterator[Answering]:
    """Engine and tools of the configuration, closed in the end; `concurrent` episodes at a time. Raises ConfigError."""
    check_tools(config, run)
    files = base_policy(config, weights=False)
    with TemporaryDirectory() as scratch:
        worker = rollout_worker(config, files, starting_weights(config, files, Path(scratch)), run, 0, concurrent)
        try:
            yield Answering(config, files, worker)
        finally:
            worker.close()


def settle_resumed(config: Config, run: Path) -> None:
    """What is gone on with must be decided by the same settings. Raises ConfigError that names another one."""
    if config.resume is not None:
        asked = OmegaConf.structured(replace(config, resume=None))
        settle(run / SETTINGS, asked, lambda key: decides_nothing(key, FREE))


class Answered:
    """One line for each finished question, in `<folder>/<name>.jsonl`, made under one configuration.

    `options` are those of the command that decide what a line holds. Raises ConfigError if the folder holds lines of
    others, or another process is at work there.
    """

    def __init__(self, folder: Path, name: str, config: Config, options: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self._path = folder, folder / f"{name}.jsonl"
        self._lock = FileLock(folder / ".lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise ConfigError(f"--out={folder}: another process is at work there") from error
        try:
            asked: Any = OmegaConf.to_container(OmegaConf.structured(config))
            asked["command"] = {"name": name, **options}
            settle(folder / SETTINGS, asked, lambda key: decides_nothing(key, FREE))
            self._known = {row["id"]: row["content"] for row in self.rows()}
        except BaseException:
            self.close()
            raise

    def tells_of(self, id: str, examples: ExampleTable, place: int) -> bool:
        """Whether there is a line of this very question: one whose row was changed is another.

        Only rows whose id has a line are read from disk.
        """
        return id in self._known and self._known[id] == content_of(examples[place])

    def append(self, example: Example, row: dict[str, Any]) -> None:
        """Add the line of an example; of several lines of an id the last one counts."""
        content = content_of(example)
        append_line(self._path, json_line({"id": example.id, "content": content, **row}))
        self._known[example.id] = content

    def current(self, examples: ExampleTable) -> Iterator[dict[str, Any]]:
        """The last line of each question that is among the examples and is still the one that was answered."""
        places = {id: place for place, id in enumerate(examples.ids)}
        last = {row["id"]: number for number, row in enumerate(self.rows())}
        for number, row in enumerate(self.rows()):
            id = row["id"]
            if last[id] == number and id in places and self.tells_of(id, examples, places[id]):
                yield row

    def keep_current(self, examples: ExampleTable) -> None:
        """Let the file hold nothing but `current` lines; the others go to `<name>.before.jsonl`."""
        kept = {json_line(row) for row in self.current(examples)}
        others = [line for line in map(json_line, self.rows()) if line not in kept]
        if others:
            for line in others:
                append_line(self._path.with_suffix(".before.jsonl"), line)
            write_whole(self._path, b"".join(json_line(row) for row in self.current(examples)))
            self._known = {row["id"]: row["content"] for row in self.rows()}

    def rows(self) -> Iterator[dict[str, Any]]:
        """One after the other; what a kill left of a last line does not count. Raises ConfigError for a damaged one."""
        if not self._path.is_file():
            return
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.endswith(b"\n"):
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise ConfigError(f"{self._path}: line {number} is damaged; remove it") from error

    def close(self) -> None:
        self._lock.release()


def begun_with(folder: Path, option: str) -> Any:
    """The option of the command that began a folder of answers, None if there is none."""
    file = folder / SETTINGS
    return OmegaConf.select(OmegaConf.load(file), f"command.{option}") if file.is_file() else None


@dataclass(frozen=True)
class Ended:
    """How a command ended: USD paid in this folder so far, `lost` questions that failures of engine or tools left
    without an answer, and why it `stopped` before the last one, if it did."""

    paid_usd: float
    lost: int
    stopped: str | None

    @property
    def complete(self) -> bool:
        return self.stopped is None and not self.lost


# Asks these examples, and calls the last argument for each episode that ends: each example's line, or None if it was
# lost to infrastructure.
Ask = Callable[[Answering, list[Example], Callable[[], None]], Iterable[dict[str, Any] | None]]


def ask_all(
    config: Config,
    examples: ExampleTable,
    answered: Answered,
    limit: int,
    each: int,
    rounds: int,
    what: str,
    ask: Ask,
) -> Ended:
    """Have `limit` of the questions (0: all) answered of which no line tells yet, by `rounds` times `each` episodes.

    A question that was lost to infrastructure gets no line: the same command asks it again. Ends early once money is
    spent, or nobody answers.
    """
    ids = examples.ids
    left = [i for i in drawn(len(ids), limit, config.seed) if not answered.tells_of(ids[i], examples, i)]
    # Files are often sorted by kind: what an interrupted command has asked is of all kinds.
    left = [left[i] for i in np.random.default_rng([config.seed, 29]).permutation(len(left))]
    lost, stopped, console = 0, None, Console(stderr=True)
    size = max(1, config.rollout.vllm.max_num_seqs // each)  # few: what is asked together is written together
    if left:
        bar = episodes_bar(what, len(left) * each * rounds)
        with answering(config, answered.folder) as policy, bar as advance:
            for start in range(0, len(left), size):
                portion = [examples[i] for i in left[start : start + size]]
                found = list(ask(policy, portion, advance))
                if stopped := policy.spent():  # what lacks its searches says nothing
                    break
                for example, row in zip(portion, found, strict=True):
                    if row is not None:
                        answered.append(example, row)
                lost += found.count(None)
                if not any(found):
                    stopped = f"engine or tools answer nothing{causes(policy.rows())}"
                    break
            if (table := search_table(tool_table(policy.rows()))) is not None:
                console.print(table)
    return Ended(read_totals(ledger_folder(answered.folder)).spent_usd, lost, stopped)


def causes(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Which parts failed, how often and of what, for the end of a sentence."""
    told = [
        f"{part} failed {int(count)} times ({kind.removeprefix('failures/')})"
        for part, row in rows.items()
        for kind, count in row.items()
        if kind.startswith("failures/") and kind.removeprefix("failures/") not in get_args(ToolStatus) and count
    ]
    return f" ({'; '.join(told[:4])})" if told else ""


def drawn(total: int, limit: int, seed: int) -> list[int]:
    """The places of `limit` questions of all, ascending (0: all): files are often sorted, so they are drawn."""
    if not 0 < limit < total:
        return list(range(total))
    return sorted(np.random.default_rng([seed, 23]).permutation(total)[:limit].tolist())


def questions(config: Config) -> ExampleTable:
    """The training questions; what people should know of them goes to standard error."""
    found, _, bad = training_examples(config)
    for line in skipped_rows(bad):
        sys.stderr.write(f"{line}\n")
    twice = next((id for id, count in Counter(found.ids).items() if count > 1), None)
    remedy = f"the id {twice} is in two files; results are kept by id, so give each row its own"
    check(twice is None, "data.sources", [source.path for source in config.data.sources or ()], remedy)
    return found
