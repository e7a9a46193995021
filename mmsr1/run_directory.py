"""The run directory: the one place that writes it and reads it back.

    config.yaml     resolved config                       run.json      what ran, from which commit, how it ended
    metrics.jsonl   {"step", "split", "<name>": number}   summary.json  first and last validation, totals
    consumed.jsonl  {"step", "examples": [id, ...]}
    episodes/<split>-<step>.jsonl                         episodes/images/<digest>.<ext>

Whole files appear in one rename, so a reader never sees half of one. The `.jsonl` files at the top grow by one full
line per write: a kill can leave at most one unfinished last line, which readers ignore and the next append removes.
All JSON is strict: NaN and infinities are written as null. `checkpoints/`, `ledger/` and `report.html` belong to their
own writers.
"""

from __future__ import annotations

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from mmsr1.files import append_line, json_line, keep_picture, plain, read_lines, write_whole
from mmsr1.rollout.protocol import action_name, parse_turn
from mmsr1.types import Episode, Example, Group, Picture, Reward

FIRST = "first"  # the run that came before this one, in its folder
FinalStatus = Literal["finished", "failed", "interrupted"]

_SPLIT = re.compile(r"[a-z][a-z0-9_]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RunDirectory:
    """Writes and reads one run under `path`. Holds no state: any number of readers may look while one process writes.

    In a distributed run rank 0 alone writes.
    """

    path: Path

    def start(
        self, command: str, seed: int, config_yaml: str, versions: Mapping[str, str | None], git_commit: str | None
    ) -> None:
        """Make the folder, write config.yaml, and declare the run running.

        Called again on resume: `started` stays that of the first start, the new time is added to `resumed`, and another
        commit to `git_commits`.
        """
        (self.path / "episodes" / "images").mkdir(parents=True, exist_ok=True)
        write_whole(self.path / "config.yaml", config_yaml.encode())
        now = datetime.now(UTC).isoformat(timespec="seconds")
        before = self.read_run()
        resumed = [*before.get("resumed", []), now] if before else []
        commits = dict.fromkeys([*before.get("git_commits", []), *([git_commit] if git_commit else [])])
        self._write_json(
            "run.json",
            {
                "status": "running",
                "command": command,
                "seed": seed,
                "versions": dict(versions),
                "git_commit": git_commit,
                "git_commits": list(commits),
                "started": before.get("started", now),
                "resumed": resumed,
                "wall_seconds": before.get("wall_seconds", 0.0),
            },
        )

    def finish(
        self, status: FinalStatus, wall_seconds: float, error: str | None = None, reason: str | None = None
    ) -> None:
        """Record how the run ended; `error` is one line for people, `reason` why it ended on purpose, or what it
        lacked at its end. `wall_seconds` of this process are added to those of earlier ones that came as far as this.
        Raises FileNotFoundError if it never started.
        """
        run = self.read_run()
        if not run:
            raise FileNotFoundError(f"{self.path / 'run.json'} is missing: call start() before finish()")
        run |= {"status": status, "wall_seconds": run["wall_seconds"] + wall_seconds}
        if error is not None:
            run["error"] = error
        if reason is not None:
            run["reason"] = reason
        self._write_json("run.json", run)

    def read_run(self) -> dict[str, Any]:
        """The content of run.json; empty if the run never started."""
        return self._read_json("run.json")

    def log_metrics(self, step: int, split: str, figures: Mapping[str, Any]) -> None:
        """Append one line. A figure is anything with a numeric value (number, NumPy or torch scalar)."""
        clash = {"step", "split"} & figures.keys()
        if clash:
            raise ValueError(f"figures may not be named {sorted(clash)}: the line holds step and split already")
        line = {"step": step, "split": _checked_split(split)} | {k: _number(v) for k, v in figures.items()}
        append_line(self.path / "metrics.jsonl", json_line(line))

    def read_metrics(self, split: str | None = None) -> list[dict[str, Any]]:
        """All metric lines in the order written, or those of one split; a figure that was not finite is None."""
        rows = read_lines(self.path / "metrics.jsonl")
        return [row for row in rows if split is None or row["split"] == split]

    def log_consumed(self, step: int, examples: Sequence[str]) -> None:
        """Append the ids of the examples that a training step consumed, in its order."""
        append_line(self.path / "consumed.jsonl", json_line({"step": step, "examples": list(examples)}))

    def read_consumed(self) -> list[dict[str, Any]]:
        """One row a training step, in order."""
        return read_lines(self.path / "consumed.jsonl")

    def drop_after(self, step: int) -> None:
        """Forget what was written of steps beyond `step`: a run resumed there will write it again."""
        for name in ("metrics.jsonl", "consumed.jsonl"):
            rows = read_lines(self.path / name)
            kept = [row for row in rows if row["step"] <= step]
            if len(kept) < len(rows):
                write_whole(self.path / name, b"".join(json_line(row) for row in kept))
        for file in (self.path / "episodes").glob("*-*.jsonl"):
            if _step_of(file) > step:
                file.unlink()

    def write_episodes(
        self, split: str, step: int, records: Iterable[Mapping[str, Any]], pictures: Iterable[Picture]
    ) -> Path:
        """Write episodes/<split>-<step>.jsonl from `episode_record`s, and each picture once under its digest."""
        for picture in pictures:
            keep_picture(self.path / "episodes" / "images", picture)
        file = self._episodes_file(split, step)
        write_whole(file, b"".join(json_line(record) for record in records))
        return file

    def append_episode(self, split: str, step: int, record: Mapping[str, Any], pictures: Iterable[Picture]) -> None:
        """Add one line to episodes/<split>-<step>.jsonl, after the pictures that it names."""
        for picture in pictures:
            keep_picture(self.path / "episodes" / "images", picture, sync=False)
        append_line(self._episodes_file(split, step), json_line(record))

    def write_groups(self, split: str, step: int, groups: Iterable[Group]) -> Path:
        """`write_episodes` for every rollout of `groups`, with the pictures that they show."""
        records: list[dict[str, Any]] = []
        pictures: dict[str, Picture] = {}
        for group in groups:
            rollouts = zip(group.episodes_G, group.rewards_G, group.advantages_G, group.trained_G, strict=True)
            for episode, reward, advantage, trained in rollouts:
                records.append(episode_record(group.example, episode, reward, advantage, trained))
                pictures |= {picture.digest: picture for picture in episode_pictures(group.example, episode)}
        return self.write_episodes(split, step, records, pictures.values())

    def episode_steps(self, split: str) -> list[int]:
        """Steps for which episodes of `split` were written, ascending."""
        return sorted(_step_of(file) for file in (self.path / "episodes").glob(f"{_checked_split(split)}-*.jsonl"))

    def read_episodes(self, split: str, step: int) -> list[dict[str, Any]]:
        """The records of one split and step, in the order written. Raises FileNotFoundError if there are none."""
        file = self._episodes_file(split, step)
        if not file.exists():
            raise FileNotFoundError(f"no {file.name} in {file.parent}; steps written: {self.episode_steps(split)}")
        return read_lines(file)

    def read_picture(self, digest: str) -> Picture | None:
        """The picture of that digest, or None if it was not kept. Raises ValueError for anything but a digest."""
        if not _DIGEST.fullmatch(digest):
            raise ValueError(f"{digest!r} is not a SHA-256 digest in hexadecimal")
        file = next((self.path / "episodes" / "images").glob(f"{digest}.*"), None)
        return Picture(file.read_bytes()) if file else None

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self._write_json("summary.json", summary)

    def read_summary(self) -> dict[str, Any]:
        """The content of summary.json; empty if the run has not got that far."""
        return self._read_json("summary.json")

    def _episodes_file(self, split: str, step: int) -> Path:
        return self.path / "episodes" / f"{_checked_split(split)}-{step}.jsonl"

    def _write_json(self, name: str, content: Mapping[str, Any]) -> None:
        write_whole(self.path / name, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode())

    def _read_json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        return json.loads(file.read_bytes()) if file.exists() else {}


def episode_record(
    example: Example, episode: Episode, reward: Reward, advantage: float | None = None, trained: bool = True
) -> dict[str, Any]:
    """One episode with its question and outcome as plain JSON values, named as in `mmsr1.types`; pictures as digests.

    `advantage` is None where none was computed (validation); `trained` is False for an episode kept from the loss.
    """
    crops = any(made.call.box is not None for made in episode.calls)
    said = {
        "example_id": example.id,
        "question": example.question,
        "answer": example.answer,
        "aliases": example.aliases,
        "search_need": example.search_need,
        "source": example.source,
        "images": example.images,
        "rollout": episode.rollout,
        "turns": episode.turns,
        "actions": [action_name(parse_turn(turn, crops)) for turn in episode.turns],
        "calls": [{"turn": made.turn} | plain(made.call) | plain(made.result) for made in episode.calls],
        "segments": episode.segments,
        "stop": episode.stop,
        "weight_version": episode.weight_version,
        "reward": reward,
        "advantage": advantage,
        "trained": trained,
        "timings": episode.timings,
    }
    return plain(said)


def episode_pictures(example: Example, episode: Episode) -> list[Picture]:
    """Every picture that the record of this episode names by digest; may repeat."""
    thumbnails = [item.thumbnail for exchange in episode.calls for item in exchange.result.items if item.thumbnail]
    return [*example.images, *thumbnails, *(picture for segment in episode.segments for picture in segment.images)]


def versions() -> dict[str, str | None]:
    """Versions of Python and of what decides a run's numbers, None where not installed; imports none of them."""
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    # vLLM's CPU builds are published under another distribution name.
    names = ("torch", "transformers", "vllm", "lightning", "mmsr1")
    found = {name: installed.get(name, installed.get(f"{name}-cpu")) for name in names}
    return {"python": platform.python_version()} | found


def git_commit(root: Path) -> str | None:
    """Commit that `root` stands at, with "-dirty" if anything differs from it; None outside git or without git."""
    git = ("git", "-C", str(root))
    try:
        commit = subprocess.check_output((*git, "rev-parse", "HEAD"), text=True, stderr=subprocess.DEVNULL)
        changes = subprocess.check_output((*git, "status", "--porcelain"), text=True, stderr=subprocess.DEVNULL)
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return commit.strip() + ("-dirty" if changes.strip() else "")


def _checked_split(split: str) -> str:
    if not _SPLIT.fullmatch(split):
        raise ValueError(f"split {split!r}: use lower-case letters, digits and _ (it becomes part of a file name)")
    return split


def _step_of(file: Path) -> int:
    return int(file.stem.rpartition("-")[2])


def _number(value: Any) -> int | float | None:
    value = value.item() if hasattr(value, "item") else value
    return value if isinstance(value, int) else plain(float(value))
