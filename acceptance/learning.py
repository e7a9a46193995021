"""Issue A: on-demand search is learned on a CPU, in minutes."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from acceptance.lines import (
    OUTPUT,
    ROOT,
    Check,
    Line,
    at_least,
    at_most,
    command,
    holds,
    metrics,
    summary,
    training_run,
)

SEEDS = (0, 1, 2)
SHARED = ROOT.parent / "shared" / "data"


def fresh_clone() -> list[Check]:
    """Line 1: nothing but Python 3.11."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "mmsr1"
        command("git", "clone", "--quiet", str(ROOT), str(clone))
        _, first = command("make", "train", cwd=clone)
        again, _ = command("make", "setup", cwd=clone)
        runs = sorted((clone / "outputs" / "grpo_balanced").iterdir())
        record = json.loads((runs[-1] / "run.json").read_text())
        _, tests = command("make", "test", cwd=clone)
    installs = bool(re.search(r"Collecting|Installing", again.stdout))
    return [
        at_most("1", "training run after set-up (s)", record["wall_seconds"], 180),
        holds("1", "make train, set-up included (s)", record["status"] == "finished", f"{first:.0f}"),
        holds("1", "a second set-up installs nothing", not installs),
        at_most("1", "make test (s)", tests, 600),
    ]


def gate() -> list[Check]:
    """Line 2: mean over three seeds, and floors for each."""
    runs = [training_run(f"gate_seed{seed}", "+experiment=grpo_balanced", f"seed={seed}") for seed in SEEDS]
    return gate_checks("2", runs)


def gate_checks(line: str, runs: Sequence[Path]) -> list[Check]:
    """The learning gate of the design over the given runs."""
    finals = [summary(run)["final"] for run in runs]
    initial = fmean(summary(run)["initial"]["search_ratio_free"] for run in runs)

    def mean(key: str) -> float:
        return fmean(final[key] for final in finals)

    each = ", ".join(f"{final['accuracy']:.3f}/{final['search_ratio_free']:.3f}" for final in finals)
    floors = all(final["accuracy"] >= 0.89 and final["search_ratio_free"] <= 0.20 for final in finals)
    return [
        at_least(line, "accuracy", mean("accuracy"), 0.92),
        at_least(line, "reward", mean("reward"), 0.88),
        at_most(line, "search_ratio_free", mean("search_ratio_free"), 0.12),
        at_least(line, "search_ratio_required", mean("search_ratio_required"), 0.85),
        at_least(line, "initial search_ratio_free", initial, 0.40),
        Check(line, "each seed: accuracy/search_ratio_free", each, ">= 0.89 / <= 0.20", floors),
    ]


def ablations() -> list[Check]:
    """Line 3: without the penalty, and without balance, the policy searches everywhere."""
    return [
        at_least("3", f"{name}: search_ratio_free", summary(run)["final"]["search_ratio_free"], 0.85)
        for name in ("grpo_no_penalty", "grpo_unbalanced")
        for run in [training_run(name, f"+experiment={name}")]
    ]


def warmup() -> list[Check]:
    """Line 4: the starting policy from nothing, and the gate from it."""
    start = training_run("warmup", "+experiment=warmup")
    seconds = json.loads((start / "run.json").read_text())["wall_seconds"]
    runs = [
        training_run(
            f"warmup_gate_seed{seed}", "+experiment=grpo_balanced", f"seed={seed}", f"model.path={start}/policy"
        )
        for seed in SEEDS
    ]
    return [at_most("4", "warm-up from nothing (s)", seconds, 480), *gate_checks("4", runs)]


def gap() -> list[Check]:
    """Line 5: engine and trainer agree over a whole run; leaving out the encoder-cache reset is seen."""
    run = _default_run()
    rows = metrics(run)
    several = max(_images_in_episodes(run))
    fault, _ = command(
        sys.executable, "-m", "pytest", "tests/test_training_run.py", "-k", "encoder_cache", "-q", check=False
    )
    return [
        at_most("5", "logprob_gap_max", max(row.get("logprob_gap_max", 0.0) for row in rows), 1e-3),
        at_least("5", "images in one trained conversation", several, 2),
        holds(
            "5", "a missing encoder-cache reset fails the contract", " passed" in fault.stdout and not fault.returncode
        ),
    ]


def determinism() -> list[Check]:
    """Line 6: deterministic runs repeat exactly; the second over the same cache reaches no back end."""
    cache = OUTPUT / "cache_deterministic"
    shutil.rmtree(cache, ignore_errors=True)
    exact = ("+experiment=grpo_balanced", "rollout.deterministic=true", f"tools.cache_dir={cache}")
    first, second = training_run("deterministic_1", *exact), training_run("deterministic_2", *exact)
    cache = OUTPUT / "cache_default"
    shutil.rmtree(cache, ignore_errors=True)
    usual = ("+experiment=grpo_balanced", f"tools.cache_dir={cache}")
    training_run("default_1", *usual)
    again = summary(training_run("default_2", *usual))
    return [
        holds("6", "metrics.jsonl identical up to seconds_* and cache_*", comparable(first) == comparable(second)),
        at_most("6", "back-end calls of the second run", summary(second)["backend_calls"], 0),
        at_least("6", "cache hits in default mode", again["cache_hits"] / again["tool_calls"], 0.95),
    ]


def real_input() -> list[Check]:
    """Line 7: a training step on real rows, bad rows named, and the real traces re-scored."""
    run = training_run(
        "infoseek",
        "+experiment=grpo_balanced",
        "data=fvqa",
        f"data.train_path={SHARED / 'infoseek_mini.parquet'}",
        "data/mix=natural",
        "trainer.max_steps=1",
        "algorithm.prompts_per_step=5",
    )
    traces = SHARED / "mmsearch_r1_7b_traces.jsonl"
    recorded = {row["data_id"]: row for row in map(json.loads, traces.read_text().splitlines())}
    out, _ = command(sys.executable, "-m", "mmsr1.rewards.rescore", str(traces))
    scored = [row for row in map(json.loads, out.stdout.splitlines()) if "data_id" in row]
    same = [_as_recorded(row, recorded[row["data_id"]]) for row in scored]
    skipped, _ = command(sys.executable, "-m", "pytest", "tests/data", "-k", "fvqa", "-q", check=False)
    return [
        holds("7", "one step over infoseek_mini.parquet", len(metrics(run)) == 1),
        Check(
            "7", "traces re-scored as recorded", f"{sum(same)} of {len(recorded)}", "all", sum(same) == len(recorded)
        ),
        holds(
            "7",
            "broken rows skipped, counted and named (tests)",
            not skipped.returncode and " passed" in skipped.stdout,
        ),
    ]


def command_line() -> list[Check]:
    """Line 8: quick help; mistakes in one line, exit status 2."""
    _, seconds = command(sys.executable, "train.py", "--help")
    mistakes = (
        ("misspelt key", ("+experiment=grpo_balanced", "trainer.max_step=3")),
        ("missing file", ("data=fvqa", "data.train_path=nowhere.parquet")),
        ("unknown experiment", ("+experiment=grpo_balancd",)),
    )
    checks = [at_most("8", "train.py --help (s)", seconds, 2)]
    for name, overrides in mistakes:
        result, _ = command(sys.executable, "train.py", *overrides, check=False)
        one_line = result.stderr.count("\n") == 1 and "Traceback" not in result.stderr
        checks.append(holds("8", name, result.returncode == 2 and one_line, result.stderr.strip()[:160]))
    return checks


def interrupt() -> list[Check]:
    """Line 9: Ctrl-C during training."""
    target = OUTPUT / "interrupted"
    shutil.rmtree(target, ignore_errors=True)
    process = subprocess.Popen(
        [sys.executable, "train.py", "+experiment=grpo_balanced", f"hydra.run.dir={target}"],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        # In the background of a shell, children inherit an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not _steps_written(target):
        time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    status = json.loads((target / "run.json").read_text())["status"]
    readable = all(isinstance(row, dict) for row in [*metrics(target), summary(target)])
    return [
        Check("9", "run.json status", status, "interrupted", status == "interrupted"),
        holds("9", "metrics, summary and report readable", readable and (target / "report.html").is_file()),
    ]


def _default_run() -> Path:
    run = OUTPUT / "gate_seed0"
    return (
        run if (run / "summary.json").is_file() else training_run("gate_seed0", "+experiment=grpo_balanced", "seed=0")
    )


def _images_in_episodes(run: Path) -> list[int]:
    files = sorted((run / "episodes").glob("train-*.jsonl"))
    rows = [json.loads(row) for file in files for row in file.read_text().splitlines()]
    return [sum(len(segment["images"]) for segment in row["segments"]) for row in rows]


def comparable(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("seconds_", "cache_"))} for row in rows]


def _as_recorded(row: dict[str, Any], trace: dict[str, Any]) -> bool:
    rounds = trace["rounds"]
    same_calls = row["actions"] == [r["action"] for r in rounds] and row["queries"] == [r["query"] for r in rounds]
    return same_calls and (trace["final_answer"] is None or row["exact_match"] == trace["exact_match"])


def _steps_written(run: Path) -> int:
    try:
        return len(metrics(run))
    except FileNotFoundError:
        return 0


LINES = (
    Line("clone", fresh_clone),
    Line("gate", gate),
    Line("ablations", ablations),
    Line("warmup", warmup),
    Line("gap", gap),
    Line("determinism", determinism),
    Line("real_input", real_input),
    Line("command_line", command_line),
    Line("interrupt", interrupt),
)
