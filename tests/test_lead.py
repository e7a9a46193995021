"""A run that refuses its configuration before it has done anything leaves nothing; everything else stays on disk."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest

from evaluate import main
from mmsr1 import cli
from mmsr1.assembly.lead import lead
from mmsr1.config import Config, ConfigError
from mmsr1.config.evaluate import register
from mmsr1.data.emblem.store import EmblemStore
from mmsr1.run_directory import RunDirectory


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return cli.checked(cli.composed(["model=tiny", f"tools.cache_dir={tmp_path}/cache"]))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    """As Hydra makes it, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out" / "run").mkdir(parents=True)
    return RunDirectory(tmp_path / "out" / "run")


def refuses() -> NoReturn:
    raise ConfigError("benchmark.path=x: no such file")


def test_a_refusal_leaves_nothing(config: Config, run: RunDirectory, tmp_path: Path) -> None:
    def job() -> NoReturn:
        (run.path / "ledger").mkdir()
        (run.path / "ledger" / "rank0.jsonl").touch()
        (run.path / "train.log").write_text("a warning")
        refuses()

    with pytest.raises(ConfigError, match="no such file"):
        lead(config, run, "train.py", job)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file", ["summary.json", "episodes/eval-0.jsonl", "ledger/rank0.jsonl", "counterfactual.jsonl", "episodes/images/x"]
)
def test_what_was_done_before_a_refusal_stays(config: Config, run: RunDirectory, file: str) -> None:
    def job() -> NoReturn:
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).write_text("{}\n")
        refuses()

    with pytest.raises(ConfigError):
        lead(config, run, "train.py", job)
    record = run.read_run()
    assert record["status"] == "failed" and record["error"].startswith("ConfigError: benchmark.path=x")
    assert (run.path / file).is_file() and (run.path / "config.yaml").is_file()


def test_a_file_that_was_there_before_keeps_all(config: Config, run: RunDirectory) -> None:
    (run.path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(ConfigError):
        lead(config, run, "train.py", refuses)
    assert run.read_run()["status"] == "failed" and (run.path / "config.yaml").is_file()


def test_another_failure_than_a_refusal_is_kept(config: Config, run: RunDirectory) -> None:
    with pytest.raises(ZeroDivisionError):
        lead(config, run, "train.py", lambda: (str(1 // 0), None))
    assert run.read_run()["status"] == "failed" and (run.path / "report.html").is_file()


def test_a_run_that_is_resumed_stays_whatever_is_refused(config: Config, run: RunDirectory) -> None:
    before = b"seed: 0\n"
    (run.path / "config.yaml").write_bytes(before)
    with pytest.raises(ConfigError):
        lead(replace(config, resume=str(run.path)), run, "train.py", refuses)
    assert (run.path / "config.yaml").read_bytes() == before and run.read_run()["status"] == "failed"


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["benchmark=infoseek", "benchmark.path=bad.parquet"], "bad.parquet: not a readable parquet file"),
        (["policy=weightless"], "policy=weightless: weightless/policy holds no weights"),
        (
            ["judge=openai", "judge.api.url=http://x", "judge.api.options.model=j", "judge.api.key_env=NO_SUCH_KEY"],
            "judge.api.key_env=NO_SUCH_KEY: this environment variable is not set",
        ),
    ],
)
def test_an_evaluation_that_is_refused_leaves_no_folder(
    store: EmblemStore, run: RunDirectory, tmp_path: Path, more: list[str], told: str
) -> None:
    (tmp_path / "bad.parquet").write_text("no parquet")
    (tmp_path / "weightless" / "policy").mkdir(parents=True)
    (tmp_path / "weightless" / "policy" / "config.json").write_text("{}")
    register()
    start = Path(cli.__file__).parent / "models" / "starting_policy"
    own = [f"model.path={start}", f"data.cache_dir={tmp_path}/data", f"tools.cache_dir={tmp_path}/cache"]
    own += ["rollout=transformers", f"data.root={store.root.parent}", "data.train_size=12", "limit=1"]
    config: Any = cli.checked(cli.composed([*own, *more], "evaluate"))
    with pytest.raises(ConfigError, match=told):
        main(config, run.path)
    assert not (tmp_path / "out").exists()
