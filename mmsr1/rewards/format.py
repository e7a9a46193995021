"""The format reward: does the episode keep to the turn protocol? (MMSearch-R1, arXiv 2506.20670, section 3.3.)"""

from __future__ import annotations

from collections.abc import Sequence

from mmsr1.rollout.protocol import action_name, parse_turn, well_formed

LEGAL_SEQUENCES = frozenset(
    {
        ("answer",),
        ("image_search", "answer"),
        ("text_search", "answer"),
        ("image_search", "text_search", "answer"),
    }
)


def format_score(turns: Sequence[str], crops: bool = False) -> float:
    """1.0 if every turn is well formed and the actions come in a legal order, else 0.0.

    `turns` are the decoded texts of the model's turns, `crops` says whether an image search may name a part of the
    image. There is no partial credit: one bad turn costs it all.

    >>> format_score(["<reason>I know it.</reason><answer>Kent</answer>"])
    1.0
    """
    legal = tuple(action_name(parse_turn(turn, crops)) for turn in turns) in LEGAL_SEQUENCES
    return float(legal and all(well_formed(turn, crops) for turn in turns))
