"""Have a teacher answer questions through the episode loop, and keep what was good, for another policy to imitate.

    python -m mmsr1.data.traces --out outputs/traces rollout=emblem_teacher
    python -m mmsr1.data.traces --out outputs/traces data=fvqa data.train_path=fvqa.parquet tools=web rollout=openai \\
        rollout.api.url=https://... rollout.api.options.model=NAME rollout.api.key_env=VARIABLE
    python train.py +experiment=sft algorithm.traces=outputs/traces

Overrides are those of train.py: `rollout` and `model.path` name the teacher, `model.path` the tokenizer as well. Of the
attempts at a question those with the highest reward are kept, the ones with fewer searches first. A command that was
ended goes on where it was. Exit status 2 for a mistake.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmsr1.cli import CommandParser, answering_command, refuse

if TYPE_CHECKING:
    from mmsr1.assembly.answering import Ended


def main(arguments: list[str]) -> int:
    asked = _arguments(arguments)
    return answering_command(asked.overrides, lambda config: _make(config, asked), asked.out)


def _make(config: Any, asked: argparse.Namespace) -> int:
    from mmsr1.assembly.teaching import Selection, make_traces

    out, selection = Path(asked.out), Selection(asked.attempts, asked.keep, asked.least_reward)
    ended, rows = make_traces(config, out, selection, asked.limit)
    return _tell(rows, out, ended)


def _tell(rows: Iterable[dict[str, Any]], out: Path, ended: Ended) -> int:
    calls: Counter[int] = Counter()
    totals: Counter[str] = Counter()
    for row in rows:
        calls.update(trace["calls"] for trace in row["kept"])
        totals.update(asked=1, attempts=row["attempts"], lost=row["lost"], without=not row["kept"])
    shares = ", ".join(f"{calls[n]} with {n} searches" for n in sorted(calls))
    sys.stdout.write(
        f"{calls.total()} traces kept of {totals['attempts']} attempts at {totals['asked']} questions "
        f"({shares or 'none'}); {totals['without']} questions without one, {totals['lost']} attempts lost to failures; "
        f"{ended.paid_usd:.4f} USD paid\n"
    )
    if not ended.complete:
        what = ended.stopped or f"{ended.lost} questions were lost to failures of engine or tools"
        sys.stdout.write(f"{what}; the same command goes on\n")
        return 1
    if not calls:
        sys.stdout.write("nothing to train on: no attempt was good enough (--least-reward)\n")
        return 1
    sys.stdout.write(f"traces: {out}; python train.py +experiment=sft algorithm.traces={out}\n")
    return 0


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = CommandParser(prog="python -m mmsr1.data.traces", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="folder for the traces; one that was begun is gone on with")
    parser.add_argument("--attempts", type=int, default=1, help="episodes a question")
    parser.add_argument("--keep", type=int, default=1, help="traces a question, at most")
    parser.add_argument("--least-reward", type=float, default=0.8, help="what a trace must reach to be kept")
    parser.add_argument("--limit", type=int, default=0, help="ask N of the questions only, drawn by the seed")
    parser.add_argument("overrides", nargs="*", help="as train.py takes them, e.g. rollout=emblem_teacher")
    asked = parser.parse_intermixed_args(arguments)
    for name in ("attempts", "keep"):
        if getattr(asked, name) < 1:
            refuse(f"--{name}={getattr(asked, name)}: must be 1 or more")
    if not 0 <= asked.least_reward <= 1:
        refuse(f"--least-reward={asked.least_reward}: must be between 0 and 1, as rewards are")
    if asked.limit < 0:
        refuse(f"--limit={asked.limit}: must be 0 (all) or more")
    return asked


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
