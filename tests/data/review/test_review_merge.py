"""Agreement by hand-computed numbers, and what becomes of each kind of row."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from mmsr1.data.review.decisions import Decision, content_of
from mmsr1.data.review.merge import Agreement, Merge, Reviewer, write_disputes
from mmsr1.types import Example


def example(id: str) -> Example:
    return Example(id, f"question {id}", (), f"answer {id}", ("alias", "other"), "text", "made")


def said(id: str, state: str, answer: str | None = None, aliases: tuple[str, ...] | None = None) -> Decision:
    return Decision(id, content_of(example(id)), state, answer, aliases)  # type: ignore[arg-type]


def reviewer(name: str, *decisions: Decision) -> Reviewer:
    return Reviewer(name, {decision.id: decision for decision in decisions})


def merged(merge: Merge, *ids: str) -> list[Example]:
    return list(merge.reviewed(example(id) for id in ids))


def test_cohens_kappa_of_the_textbook_example() -> None:
    # 20 both yes, 15 both no, 5 and 10 mixed: raw .7, by chance .5 x .6 + .5 x .4 = .5, so .4.
    counts = {("accepted", "accepted"): 20, ("accepted", "rejected"): 5}
    counts |= {("rejected", "accepted"): 10, ("rejected", "rejected"): 15}
    found = Agreement(counts)  # type: ignore[arg-type]
    assert (found.rows, found.raw, found.kappa) == (50, 0.7, 0.4)


def test_kappa_is_not_defined_where_there_is_nothing_to_agree_on() -> None:
    assert Agreement({}).raw is None and Agreement({}).kappa is None
    same = Agreement({("accepted", "accepted"): 5})
    assert same.raw == 1.0 and same.kappa is None
    assert Agreement({("accepted", "rejected"): 1, ("rejected", "accepted"): 1}).kappa == -1.0


def test_accepted_rows_come_with_their_edits() -> None:
    one = reviewer("anna", said("a", "accepted", "better", ("x",)), said("b", "rejected"), said("c", "accepted"),
                   said("d", "flagged"), said("e", "open", "kept for later"))  # fmt: skip
    merge = Merge([one])
    a, c = merged(merge, "a", "b", "c", "d", "e", "f")
    assert (a.answer, a.aliases, a.question) == ("better", ("x",), "question a")
    assert c == example("c")
    assert merge.counts == Counter(accepted=2, rejected=1, flagged=1, open=2, edited=1)


def test_two_reviewers_who_differ_leave_the_row_to_a_judge() -> None:
    anna = reviewer("anna", said("same", "accepted"), said("verdict", "accepted"), said("edit", "accepted", "x"),
                    said("flag", "flagged"), said("no", "rejected", "x"),
                    said("order", "accepted", None, ("1", "2")))  # fmt: skip
    ben = reviewer("ben", said("same", "accepted"), said("verdict", "rejected"), said("edit", "accepted", "y"),
                   said("flag", "accepted"), said("no", "rejected"),
                   said("order", "accepted", None, ("2", "1")))  # fmt: skip
    ids = ("same", "verdict", "edit", "flag", "no", "order")
    merge = Merge([anna, ben])
    assert [row.id for row in merged(merge, *ids)] == ["same", "order"]
    assert [dispute.id for dispute in merge.disputes] == ["verdict", "edit", "flag"]
    assert {name: one.state for name, one in merge.disputes[0].said.items()} == {"anna": "accepted", "ben": "rejected"}
    assert (merge.agreement.rows, merge.agreement.raw) == (5, 0.8)  # a flag is no verdict
    judge = reviewer("judge", said("verdict", "rejected"), said("edit", "accepted", "z"), said("flag", "flagged"))
    again = Merge([anna, ben], judge)
    assert [(row.id, row.answer) for row in merged(again, *ids)][1] == ("edit", "z")
    assert [dispute.id for dispute in again.disputes] == ["flag"]
    assert again.agreement == merge.agreement  # the judge has no part in it


def test_what_one_alone_decided_counts_unless_both_must_have() -> None:
    anna, ben = reviewer("anna", said("a", "accepted"), said("b", "accepted")), reviewer("ben", said("b", "accepted"))
    merge, strict = Merge([anna, ben]), Merge([anna, ben], both=True)
    assert [row.id for row in merged(merge, "a", "b")] == ["a", "b"]
    assert merge.counts["by one"] == 1
    assert [row.id for row in merged(strict, "a", "b")] == ["b"]
    assert strict.counts["one"] == 1


def test_decisions_about_other_content_or_other_rows_count_as_none() -> None:
    outdated = Decision("a", "another content", "accepted")
    merge = Merge([reviewer("anna", outdated, said("gone", "accepted"), said("b", "accepted"))])
    assert [row.id for row in merged(merge, "a", "b")] == ["b"]
    assert merge.counts["outdated"] == 1 and merge.counts["open"] == 1 and merge.strangers == 1


def test_disputes_are_written_with_both_opinions(tmp_path: Path) -> None:
    merge = Merge([reviewer("anna", said("a", "accepted")), reviewer("ben", said("a", "rejected"))])
    merged(merge, "a")
    write_disputes(tmp_path / "disputes.jsonl", merge.disputes)
    row = json.loads((tmp_path / "disputes.jsonl").read_text())
    assert row["question"] == "question a"
    assert {name: one["state"] for name, one in row["said"].items()} == {"anna": "accepted", "ben": "rejected"}


@pytest.mark.parametrize("state", ["accepted", "rejected", "flagged"])
def test_each_row_is_counted_once(state: str) -> None:
    merge = Merge([reviewer("anna", said("a", state)), reviewer("ben", said("b", state), said("a", "accepted"))])
    merged(merge, "a", "b", "c")
    assert sum(merge.counts[key] for key in ("accepted", "rejected", "flagged", "disputed", "open")) == 3
