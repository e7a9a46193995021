"""Issue F, line 2: construction against a server that plays search, reader, pictures and model, killed and resumed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from acceptance._construct_web import ConstructWeb
from acceptance._construct_world import FATES, REASONS, THINGS, Thing, picture, things
from acceptance.learning import SHARED
from acceptance.lines import OUTPUT, ROOT, Check, at_least, at_most, command, holds
from acceptance.scale import rigged
from mmsr1.data.construct.items import REASONS as KNOWN_REASONS
from mmsr1.data.formats import read_examples, write_examples
from mmsr1.data.review.decisions import Decision, DecisionLog, content_of
from mmsr1.tools.ledger import read_totals
from mmsr1.types import Example, Picture

KEY = "canary-c0nstruct-key"
KEYS = {"SERPAPI_API_KEY": KEY, "JINA_API_KEY": KEY}
SEARCH_USD, USD_PER_MILLION = 0.015, (0.1, 0.4)
KILLS = 5
BAD_LINES = ["", "   ", "---", "x" * 300]
ROWS = SHARED / "infoseek_mini.parquet"
ON_ITS_WAY_S = 5.0  # an answer that was sent so short before a kill may not have been kept yet
GROUPS = {
    "duplicates": ("same_picture", "same_question"),
    "leaks": ("title_leak", "question_leak", "names_itself", "test_picture", "test_question"),
    "text-only-answerable": ("text_only",),
    "all other faults": tuple(
        fate
        for fate in REASONS
        if fate
        not in ("same_picture", "same_question", "title_leak", "question_leak", "names_itself")
        + ("test_picture", "test_question", "text_only")
    ),
}


def construction() -> list[Check]:
    """Once without a kill, once killed five times; both must come to the same."""
    folder = OUTPUT / "construct"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    concepts, against = _inputs(folder)
    with ConstructWeb(KEY) as web:
        whole = folder / "whole"
        done, seconds = command(*_arguments(web, whole, concepts, against, folder), env=_env(), check=False)
        reference = web.total
        checks = [
            holds("2", "ends with status 0", done.returncode == 0, _told(done)),
            holds("2", "last line names the file and the review", "mmsr1.data.review" in done.stdout.splitlines()[-1]),
            at_most("2", "answered calls repeated, no kill", web.repeated(), 0),
            at_most("2", f"requests that must not be made ({web.total} answered)", len(web.wrong), 0),
            at_least("2", "requests that failed by chance", web.refused.total(), 50),
            *_bill(whole, web),
        ]
        print(f"    one run: {seconds:.1f} s, {reference} answers")
    return [*checks, *_outcome(whole), *_killed(folder, concepts, against, reference, whole)]


def _killed(folder: Path, concepts: Path, against: Path, answers: int, whole: Path) -> Iterator[Check]:
    """SIGKILL at random moments, then to the end."""
    out, draw = folder / "killed", random.Random("kills")
    moments = sorted(draw.uniform(0.03, 0.97) * answers for _ in range(KILLS))
    kept: list[dict[str, bytes]] = []
    killed, unknown = 0, 0
    ends: list[float] = []
    with ConstructWeb(KEY) as web:
        arguments = _arguments(web, out, concepts, against, folder)
        for moment in moments:
            killed += _run_until(arguments, web, moment, draw.uniform(0.0, 0.2))
            ends.append(time.monotonic())
            kept.append(_lines_of(out))
            unknown = read_totals(out / "ledger").unknown if (out / "ledger").is_dir() else 0
        done, _ = command(*arguments, env=_env(), check=False)
        repeated = web.repeated()
        late = [request for request, times in web.times.items() if _repeated_late(times, ends)]
        yield holds("2", "killed while at work", killed == KILLS, f"{killed} of {KILLS}")
        yield holds("2", "resumed to its end", done.returncode == 0, _told(done))
        # A call that was on its way when the process died was answered to nobody: the ledger calls it unknown.
        yield at_most("2", f"answered calls repeated beyond the {unknown} in flight at a kill", repeated - unknown, 0)
        told = f"of {repeated} repeated, answered {ON_ITS_WAY_S:g} s or more before the kill"
        yield at_most("2", told, len(late), 0)
        yield at_most("2", "calls made again after the ledger says they were answered", _answered_twice(out), 0)
    last = _lines_of(out)
    redone = sum(not last.get(name, b"").startswith(lines) for before in kept for name, lines in before.items())
    yield at_most("2", "stage files whose finished rows changed", redone, 0)
    twice = sum(count - 1 for name in last for count in Counter(_ids(last[name])).values())
    yield at_most("2", "items finished twice", twice, 0)
    same = [_candidates(one) for one in (whole, out)]
    yield holds("2", "the same questions as without a kill", same[0] == same[1], f"{len(same[1])} of {len(same[0])}")


def _repeated_late(times: list[float], kills: list[float]) -> bool:
    """Whether a request was answered again although its first answer came long before the next kill."""
    if len(times) < 2:
        return False
    next_kill = next((kill for kill in kills if kill > times[0]), float("inf"))
    return next_kill - times[0] > ON_ITS_WAY_S


def _outcome(out: Path) -> Iterator[Check]:
    """What was kept and dropped, against what was planted."""
    dropped = {row["id"]: row for row in _rows(out / "dropped.jsonl")}
    seeds = _rows(out / "1_seeds.jsonl")
    kept = {row["id"] for row in _rows(out / "7_labelled.jsonl")}
    lost = [row["id"] for row in seeds if (row["id"] in kept) == (row["id"] in dropped)]
    yield at_most("2", f"of {len(seeds)} items neither kept nor dropped, or both", len(lost), 0)
    nameless = [row for row in dropped.values() if row["reason"] not in KNOWN_REASONS]
    yield at_most("2", f"of {len(dropped)} dropped rows without a reason", len(nameless), 0)
    by_name = {row["subject"]: row["id"] for row in seeds if row["subject"]}
    caught: Counter[str] = Counter()
    good, good_kept = 0, 0
    for thing in things():
        id = by_name[thing.name]
        if thing.fate in REASONS:
            caught[thing.fate] += id in dropped and dropped[id]["reason"] in REASONS[thing.fate]
        else:
            good, good_kept = good + 1, good_kept + (id in kept)
    for name, fates in GROUPS.items():
        share = sum(caught[fate] for fate in fates) / sum(FATES[fate] for fate in fates)
        yield at_least("2", f"planted {name} caught for the right reason", share, 0.95)
    yield at_least("2", f"sound questions kept (of {good})", good_kept / good, 0.95)
    lines = Counter(row["reason"] for row in dropped.values() if row["stage"] == "seeds")
    right = lines == {"duplicate_concept": 3, "bad_line": 2}
    yield holds("2", "lines of the concept list dropped with a reason", right, str(dict(lines)))
    yield from _files(out, len(kept))
    yield from _reviewed(out)


def _files(out: Path, kept: int) -> Iterator[Check]:
    rows = list(read_examples(out / "candidates.parquet"))
    usable = [row for row in rows if isinstance(row, Example)]
    yield holds("2", "candidates.parquet reads whole", len(usable) == len(rows) == kept, f"{len(usable)} of {kept}")
    noted = [row for row in usable if row.notes.evidence and row.notes.taxonomy]
    yield at_least("2", "candidates with evidence and class", len(noted) / len(usable), 0.95)
    if ROWS.is_file():
        given = [row for row in read_examples(ROWS) if isinstance(row, Example)]
        from_rows = {row.answer: set(row.aliases) for row in usable if row.id.startswith("txt-")}
        same = [row for row in given if from_rows.get(row.answer, set()) >= {*row.aliases} - {row.answer}]
        yield holds("2", "existing questions: answers and aliases kept", len(same) == len(given), f"{len(same)}")
    told = json.loads((out / "report.json").read_text())
    met = told["leakage"][0]
    right = (met["test_picture"], met["test_question"]) == (FATES["test_picture"], FATES["test_question"])
    yield holds("2", "leakage report", right, f"{met['test_picture']} pictures, {met['test_question']} questions")
    yield holds("2", "dataset card", (out / "DATASET_CARD.md").is_file())
    leaks = [file for file in out.rglob("*") if file.is_file() and KEY.encode() in file.read_bytes()]
    yield at_most("2", "files that hold the key", len(leaks), 0)


def _reviewed(out: Path) -> Iterator[Check]:
    """A reviewer rejects every fifth, mends the answer of every seventh, and accepts the others."""
    file, reviewed = out / "candidates.parquet", out / "reviewed.parquet"
    decisions = Path(f"{file}.review.machine.jsonl")
    log, expected = DecisionLog(decisions), {}
    for number, row in enumerate(row for row in read_examples(file) if isinstance(row, Example)):
        answer = f"{row.answer} (mended)" if number % 7 == 0 else None
        state = "rejected" if number % 5 == 0 else "accepted"
        log.decide(Decision(row.id, content_of(row), state, answer), 0)
        if state == "accepted":
            expected[row.id] = answer or row.answer
    log.close()
    apply = ("-m", "mmsr1.data.review", "apply", str(file), str(decisions), "--out", str(reviewed))
    done, _ = command(sys.executable, *apply, check=False)
    found = (
        {row.id: row.answer for row in read_examples(reviewed) if isinstance(row, Example)}
        if reviewed.is_file()
        else {}
    )
    right = not done.returncode and found == expected
    yield holds("2", "reviewed parquet: as decided", right, f"{len(found)} of {len(expected)} {done.stderr[-100:]}")


def _bill(out: Path, web: ConstructWeb) -> Iterator[Check]:
    """What the report says was paid, against what the services answered."""
    if not (out / "report.json").is_file():
        yield holds("2", "cost report", False, "no report.json")
        return
    costs = json.loads((out / "report.json").read_text())["costs"]
    searches = web.of_kind("pictures") + web.of_kind("search")
    paid = sum(row["usd"] for name, row in costs.items() if name.startswith("serpapi"))
    # A connection that was lost after the question may be on the bill: it counts at its price.
    lost = sum(web.refused[kind] for kind in ("pictures", "search"))
    fits = searches * SEARCH_USD - 1e-9 <= paid <= (searches + lost) * SEARCH_USD + 1e-9
    yield holds("2", "searches: paid what was billed", fits, f"{paid:.3f} USD for {searches}")
    yield holds("2", "model: paid by token", costs["openai_chat"]["usd"] > 0, f"{costs['openai_chat']['usd']:.4f} USD")


def _inputs(folder: Path) -> tuple[Path, Path]:
    """A concept list with lines that hold none, and a test set that must not leak in."""
    names = [thing.name for thing in things()]
    assert len(set(names)) == THINGS
    repeated = [names[0].upper(), f"  {names[1]} ", names[2].replace(" ", "  ")]
    concepts = folder / "concepts.txt"
    concepts.write_text("\n".join([*names[:100], *BAD_LINES, *repeated, *names[100:]]) + "\n")
    against = folder / "test.parquet"
    write_examples(against, _test_set())
    return concepts, against


def _test_set() -> Iterator[Example]:
    for thing in things():
        if thing.fate == "test_picture":
            yield _test_row(thing, "What is the name of this place?", "Nowhere", picture(thing, 9))
        elif thing.fate == "test_question":
            yield _test_row(thing, thing.test_question, thing.answer, picture(_stranger(thing), 9))


def _test_row(thing: Thing, question: str, answer: str, data: bytes) -> Example:
    return Example(f"test_{thing.number}", question, (Picture(data),), answer, (), "required", "test")


def _stranger(thing: Thing) -> Thing:
    """Somebody whose picture is nowhere else."""
    return Thing(1000 + thing.number, "good")


def _arguments(web: ConstructWeb, out: Path, concepts: Path, against: Path, folder: Path) -> list[str]:
    prices = f"[{USD_PER_MILLION[0]},{USD_PER_MILLION[1]}]"
    return [
        sys.executable,
        "-m",
        "mmsr1.data.construct",
        f"out={out}",
        f"concepts={concepts}",
        *([f"rows=[{ROWS}]"] if ROWS.is_file() else []),
        f"against=[{against}]",
        "tools=web",
        f"tools.cache_dir={folder / ('cache_' + out.name)}",
        *(f"{part}.url={web.url}" for part in ("pictures", "tools.text_search", "tools.reader", "llm")),
        *(f"{part}.rate_per_s=500" for part in ("pictures", "tools.text_search", "tools.reader", "llm")),
        "llm.options.model=played",
        f"llm.options.usd_per_million={prices}",
        "llm.price_usd=0.01",
        "concurrent=16",
    ]


def _env() -> dict[str, str]:
    return {**KEYS, **rigged(loopback=True), "OMP_NUM_THREADS": "1"}


def _told(done: subprocess.CompletedProcess[str]) -> str:
    errors = [line for line in done.stderr.splitlines() if line.startswith(("error", "Traceback"))]
    return f"status {done.returncode} {' '.join(errors)[:160]}".strip()


def _run_until(arguments: list[str], web: ConstructWeb, answers: float, more_s: float) -> bool:
    """Start, wait for so many answers and a moment, kill; whether it was still at work."""
    process = subprocess.Popen(
        arguments, cwd=ROOT, env={**os.environ, **_env()}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None and web.total < answers:
        time.sleep(0.005)
    time.sleep(more_s)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def _lines_of(out: Path) -> dict[str, bytes]:
    """The whole lines of every stage's file."""
    files = [*out.glob("[1-7]_*.jsonl"), *out.glob("dropped.jsonl")]
    return {file.name: file.read_bytes()[: file.read_bytes().rfind(b"\n") + 1] for file in files}


def _ids(lines: bytes) -> list[str]:
    return [json.loads(line)["id"] for line in lines.splitlines()]


def _answered_twice(out: Path) -> int:
    """Calls of the ledger that began after one of the same key had been answered."""
    answered: set[tuple[str, str]] = set()
    started: dict[str, tuple[str, str]] = {}
    twice = 0
    for row in (row for file in sorted((out / "ledger").glob("*.jsonl")) for row in _rows(file)):
        if row["state"] == "started":
            started[row["id"]] = row["tool"], row["key"]
            twice += (row["tool"], row["key"]) in answered
        elif row["state"] == "answered":
            answered.add(started[row["id"]])
    return twice


def _rows(file: Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _candidates(out: Path) -> list[tuple[str, str, str]]:
    if not (out / "candidates.parquet").is_file():
        return []
    rows = read_examples(out / "candidates.parquet")
    return [(row.id, row.question, row.answer) for row in rows if isinstance(row, Example)]
