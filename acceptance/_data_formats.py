"""Issue F, lines 1 and 6: what is written comes back, in constant memory; what is malformed is told, nothing lost."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from typing import Any

from acceptance._data_stream import PER_STEP
from acceptance._malformed import CASES, GOOD, Case
from acceptance.learning import SHARED
from acceptance.lines import OUTPUT, ROOT, Check, at_least, at_most, command, holds
from mmsr1.assembly.data import skipped_rows, training_examples
from mmsr1.cli import checked, composed
from mmsr1.data.formats import load_examples, write_examples
from mmsr1.mistakes import USER_ERRORS, explain
from mmsr1.types import Evidence, Notes

HOME = OUTPUT / "formats"
ROWS = 100_000


def formats() -> list[Check]:
    """Line 1."""
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    try:
        return [*_round_trips(), *_streams(".parquet"), *_streams(".jsonl")]
    finally:
        shutil.rmtree(HOME)  # several GB


def _round_trips() -> list[Check]:
    real = SHARED / "infoseek_mini.parquet"
    rows, _ = load_examples(real)
    notes = Notes("Place", 0.25, "CC BY-SA 4.0", (Evidence("a title", "https://a.example/page", " text \n"),))
    noted = [replace(row, notes=notes, search_need="both") for row in rows]
    checks = []
    for suffix in (".parquet", ".jsonl"):
        for what, given in (("as published", rows), ("with notes", noted)):
            file = HOME / f"again{suffix}"
            write_examples(file, given)
            same = load_examples(file) == (given, [])
            checks.append(holds("1", f"infoseek_mini -> {suffix} -> read, {what}: equal", same))
    return checks


def _streams(suffix: str) -> list[Check]:
    file, cache, steps = HOME / f"many{suffix}", HOME / "cache", 2 * ROWS // PER_STEP
    done = {
        "written": _child("write", file, cache, 0, ROWS),
        "read": _child("read", file, cache, 0, ROWS),
        "laid down, two epochs drawn": _child("epoch", file, cache, 0, steps),
        "two epochs drawn": _child("epoch", file, cache, 0, steps),
    }
    whole, again = (done[name] for name in ("laid down, two epochs drawn", "two epochs drawn"))
    middle = _child("epoch", file, cache, steps // 3, steps)
    checks = [
        at_most("1", f"{ROWS} rows {suffix} {what} in {one['seconds']:.0f} s: growth (MiB)", one["mib"], 200)
        for what, one in done.items()
    ]
    counts = {one["rows"] for one in done.values()}
    shutil.rmtree(cache)
    return [
        *checks,
        holds("1", f"{suffix}: every row is there, each time", counts == {ROWS}, str(counts)),
        at_least("1", f"{suffix}: different rows in the first epoch", whole["first_epoch"], ROWS),
        holds("1", f"{suffix}: the same order and pictures again", whole["steps"] == again["steps"]),
        holds("1", f"{suffix}: the same from a third on", middle["steps"] == whole["steps"][steps // 3 :]),
        at_least("1", f"{suffix}: different steps of {steps}", len(set(whole["steps"])), steps),
    ]


def _child(*arguments: Any) -> dict[str, Any]:
    out, _ = command(
        sys.executable, "-m", "acceptance._data_stream", *map(str, arguments), env={"OMP_NUM_THREADS": "1"}
    )
    return json.loads(out.stdout)


def malformed() -> list[Check]:
    """Line 6: each file as `data.train_path` of a run; in this process, and some by the command itself."""
    checks = []
    for case in CASES:
        lines, good = _told(case)
        rows = [line for line in lines if not line.endswith("rows skipped in all")]
        once = len(rows) == 1 and "\n" not in rows[0] and case.told in rows[0]
        kept = good == (GOOD if case.bad else ())
        checks.append(holds("6", case.name, once and kept, rows[0][:160] if once and kept else f"{lines} {good}"))
    for case in (CASES[0], CASES[2], CASES[3]):
        out, _ = command(sys.executable, "train.py", *_overrides(case), cwd=ROOT, check=False)
        last = out.stderr.splitlines()[-1]
        right = out.returncode == 2 and last.startswith("error: ") and case.told in last and "Trace" not in out.stderr
        checks.append(holds("6", f"train.py with: {case.name}", right, f"{out.returncode}: {last}"[:160]))
    return [at_least("6", "malformed inputs", len(CASES), 30), *checks]


def _overrides(case: Case) -> list[str]:
    folder = OUTPUT / "malformed"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    file = case.make(folder / "in")
    return ["data=fvqa", f"data.train_path={file}", f"data.cache_dir={folder / 'cache'}", f"hydra.run.dir={folder}/run"]


def _told(case: Case) -> tuple[list[str], tuple[str, ...]]:
    """What a user is told of the file, and the ids of the rows that can be used."""
    try:
        table, _, bad = training_examples(checked(composed(_overrides(case)[:-1])))
    except USER_ERRORS as error:
        return [explain(error)], ()
    return list(skipped_rows(bad)), tuple(table.ids)
