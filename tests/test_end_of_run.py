"""What searching was worth to the last weights: on the graded places, a line a question on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmsr1 import cli
from mmsr1.assembly.policy import base_policy, starting_weights
from mmsr1.assembly.rollout import _counterfactual, rollout_worker
from mmsr1.assembly.run import run_record
from mmsr1.data.emblem.store import EmblemStore
from mmsr1.data.formats import load_examples
from mmsr1.models.ranks import Ranks
from mmsr1.report.boundary import asked_of
from mmsr1.report.progress import RunProgress
from mmsr1.run_directory import RunDirectory


class Share(Ranks):
    """One of several ranks, which hears of no other."""

    def gather(self, item: Any) -> list[Any]:
        self.__dict__.setdefault("told", []).append(item)
        return [item]


def test_the_graded_places_are_asked_freely_and_in_every_way(store: EmblemStore, tmp_path: Path) -> None:
    asked = ("trainer.counterfactual=2", "trainer.counterfactual_split=graded", "trainer.counterfactual_questions=6")
    folders = (f"data.root={store.root.parent}", f"tools.cache_dir={tmp_path}/c", "data.train_size=12")
    config: Any = cli.checked(cli.composed(["rollout=transformers", *asked, *folders]))
    files = base_policy(config)
    worker = rollout_worker(config, files, starting_weights(config, files, tmp_path), tmp_path, 0)
    try:
        with RunProgress(1, shown=False) as progress:
            shares = [Share(rank, 2) for rank in (1, 0)]
            record = run_record(config, RunDirectory(tmp_path), progress)
            for rank in shares:
                _counterfactual(config, (), record)(worker, rank)
                assert (tmp_path / "counterfactual.jsonl").exists() == (rank.rank == 0), "the first one writes"
            for _ in range(2):  # a run that is resumed before its end asks again, and keeps one line a question
                told = _counterfactual(config, (), record)(worker, Ranks())
    finally:
        worker.close()
    lines = [json.loads(line) for line in (tmp_path / "counterfactual.jsonl").read_text().splitlines()]
    graded, _ = load_examples(store.split("graded"))
    assert len({line["id"] for line in lines}) == len(lines) == 6 == told["questions"]
    (own,), (others,) = (share.told for share in shares)
    assert (len(own), len(others)) == (3, 3) and {line["id"] for line in [*own, *others]} == {
        line["id"] for line in lines
    }
    assert {line["id"] for line in lines} <= {example.id for example in graded}
    found = asked_of([lines], None)
    assert found.tried.tolist() == found.free.tolist() == [2] * 6
