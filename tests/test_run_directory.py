"""The run directory: what is written is read back, and a kill at any byte leaves it readable."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mmsr1.run_directory import RunDirectory, episode_pictures, episode_record, git_commit, versions
from mmsr1.types import (
    Episode,
    Example,
    Exchange,
    Group,
    Picture,
    Reward,
    Sampled,
    Segment,
    Timings,
    ToolCall,
    ToolItem,
    ToolResult,
)

IMAGE = Picture(b"\x89PNG emblem")
THUMBNAIL = Picture(b"\xff\xd8 thumbnail")
EXAMPLE = Example("q7", "what is the capital?", (IMAGE,), "Dulmen", ("dulmen",), "both", "emblem/u7")
SEARCH = "<reason>I do not know this flag</reason><search><img></search>"
ANSWER = "<reason>I read the results</reason><answer>Dulmen</answer>"


def made_episode(rollout: int = 0, logprob: float = -0.25) -> Episode:
    hit = ToolItem("the flag of Tarvik", "text", "https://example.org/a", THUMBNAIL)
    return Episode(
        example_id="q7",
        rollout=rollout,
        segments=(
            Segment("image", (5,), True, (IMAGE,)),
            Segment("sampled", (7, 8), False, sampled=Sampled((logprob, -1.5), 3)),
        ),
        turns=(SEARCH, ANSWER),
        calls=(Exchange(0, ToolCall("image_search", IMAGE.digest), ToolResult("ok", (hit,), 0.01, 0.5, True)),),
        stop="answered",
        weight_version=3,
        timings=Timings(2.0, 1.0, 0.5),
    )


REWARD = Reward(0.91, {"accuracy": 1.0, "format": 1.0})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.start("train.py +experiment=x", 3, "seed: 3\n", {"python": "3.11"}, "abc")
    return directory


def test_a_run_is_running_until_it_is_finished(run: RunDirectory) -> None:
    started = run.read_run()
    assert (started["status"], started["seed"], started["git_commit"]) == ("running", 3, "abc")
    assert (run.path / "config.yaml").read_text() == "seed: 3\n"
    run.finish("failed", 12.5, "out of memory")
    ended = run.read_run()
    assert (ended["status"], ended["wall_seconds"], ended["error"]) == ("failed", 12.5, "out of memory")
    assert ended["command"] == "train.py +experiment=x"


def test_resuming_keeps_the_first_start_and_forgets_the_old_end(run: RunDirectory) -> None:
    first = run.read_run()["started"]
    run.finish("interrupted", 1.0, "SIGTERM")
    run.start("train.py resume=last", 3, "seed: 3\n", {}, None)
    again = run.read_run()
    assert again["started"] == first and len(again["resumed"]) == 1
    assert again["status"] == "running" and "error" not in again


def test_time_and_commits_are_those_of_all_its_processes(run: RunDirectory) -> None:
    run.finish("interrupted", 1.0)
    for commit, seconds in (("def", 2.5), ("abc", 4.0)):
        run.start("train.py resume=last", 3, "seed: 3\n", {}, commit)
        run.finish("interrupted", seconds)
    ended = run.read_run()
    assert (ended["wall_seconds"], ended["git_commit"], ended["git_commits"]) == (7.5, "abc", ["abc", "def"])


def test_finish_before_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="call start"):
        RunDirectory(tmp_path).finish("finished", 1.0)


def test_metrics_take_any_scalar_and_stay_strict_json(run: RunDirectory) -> None:
    run.log_metrics(0, "train", {"reward": np.float32(0.5), "kl": torch.tensor(float("nan")), "tokens_sampled": 12})
    run.log_metrics(0, "val", {"accuracy": 1, "gap": math.inf})
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == run.read_metrics()
    assert run.read_metrics("train") == [{"step": 0, "split": "train", "reward": 0.5, "kl": None, "tokens_sampled": 12}]
    assert run.read_metrics("val") == [{"step": 0, "split": "val", "accuracy": 1, "gap": None}]


@pytest.mark.parametrize("split", ["", "Val", "../val", "val-1"])
def test_a_split_that_is_no_file_name_is_refused(run: RunDirectory, split: str) -> None:
    with pytest.raises(ValueError, match="split"):
        run.log_metrics(0, split, {})
    with pytest.raises(ValueError, match="split"):
        run.write_episodes(split, 0, [], [])


def test_figures_cannot_hide_the_step(run: RunDirectory) -> None:
    with pytest.raises(ValueError, match="step"):
        run.log_metrics(0, "train", {"step": 4})


def test_a_kill_at_any_byte_loses_one_line_at_most_and_the_next_append_repairs(run: RunDirectory) -> None:
    for step in (0, 1):
        run.log_metrics(step, "train", {"reward": step + 0.5})
    whole = (run.path / "metrics.jsonl").read_bytes()
    first_line = whole.index(b"\n") + 1
    for cut in range(len(whole)):
        (run.path / "metrics.jsonl").write_bytes(whole[:cut])
        complete = [0] if cut >= first_line else []
        assert [row["step"] for row in run.read_metrics()] == complete
        run.log_metrics(9, "train", {"reward": 1.0})
        assert [row["step"] for row in run.read_metrics()] == [*complete, 9]


def test_a_failed_write_keeps_the_old_file_and_leaves_no_rubbish(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_summary({"steps": 1})
    before = sorted(run.path.rglob("*"))

    def full_disk(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        run.write_summary({"steps": 2})
    assert run.read_summary() == {"steps": 1}
    assert sorted(run.path.rglob("*")) == before


def test_summary_keeps_intervals_and_writes_no_nan(run: RunDirectory) -> None:
    assert run.read_summary() == {}
    run.write_summary({"final": {"accuracy": 0.9, "accuracy_ci95": (0.88, float("nan"))}})
    assert run.read_summary() == {"final": {"accuracy": 0.9, "accuracy_ci95": [0.88, None]}}


def test_an_episode_is_recorded_in_full(run: RunDirectory) -> None:
    record = episode_record(EXAMPLE, made_episode(logprob=float("-inf")), REWARD, 0.5)
    run.write_episodes("train", 4, [record], episode_pictures(EXAMPLE, made_episode()))
    (read,) = run.read_episodes("train", 4)
    assert read == record
    assert (read["example_id"], read["answer"], read["aliases"]) == ("q7", "Dulmen", ["dulmen"])
    assert read["actions"] == ["image_search", "answer"]
    assert read["turns"] == [SEARCH, ANSWER]
    assert read["images"] == [IMAGE.digest]
    assert read["reward"] == {"total": 0.91, "parts": {"accuracy": 1.0, "format": 1.0}}
    assert (read["advantage"], read["trained"], read["stop"]) == (0.5, True, "answered")
    (call,) = read["calls"]
    assert (call["turn"], call["tool"], call["query"]) == (0, "image_search", IMAGE.digest)
    assert (call["status"], call["latency_s"], call["cost_usd"], call["cached"]) == ("ok", 0.5, 0.01, True)
    assert call["items"] == [
        {
            "title": "the flag of Tarvik",
            "text": "text",
            "url": "https://example.org/a",
            "thumbnail": THUMBNAIL.digest,
        }
    ]
    sampled = read["segments"][1]
    assert sampled["token_ids"] == [7, 8]
    assert sampled["sampled"] == {"logprobs": [None, -1.5], "weight_version": 3}
    assert read["timings"] == {"total_s": 2.0, "engine_s": 1.0, "tools_s": 0.5}


def test_pictures_are_kept_once_by_content(run: RunDirectory) -> None:
    episodes = (made_episode(0), made_episode(1))
    group = Group(EXAMPLE, episodes, (REWARD, REWARD), (0.5, -0.5), (True, False))
    run.write_groups("train", 0, [group])
    names = sorted(file.name for file in (run.path / "episodes" / "images").iterdir())
    assert names == sorted([f"{IMAGE.digest}.png", f"{THUMBNAIL.digest}.jpg"])
    assert run.read_picture(THUMBNAIL.digest) == THUMBNAIL
    assert run.read_picture("0" * 64) is None
    with pytest.raises(ValueError, match="digest"):
        run.read_picture("../../run")
    records = run.read_episodes("train", 0)
    assert [(r["rollout"], r["advantage"], r["trained"]) for r in records] == [(0, 0.5, True), (1, -0.5, False)]


def test_text_that_breaks_naive_line_files_survives(run: RunDirectory) -> None:
    example = Example("q", "a\u2028b\x85c\nd \ud800", (), "", (), "unknown", "web")
    run.write_episodes("val", 0, [episode_record(example, made_episode(), REWARD)], [])
    (record,) = run.read_episodes("val", 0)
    assert record["question"] == example.question
    assert record["advantage"] is None


def test_steps_sort_as_numbers_and_missing_ones_are_named(run: RunDirectory) -> None:
    for step in (10, 0, 5):
        run.write_episodes("val", step, [], [])
    assert run.episode_steps("val") == [0, 5, 10]
    assert run.episode_steps("train") == []
    with pytest.raises(FileNotFoundError, match=r"\[0, 5, 10\]"):
        run.read_episodes("val", 7)


def test_dropping_what_lies_beyond_a_checkpoint(run: RunDirectory) -> None:
    for step in range(4):
        run.log_metrics(step, "train", {"reward": 0.1})
        run.write_episodes("val", step, [], [])
    run.drop_after(1)
    assert [row["step"] for row in run.read_metrics()] == [0, 1]
    assert run.episode_steps("val") == [0, 1]


def test_versions_are_found_without_importing() -> None:
    found = versions()
    assert list(found) == ["python", "torch", "transformers", "vllm", "lightning", "mmsr1"]
    assert found["torch"] is not None and found["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_the_commit_says_whether_anything_differs(tmp_path: Path) -> None:
    assert git_commit(tmp_path) is None
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
    clean = git_commit(tmp_path)
    assert clean is not None and len(clean) == 40
    (tmp_path / "new.py").touch()
    assert git_commit(tmp_path) == f"{clean}-dirty"


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit(tmp_path) is None
