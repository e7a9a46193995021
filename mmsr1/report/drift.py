"""Did the engine drift from the trainer? The sentence and the panels that answer it.

Both compute the log-probability of every sampled token. Tokens that the engine sampled with the trainer's own weights
are fresh: for them the two should agree but for rounding. Older tokens differ because the weights have moved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mmsr1.report.curves import Curve, Panel, Row, series

_FRESH = "logprob_gap_max_fresh"


def _gap_curves(kind: str) -> tuple[Curve, ...]:
    """Fresh tokens last, so that they lie on top: where all tokens are fresh, the lines are one."""
    name = f"logprob_gap_{kind}"
    return (
        Curve("train", name, "all tokens", "grey"),
        Curve("train", f"{name}_before_image", "before an image", "purple", ":"),
        Curve("train", f"{name}_after_image", "after an image", "orange", "--"),
        Curve("train", f"{name}_after_tool_result", "after a tool result", "green", "-."),
        Curve("train", f"{name}_fresh", "fresh tokens", "blue"),
    )


_GAP = (
    Panel("Largest gap of log-probabilities (nats)", _gap_curves("max"), "log", limited=True),
    Panel("Mean gap of log-probabilities (nats)", _gap_curves("mean"), "log"),
)
_STALE = (
    Panel(
        "Staleness of trained tokens (updates)",
        (
            Curve("train", "staleness_max", "largest", "vermilion", "--"),
            Curve("train", "staleness_mean", "mean", "blue"),
        ),
    ),
    Panel("Mean importance weight", (Curve("train", "importance_weight_mean", "trained tokens", "blue"),)),
    Panel(
        "Tokens cut at the cap; masked for their gap",
        (
            Curve("train", "importance_truncated", "cut (share)", "orange"),
            Curve("train", "masked_share", "masked (share)", "vermilion", "--"),
        ),
    ),
)


def drift_panels(rows: Sequence[Row]) -> tuple[Panel, ...]:
    """Those of the gap; and of the correction, if any step trained on tokens of earlier weights."""
    return (*_GAP, *_STALE) if _was_stale(rows) else _GAP


def with_masked_share(row: Row) -> Row:
    """The row with its masked tokens as a share of the trained ones, beside the share that was cut."""
    masked, trained = row.get("tokens_masked_gap"), row.get("tokens_trained")
    return {**row, "masked_share": masked / trained} if masked is not None and trained else row


def agreement(rows: Sequence[Row], limit: float | None, error: str = "") -> str | None:
    """How far engine and trainer were apart on fresh tokens, in sentences; None for a run that compared nothing.

    `limit` is the run's `algorithm.gap_limit`, `error` what it failed of, if it did: a step that broke the limit ended
    the run and logged nothing.
    """
    steps, gaps = series(rows, "train", "logprob_gap_max")
    _, fresh = series(rows, "train", _FRESH)
    said = []
    if fresh:
        said.append(_apart(fresh, len({row["step"] for row in rows if row["split"] == "train"}), limit))
    elif gaps:
        said.append(f"No fresh token was compared in {_steps(len(steps))}, so drift was not measured.")
    if _was_stale(rows):
        said.append("Other tokens differ because the weights had moved on.")
    if "(algorithm.gap_limit)" in error:
        said.append(f"The {'next' if said else 'first'} step broke the limit, which ended the run.")
    return " ".join(said) or None


def _apart(fresh: Sequence[float], steps: int, limit: float | None) -> str:
    known = [gap for gap in fresh if math.isfinite(gap)]
    asked = f"in the {len(fresh)} of {_steps(steps)} that had any"
    if len(fresh) == steps:
        asked = f"in all {_steps(steps)}" if steps > 1 else "in the only step"
    broken = len(fresh) - len(known)
    lost = f"In {_steps(broken)} the gap of a fresh token was not a number." if broken else ""
    if not known:
        return lost
    largest, bound = max(known), "no limit set" if limit is None else f"limit {limit:g}"
    verb = "agreed within" if limit is not None and largest <= limit else "differed by up to"
    return f"Engine and trainer {verb} {largest:.2g} nats on fresh tokens ({bound}) {asked}. {lost}".strip()


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def _was_stale(rows: Sequence[Row]) -> bool:
    return any((row.get("staleness_max") or 0) > 0 for row in rows)
