"""Lines 1 to 5 of issue H: the studies, each from its one line, and what the paper's directions look like in them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

from acceptance.lines import OUTPUT, ROOT, Check, at_least, at_most, command, holds, reported
from mmsr1.report.study.compared import estimate
from mmsr1.report.study.page import boundaries
from mmsr1.report.study.runs import Arm, Study, read_study
from mmsr1.report.study.tables import plain
from mmsr1.sweep import planned

FOLDER = OUTPUT / "studies"
LAST = 10  # steps
_SHORT = ("rollout=transformers", "trainer.max_steps=2", "data.val_size=12", "algorithm.prompts_per_step=2")
_SHORT += ("algorithm.group_size=2", "algorithm.mini_batches=1", "trainer.val_every=1", "trainer.checkpoint_every=1")


def search_penalty() -> list[Check]:
    """Lines 1, 2 and 4: what a search may cost; where each arm switches."""
    study, checks = _swept("search_penalty", 60)
    free, paid = (_interval(study, f"penalty_{penalty}", "search_ratio_free") for penalty in ("0.0", "0.1"))
    checks.append(_apart("2", "search_ratio_free: no penalty above 0.1", free, paid))
    found, _ = boundaries(study.arms)
    checks.append(at_least("4", "penalties with a boundary and its interval", len(found), 4))
    for arm, one in found.items():
        predicted = "no prediction" if one.predicted is None else f"predicted {one.predicted.value:.2f}"
        apart = "" if one.difference is None else f", apart {_ends(one.difference.value, _of(one.difference))}"
        checks.append(
            reported("4", arm, f"switches at {_ends(one.learned.value, _of(one.learned))}; {predicted}{apart}")
        )
    return checks


def data_balance() -> list[Check]:
    """Lines 1 and 2: what the training questions must be like."""
    study, checks = _swept("data_balance", 60)
    alone, balanced = (_interval(study, arm, "search_ratio_free") for arm in ("search_required_only", "balanced"))
    return [*checks, _apart("2", "search_ratio_free: required only above balanced", alone, balanced)]


def sft_vs_rl() -> list[Check]:
    """Lines 1 and 2: imitation against reinforcement learning."""
    study, checks = _swept("sft_vs_rl", 60)
    rl, imitated = (_interval(study, arm, "reward") for arm in ("rl", "sft_mismatched"))
    return [*checks, _apart("2", "sampled reward: RL above the mismatched teacher", rl, imitated)]


def reward() -> list[Check]:
    """Line 1: what an answer is worth."""
    return _swept("reward")[1]


def grpo_variants() -> list[Check]:
    """Line 1: the choices around GRPO."""
    return _swept("grpo_variants")[1]


def target_calls() -> list[Check]:
    """Line 3: requested calls per question are reached; the frontier is drawn beside the penalties of line 1."""
    penalties = FOLDER / "search_penalty"
    drawn = ("--beside", str(penalties)) if penalties.is_dir() else ()
    study, checks = _swept("target_calls", None, *drawn)
    text = (study.folder / "results.md").read_text()
    beside = "Grey: the arms of search_penalty" in text and "different questions" not in text
    checks.append(holds("3", "drawn beside the arms of search_penalty, on the same questions", beside))
    for arm in study.arms:
        target = float(arm.name.removeprefix("calls_"))
        reached = [_last(run.metrics, "calls_per_question") for run in arm.runs]
        right = [_last(run.metrics, "accuracy") for run in arm.runs]
        told = ", ".join(f"{one:.2f}" for one in reached)
        most = max(abs(one - target) for one in reached)
        checks.append(at_most("3", f"{arm.name}: the seed that is farthest from it ({told})", most, 0.15))
        checks.append(reported("3", f"{arm.name}: accuracy, last {LAST} steps", f"{fmean(right):.3f}"))
    return checks


def gap() -> list[Check]:
    """Line 5: a job is killed in the middle of a multirun."""
    folder = FOLDER / "gap"
    shutil.rmtree(folder, ignore_errors=True)
    arguments = ("-m", "+study=data_balance", "data/mix=balanced,natural", "seed=0,1", *_SHORT)
    sweep = subprocess.Popen([sys.executable, "train.py", *arguments, f"hydra.sweep.dir={folder}"], cwd=ROOT)
    killed = _kill_second(sweep, folder)
    status = sweep.wait()
    finished = [job.folder.name for job in planned(folder) if _status(job.folder) == "finished"]
    told, _ = command(sys.executable, "-m", "mmsr1.report.study", str(folder))
    marked = plain(killed.name) in (folder / "results.md").read_text()
    missing, _ = command(sys.executable, "-m", "mmsr1.report.study", str(folder), "--missing", check=False)
    lines = missing.stdout.splitlines()
    filled = subprocess.run(lines[0] if lines else "false", shell=True, cwd=ROOT).returncode
    complete, _ = command(sys.executable, "-m", "mmsr1.report.study", str(folder), "--missing", check=False)
    after, _ = command(sys.executable, "-m", "mmsr1.report.study", str(folder))
    return [
        holds("5", "the others finish; the sweep says that not all did", len(finished) == 3 and status == 1),
        holds("5", "the report marks the gap", marked and "3 of 4 runs" in told.stdout and str(killed) in told.stderr),
        holds("5", "one command is printed, and fills it", len(lines) == 1 and filled == 0, shlex.join(lines)[:60]),
        holds("5", "then the report is complete", complete.returncode == 0 and "4 of 4 runs" in after.stdout),
    ]


def _swept(name: str, minutes: float | None = None, *report: str) -> tuple[Study, list[Check]]:
    """The study by its one line, two jobs at a time; its report is made, and has no gap."""
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    line = ("-m", f"+study={name}", f"hydra.sweep.dir={folder}", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    _, seconds = command(sys.executable, "train.py", *line)
    told, _ = command(sys.executable, "-m", "mmsr1.report.study", str(folder), *report)
    jobs = planned(folder)
    study = read_study(folder, [job.folder for job in jobs])
    seeds = min(len(arm.runs) for arm in study.arms)
    checks = [
        holds(
            "1", f"{name}: all jobs in the report", f"{len(jobs)} of {len(jobs)} runs" in told.stdout, str(len(jobs))
        ),
        at_least("1", f"{name}: seeds an arm", seeds, 3),
    ]
    took = seconds / 60
    checks.append(
        reported("1", f"{name}: minutes", f"{took:.0f}")
        if minutes is None
        else at_most("1", f"{name}: minutes", took, minutes)
    )
    for arm in study.arms:
        checks.append(reported("1", f"{arm.name}: accuracy, search ratio, reward", _row(arm)))
    return study, checks


def _row(arm: Arm) -> str:
    return "/".join(
        f"{one.value:.3f}" if (one := estimate(arm, key)) else "-" for key in ("accuracy", "search_ratio", "reward")
    )


def _interval(study: Study, arm: str, key: str) -> tuple[float, float]:
    """Over seeds. Raises KeyError, naming the arm, if it has none."""
    found = {one.name: estimate(one, key) for one in study.arms}[arm]
    if found is None or found.interval is None:
        raise KeyError(f"{arm}: no {key} with an interval over its seeds")
    return found.interval


def _apart(line: str, what: str, above: tuple[float, float], below: tuple[float, float]) -> Check:
    shown = " against ".join(f"[{low:.3f}, {high:.3f}]" for low, high in (above, below))
    return holds(line, what, above[0] > below[1], shown)


def _of(one: Any) -> tuple[float, float]:
    return one.low, one.high


def _ends(value: float, ends: tuple[float, float]) -> str:
    return f"{value:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def _last(metrics: Any, key: str) -> float:
    return fmean(row[key] for row in [row for row in metrics if row["split"] == "train"][-LAST:])


def _kill_second(sweep: subprocess.Popen[bytes], folder: Path) -> Path:
    """Kill the process of the second job with all its children once its first step is there; its folder."""
    while sweep.poll() is None:
        time.sleep(0.2)
        rows = [json.loads(row) for row in _lines(folder / "jobs.jsonl")]
        started = [row for row in rows if row["job"] == 1 and row["event"] == "started"]
        if started and _lines(Path(started[0]["folder"]) / "metrics.jsonl"):
            os.killpg(started[0]["pid"], signal.SIGKILL)  # a job has a session of its own
            return Path(started[0]["folder"])
    raise RuntimeError("the sweep ended before its second job had made a step")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.is_file() else []


def _status(run: Path) -> str | None:
    file = run / "run.json"
    return json.loads(file.read_text())["status"] if file.is_file() else None
