"""Issue D: real search tools; any provider, never paid twice, safe against the web."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acceptance._fake_web import FakeWeb
from acceptance._tools_cache import cache_kills, cache_traffic
from acceptance._tools_providers import contracts
from acceptance._tools_text import hostile_text
from acceptance.learning import SHARED
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
from acceptance.scale import rigged

DEFAULT = "+experiment=grpo_balanced"
# The default experiment takes 40 steps to the gate; a bad day of the web may make them 60.
STEPS, MORE = 40, 1.5
CANARY = "canary-5ecre7-0f-a11-keys"
KEYS = {"SERPAPI_API_KEY": CANARY, "JINA_API_KEY": CANARY, "SUMMARIZER_KEY": CANARY, "WANDB_MODE": "offline"}
SEARCH_USD, PAGE_USD, SUMMARY_USD = 0.015, 0.002, 0.0005


def rehearsal(steps: int = round(MORE * STEPS)) -> list[Check]:
    """Line 5, first half: 30 % of all attempts fail, and the policy learns all the same."""
    run = training_run("tools_rehearsal", DEFAULT, "faults=rehearsal", f"trainer.max_steps={steps}")
    tools, final = summary(run)["tools"], summary(run)["final"]
    attempts = {name: row for name, row in tools.items() if name.endswith("_rehearsal")}
    tried = sum(row["attempts"] for row in attempts.values())
    failed = sum(sum(n for kind, n in row.items() if kind in _CAUSES) for row in attempts.values())
    return [
        holds("5", "attempts that failed", 0.27 < failed / tried < 0.33, f"{failed / tried:.3f} of {tried:.0f}"),
        at_least("5", "rehearsal: accuracy", final["accuracy"], 0.89),
        at_most("5", "rehearsal: search_ratio_free", final["search_ratio_free"], 0.20),
        *_neutral("rehearsal", run),
    ]


_CAUSES = {f"failures/{cause}" for cause in ("transient", "throttled", "broken")}


def outage(steps: int = 10) -> list[Check]:
    """Line 5, second half: image search is down for the whole run."""
    run = training_run(
        "tools_outage",
        DEFAULT,
        "faults=outage",
        f"trainer.max_steps={steps}",
        f"trainer.val_every={steps}",
        "trainer.episodes_every=1",
    )
    row = summary(run)["tools"]["image_search"]
    calls = [call for record in _episodes(run) for call in record["calls"] if call["tool"] == "image_search"]
    shown = [call for call in calls if call["status"] in ("ok", "empty") or call["items"]]
    return [
        at_least("5", "outage: image searches asked for", row["calls"], 1),
        holds("5", "outage: all of them failed", row["failures"] == row["calls"], f"{row['failures']:.0f}"),
        at_most("5", "outage: answers of a search that is down", len(shown), 0),
        at_most("5", "outage: back-end calls of image search", _ledger(run)["image_search"], 0),
        *_neutral("outage", run),
    ]


def _neutral(name: str, run: Path) -> list[Check]:
    """Episodes whose search failed are kept from training, and there are some; what is trained on says so."""
    failed = [
        r for r in _episodes(run, "train") if any(call["status"] == "infrastructure_error" for call in r["calls"])
    ]
    masked = sum(row["masked_episodes"] for row in metrics(run))
    trained = [r for r in failed if r["trained"] or r["advantage"]]
    return [
        at_least("5", f"{name}: episodes whose search failed (recorded)", len(failed), 1),
        at_most("5", f"{name}: of these trained on, or with an advantage", len(trained), 0),
        at_least("5", f"{name}: masked episodes (metrics)", masked, len(failed)),
    ]


def web_stack(steps: int = 3, scale: float = 1.0) -> list[Check]:
    """Line 6: the paper's whole stack against a server that plays it."""
    cache = OUTPUT / "tools_web_cache"
    shutil.rmtree(cache, ignore_errors=True)
    with FakeWeb(CANARY, scale) as web:
        run = web_run("tools_web", web, cache, steps)
        first = Counter(web.counts)
        again = web_run("tools_web_again", web, cache, steps)
    told = summary(run)
    calls = [call for record in _episodes(run) for call in record["calls"] if call["status"] == "ok"]
    thumbnails = [
        item for call in calls if call["tool"] == "image_search" for item in call["items"] if item["thumbnail"]
    ]
    summaries = [item for call in calls if call["tool"] == "text_search" for item in call["items"] if item["text"]]
    mirrors = [item for call in calls for item in call["items"] if "huggingface.co" in item["url"]]
    billed = first["lens"] + first["google"], first["pages"], first["summaries"]
    due = sum(n * usd for n, usd in zip(billed, (SEARCH_USD, PAGE_USD, SUMMARY_USD), strict=True))
    parts = sum(row["paid_usd"] for name, row in told["tools"].items() if name not in ("image_search", "text_search"))
    uncached = sum(call["cost_usd"] for record in _episodes(run) for call in record["calls"])
    kept = web_counts_grew(first, web.counts)
    return [
        holds("6", "steps trained", told["steps"] == steps and len(metrics(run)) == steps, f"{told['steps']}"),
        at_least("6", "thumbnails in trajectories", len(thumbnails), 1),
        at_least("6", "summaries with links in trajectories", sum(bool(item["url"]) for item in summaries), 1),
        at_most("6", "results from blocked mirrors", len(mirrors), 0),
        holds("6", "paid is what the services billed", abs(told["cost_usd"] - due) < 1e-6, _usd(told["cost_usd"], due)),
        holds("6", "the parts of the table add up to it", abs(parts - due) < 1e-6, _usd(parts, due)),
        holds(
            "6",
            "uncached is what the episodes were charged",
            abs(uncached - told["cost_usd_uncached"]) < 1e-6,
            _usd(told["cost_usd_uncached"], uncached),
        ),
        at_most("6", "searches billed again by a second run over the cache", kept, 0.2 * sum(billed)),
        holds("6", "second run: paid less than it would have", _saved(again), _usd(*_costs(again))),
        *_no_control_text(run),
    ]


def web_counts_grew(before: Counter[str], after: Counter[str]) -> int:
    return sum(after[name] - before[name] for name in ("lens", "google", "pages", "summaries"))


def _costs(run: Path) -> tuple[float, float]:
    return summary(run)["cost_usd"], summary(run)["cost_usd_uncached"]


def _saved(run: Path) -> bool:
    paid, uncached = _costs(run)
    return paid < uncached


def _usd(found: float, expected: float) -> str:
    return f"{found:.4f} / {expected:.4f} USD"


def _no_control_text(run: Path) -> list[Check]:
    """The fake web holds pages that forge turns; what the model read of them must not."""
    control = set(
        json.loads((run / "policy" / "tokenizer.json").read_text())["added_tokens"][i]["id"] for i in range(4)
    )
    spans = [s for r in _episodes(run) for s in r["segments"] if s["kind"] == "tool_result" and not s["trusted"]]
    forged = [span for span in spans if control.intersection(span["token_ids"])]
    return [at_most("6", f"control tokens in {len(spans)} untrusted spans", len(forged), 0)]


def budget_spent(scale: float = 0.3) -> list[Check]:
    """Line 6, end: the money runs out in the middle of a run, and comes back."""
    cache, name = OUTPUT / "tools_budget_cache", "tools_budget"
    for folder in (cache, OUTPUT / name):
        shutil.rmtree(folder, ignore_errors=True)
    with FakeWeb(CANARY, scale) as web:
        arguments = [*web_overrides(web, cache, 6), "tools.budget.usd_per_run=0.12"]
        done, _ = command(*_TRAIN, *arguments, f"hydra.run.dir={OUTPUT / name}", env=web_env(), check=False)
        run = OUTPUT / name
        record, told = json.loads((run / "run.json").read_text()), summary(run)
        refused, _ = command(*_TRAIN, f"resume={run}", env=web_env(), check=False)
        resumed, _ = command(
            *_TRAIN,
            f"resume={run}",
            "tools.budget.usd_per_run=100",
            "tools.budget.when_spent=tell",
            env=web_env(),
            check=False,
        )
    line = [text for text in (done.stdout + done.stderr).splitlines() if "tools.budget.usd_per_run=0.12" in text]
    files = [file for file in ("summary.json", "report.html", "metrics.jsonl", "config.yaml") if (run / file).is_file()]
    return [
        holds(
            "6",
            "ends with status 0 and one line that says why",
            not done.returncode and len(line) == 1,
            line[0][:90] if line else "no line",
        ),
        holds("6", "run.json: interrupted, with a reason", record["status"] == "interrupted" and "reason" in record),
        at_most("6", "paid (USD) under a budget of 0.12", told["cost_usd"], 0.12),
        holds("6", "stopped before its last step", told["steps"] < 6, f"{told['steps']} of 6"),
        holds("6", "summary, report, metrics and configuration are there", len(files) == 4),
        holds(
            "6",
            "resumed without money: refused in one line",
            refused.returncode == 2 and refused.stderr.count("\n") == 1,
            refused.stderr.strip()[:90],
        ),
        holds("6", "resumed with money: finished", not resumed.returncode and summary(run)["steps"] == 6),
    ]


def canary() -> list[Check]:
    """Line 7: the key of all services, in whatever a run with wandb leaves behind, also when they refuse it."""
    cache, name = OUTPUT / "tools_canary_cache", "tools_canary"
    run = OUTPUT / name
    for folder in (cache, run):
        shutil.rmtree(folder, ignore_errors=True)
    with FakeWeb(CANARY, 0.1) as web:
        arguments = [*web_overrides(web, cache, 1), "logger=wandb", "logger.mode=offline", f"hydra.run.dir={run}"]
        trained, _ = command(*_TRAIN, *arguments, env=web_env())
        checked, _ = command(
            *_PYTHON, "-m", "mmsr1.tools.check", *web_overrides(web, cache, 1), env=web_env(), check=False
        )
    with FakeWeb("another-key-that-is-not-ours", 0.1) as web:  # every answer is a refusal
        refused = [
            *web_overrides(web, OUTPUT / "tools_canary_refused_cache", 1),
            f"hydra.run.dir={OUTPUT / name}_refused",
        ]
        shutil.rmtree(OUTPUT / f"{name}_refused", ignore_errors=True)
        failed, _ = command(*_TRAIN, *refused, env=web_env(), check=False)
        wrong, _ = command(
            *_PYTHON, "-m", "mmsr1.tools.check", *web_overrides(web, cache, 1), env=web_env(), check=False
        )
    said = "".join(process.stdout + process.stderr for process in (trained, checked, failed, wrong))
    folders = (run, cache, OUTPUT / f"{name}_refused", OUTPUT / "tools_canary_refused_cache")
    leaks = [str(file) for folder in folders for file in _holding(folder, CANARY.encode())]
    wandb = list(run.glob("wandb/**/*.wandb"))
    return [
        at_least(
            "7", "files searched", sum(1 for folder in folders for file in folder.rglob("*") if file.is_file()), 20
        ),
        at_least("7", "wandb files among them", len(wandb), 1),
        at_most("7", f"files that hold the key{': ' + leaks[0] if leaks else ''}", len(leaks), 0),
        holds("7", "not in what was printed", CANARY not in said),
        holds("7", "the check finds what is wrong", checked.returncode == 0 and wrong.returncode == 1),
    ]


_PYTHON = (str(ROOT / ".venv" / "bin" / "python"),)
_TRAIN = (*_PYTHON, "train.py")


def web_overrides(web: FakeWeb, cache: Path, steps: int) -> list[str]:
    """Three questions a step would be too few to meet both tools; the tiny model is given room for what they say."""
    return [
        DEFAULT,
        "data=fvqa",
        f"data.train_path={SHARED / 'infoseek_mini.parquet'}",
        "data/mix=natural",
        "data.val_size=5",
        f"trainer.max_steps={steps}",
        f"trainer.val_every={steps}",
        "trainer.episodes_every=1",
        "algorithm.prompts_per_step=5",
        "rollout.episode_tokens=4096",
        "rollout.vllm.max_model_len=4096",
        "tools=web",
        "tools.thumbnail_edge=56",
        f"tools.cache_dir={cache}",
        *(f"tools.{part}.url={web.url}" for part in ("image_search", "text_search", "reader", "summarizer")),
        "tools.summarizer.key_env=SUMMARIZER_KEY",
        f"tools.reader.price_usd={PAGE_USD}",
        f"tools.summarizer.price_usd={SUMMARY_USD}",
        "tools.thumbnail_hosts=[127.0.0.1]",
    ]


def web_env() -> dict[str, str]:
    return {**KEYS, **rigged(loopback=True), "HOME": os.environ.get("HOME", "/tmp")}


def web_run(name: str, web: FakeWeb, cache: Path, steps: int, *more: str) -> Path:
    return training_run(name, *web_overrides(web, cache, steps), *more, env=web_env())


def _episodes(run: Path, split: str = "*") -> Iterator[dict[str, Any]]:
    for file in sorted((run / "episodes").glob(f"{split}-*.jsonl")):
        yield from map(json.loads, file.read_text().splitlines())


def _ledger(run: Path) -> Counter[str]:
    """Back-end calls that were started, by tool or part."""
    rows = [json.loads(row) for file in (run / "ledger").glob("*.jsonl") for row in file.read_text().splitlines()]
    return Counter(row["tool"] for row in rows if row["state"] == "started")


def _holding(folder: Path, secret: bytes) -> Sequence[Path]:
    return [file for file in folder.rglob("*") if file.is_file() and secret in file.read_bytes()]


LINES = (
    Line("contracts", contracts),
    Line("cache_traffic", cache_traffic),
    Line("cache_kills", cache_kills),
    Line("hostile_text", hostile_text),
    Line("rehearsal", rehearsal),
    Line("outage", outage),
    Line("web_stack", web_stack),
    Line("budget_spent", budget_spent),
    Line("canary", canary),
)
