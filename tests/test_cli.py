"""The command line: help at once, a user's mistake in one line with exit status 2, and nothing left behind."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hydra import compose, initialize_config_dir

from mmsr1.cli import run_command
from mmsr1.config import Config, ConfigError, register
from mmsr1.mistakes import explain

ROOT = Path(__file__).parents[1]
# Runs a script as `python script arguments...` would, and tells in the end what heavy libraries that has imported.
RUNNER = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    print("heavy:", *sorted({"torch", "vllm", "transformers", "lightning", "pyarrow"} & set(sys.modules)))
"""


class Outcome(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def heavy(self) -> list[str]:
        return self.out.splitlines()[-1].removeprefix("heavy:").split()


def train(folder: Path, *arguments: str, program: str = "train.py", **environment: str) -> Outcome:
    """`python train.py arguments...`, or another program, in `folder`."""
    plain = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    command = [sys.executable, "-c", RUNNER, str(ROOT / program), *arguments]
    done = subprocess.run(command, cwd=folder, env=plain | environment, capture_output=True, text=True, timeout=120)
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`run_command` in this process: `command(job, *arguments)`."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.chdir(tmp_path)

    def run(job: Callable[[Config, Path], None], *arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train.py"), "model=tiny", "hydra.run.dir=out/run", *arguments])
        run_command(job)

    yield run
    root.handlers[:], root.level = before, level


def test_help_answers_without_anything_heavy(tmp_path: Path) -> None:
    outcome = train(tmp_path, "--help")
    assert outcome.status == 0 and outcome.err == "" and outcome.heavy == []
    assert "python train.py +experiment=grpo_balanced" in outcome.out
    assert "grpo_no_penalty" in outcome.out and "8xh100" in outcome.out and list(tmp_path.iterdir()) == []


def test_a_missing_key_of_a_service_is_told_before_the_run_begins(tmp_path: Path) -> None:
    outcome = train(tmp_path, "model=tiny", "tools=web", "tools.summarizer.url=http://localhost:1")
    assert outcome.status == 2 and outcome.err.count("\n") == 1
    assert "tools.image_search.key_env=SERPAPI_API_KEY: this environment variable is not set" in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_the_composed_configuration_can_be_shown(tmp_path: Path) -> None:
    outcome = train(tmp_path, "+experiment=grpo_balanced", "--cfg", "job")
    assert outcome.status == 0 and outcome.heavy == [] and "name: balanced" in outcome.out


MISTAKES = {
    "misspelt key": (["rolout.turns=2"], "rolout.turns=2", "did you mean"),
    "misspelt key within a group": (["rollout.turnz=2"], "rollout.turnz=2", "did you mean turns?"),
    "key added with a plus": (["+algorithm.lrr=2"], "algorithm.lrr=2", "did you mean lr?"),
    "option without a plus": (
        ["tools.image_search.options.by=url"],
        "tools.image_search.options.by=url",
        "put + before it: +tools.image_search.options.by=url",
    ),
    "missing data file": (["data=fvqa", "data.train_path=nowhere.parquet"], "data.train_path=nowhere.parquet", "FVQA"),
    "no data file": (["data=fvqa"], "data.train_path=None", "name a parquet or JSONL file"),
    "missing validation file": (["data.val_path=gone.parquet"], "data.val_path=gone.parquet", "no such file"),
    "a file that is no parquet": (["data.val_path=notes.txt"], "data.val_path=notes.txt", "give a parquet file"),
    "missing prompts": (["model=tiny", "rollout.prompts=p.yaml"], "rollout.prompts=p.yaml", "emblem, on_demand"),
    "missing model": (["model.path=folder/of/model"], "model.path=folder/of/model", "Hugging Face folder"),
    "unknown experiment": (["+experiment=grpo_balancd"], "experiment=grpo_balancd", "did you mean grpo_balanced?"),
    "experiment without a plus": (
        ["experiment=grpo_balanced"],
        "experiment=grpo_balanced",
        "put + before it: +experiment=grpo_balanced",
    ),
    "option of folders": (
        ["+arm=reward/emm"],
        "arm=reward/emm",
        "did you mean reward/em? available: grpo_variants/clip_",
    ),
    "wrong option": (["scale=8xh10"], "scale=8xh10", "did you mean 8xh100? available: 4x8h100, 8xh100, laptop"),
    "wrong type": (["seed=abc"], "seed=abc", "must be a whole number"),
    "null": (["model.dtype=null"], "model.dtype=null", "needs a value"),
    "out of range": (["rollout.temperature=-1"], "rollout.temperature=-1.0", "must be 0 (greedy) or more"),
    "group with a plus": (["+scale=8xh100"], "scale=8xh100", "leave out the +"),
    "no equals sign": (["seed"], "seed", "write key=value"),
}


def check_line(err: str, name: str) -> None:
    _, received, remedy = MISTAKES[name]
    assert err.count("\n") == 1 and err.startswith(f"error: {received}: ")
    assert remedy in err and "hydra" not in err


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(command: Any, tmp_path: Path, capsys: Any, name: str) -> None:
    (tmp_path / "notes.txt").write_text("no parquet")
    with pytest.raises(SystemExit) as caught:
        command(lambda config, folder: pytest.fail("the job was started"), *MISTAKES[name][0])
    assert caught.value.code == 2
    check_line(capsys.readouterr().err, name)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"], "no run directory is left"


@pytest.mark.parametrize(
    "name", ["misspelt key", "missing data file", "missing prompts", "unknown experiment", "wrong type", "out of range"]
)
def test_a_mistake_shows_before_anything_heavy_is_imported(tmp_path: Path, name: str) -> None:
    outcome = train(tmp_path, *MISTAKES[name][0])
    check_line(outcome.err, name)
    assert outcome.status == 2 and outcome.heavy == [] and list(tmp_path.iterdir()) == []


def test_a_benchmark_without_its_file_is_told_before_a_model_library_is_imported(tmp_path: Path) -> None:
    outcome = train(tmp_path, "benchmark=infoseek", "model=tiny", program="evaluate.py")
    assert outcome.status == 2 and not {"torch", "transformers", "vllm", "lightning"} & set(outcome.heavy)
    assert outcome.err.count("\n") == 1 and outcome.err.startswith("error: benchmark.path=None: give mmsearch_r1_info")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_whose_jobs_were_all_refused_has_no_table_and_no_traceback(tmp_path: Path) -> None:
    sweep = ("-m", "model=tiny", "limit=-1,-2", "hydra.sweep.dir=sweep")
    outcome = train(tmp_path, *sweep, program="evaluate.py")
    assert outcome.status == 1 and "Traceback" not in outcome.err
    assert outcome.err.count("must be 0 or more\n") == 2 and "no evaluation below it" in outcome.err


def test_a_traceback_can_be_had(tmp_path: Path) -> None:
    outcome = train(tmp_path, "rollout.turns=0", HYDRA_FULL_ERROR="1")
    assert outcome.status != 0 and "Traceback" in outcome.err and "rollout.turns=0: must be positive" in outcome.err


def test_a_sweep_tells_every_mistake_of_its_jobs_and_starts_none(tmp_path: Path) -> None:
    outcome = train(tmp_path, "-m", "model=tiny", "rollout.turns=0,-1", "hydra.sweep.dir=sweep")
    assert outcome.status == 2 and outcome.err.splitlines() == [
        "error: rollout.turns=0: must be positive (default__0__seed0, of 2 jobs; nothing was started)",
        "error: rollout.turns=-1: must be positive (default__1__seed0, of 2 jobs; nothing was started)",
    ]
    assert not (tmp_path / "sweep").exists()


def test_a_job_gets_the_typed_configuration_and_its_folder(command: Any, tmp_path: Path) -> None:
    seen: list[tuple[Config, Path]] = []
    command(lambda config, folder: seen.append((config, folder)), "seed=7")
    ((config, folder),) = seen
    assert isinstance(config, Config) and config.seed == 7 and config.model.path is None
    assert folder == tmp_path / "out" / "run" and folder.is_dir()


def test_what_a_job_refuses_is_one_line_too_and_its_files_stay(command: Any, tmp_path: Path, capsys: Any) -> None:
    def job(config: Config, folder: Path) -> None:
        (folder / "run.json").write_text("{}")
        raise ConfigError("data/mix=balanced: of 5 examples\nnone is free")

    with pytest.raises(SystemExit) as caught:
        command(job)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: data/mix=balanced: of 5 examples none is free\n"
    assert (tmp_path / "out" / "run" / "run.json").is_file()


def test_only_empty_folders_of_a_refused_run_go(command: Any, tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").mkdir()
    with pytest.raises(SystemExit):
        command(lambda config, folder: None, "rollout.turns=0")
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["earlier"]
    assert capsys.readouterr().err == "error: rollout.turns=0: must be positive\n"


def test_a_bug_keeps_its_traceback(command: Any) -> None:
    with pytest.raises(ZeroDivisionError):
        command(lambda config, folder: print(1 // 0))


def test_an_interrupt_has_its_own_status(command: Any) -> None:
    def job(config: Config, folder: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        command(job)
    assert caught.value.code == 130


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            "data: {train_pth: a.parquet}",
            "data.train_pth: there is no such key (in conf/experiment/mine.yaml); did you mean",
        ),
        ("rollout: {turns: three}", "rollout.turns=three: must be a whole number (in conf/experiment/mine.yaml)"),
        ("rewads: {match: em}", "rewads: there is no such key (in conf/experiment/mine.yaml); did you mean rewards?"),
        ("defaults:\n  - override /algorithm: ppo\n", "algorithm=ppo: there is no such option; available: grpo, "),
        ("defaults:\n  - override /algoritm: sft\n", "algoritm: no such config group"),
        ("rollout: [", 'mine.yaml", line 4'),
    ],
)
def test_a_mistake_in_an_experiment_file_is_told_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "+experiment=mine"])
    for folder in (ROOT / "conf").iterdir():
        if folder.is_dir() and folder.name != "experiment":
            (tmp_path / folder.name).symlink_to(folder)
    (tmp_path / "config.yaml").symlink_to(ROOT / "conf" / "config.yaml")
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\nname: mine\n\n{text}")
    register()
    with initialize_config_dir(str(tmp_path), version_base="1.3"), pytest.raises(Exception) as caught:
        compose("config", overrides=["+experiment=mine"])
    assert line in explain(caught.value)  # type: ignore[arg-type]
