"""`resume=`: a run goes on with the configuration it was started with; mistakes are one line."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mmsr1.cli import _resuming, resumed
from mmsr1.config import Config, ConfigError, register
from mmsr1.config.edit import EditConfig
from mmsr1.config.evaluate import EvaluateConfig
from mmsr1.mistakes import USER_ERRORS, explain

CONF = Path(__file__).parents[1] / "conf"


def composed(*overrides: str) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config: Any = OmegaConf.to_object(compose("config", overrides=list(overrides)))
    return config


def started(folder: Path, *overrides: str) -> tuple[Path, Config]:
    """A run directory with the configuration in it, as train.py writes it."""
    config = composed(*overrides)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(replace(config, resume=None)))
    return folder, config


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return started(tmp_path / "run")[0]


def typed(run: Path, *overrides: str) -> Config:
    config: Any = OmegaConf.to_object(resumed(run, list(overrides)))
    return config


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["+experiment=warmup"],
        ["+experiment=grpo_no_penalty", "scale=8xh100", "data.train_path=t.parquet", "seed=4294967295"],
        ["name='1e3'", "model.path='null'", "logger=wandb", "trainer.optimizer_state=bfloat16"],
        ["algorithm.lr=1e-06", "algorithm.gap_limit=null", "data.root='a b/#: ${oc.env:HOME}'"],
        ["+rollout.vllm.extra={quantization: fp8, sizes: [1, 2], nested: {a: true, b: '2'}}"],
    ],
    ids=["default", "supervised", "another scale", "texts that look like something else", "numbers", "free keys"],
)
def test_the_configuration_comes_back_as_it_was(overrides: list[str], tmp_path: Path) -> None:
    run, config = started(tmp_path / "run", *overrides)
    assert "${" not in (run / "config.yaml").read_text()
    again = typed(run)
    assert again == replace(config, resume=str(run))
    assert type(again.algorithm) is type(config.algorithm)


def test_single_keys_can_be_given_anew(run: Path) -> None:
    changed = typed(run, "trainer.max_steps=80", f'resume="{run}"', "algorithm.lr=2e-5", "trainer.offload=null")
    before = typed(run)
    assert (before.trainer.max_steps, before.algorithm.lr) != (80, 2e-5)
    assert changed == replace(
        before,
        trainer=replace(before.trainer, max_steps=80, offload=None),
        algorithm=replace(before.algorithm, lr=2e-5),
    )


MISTAKES = {
    "seed": ("seed=1", "seed=1", "brings its own configuration"),
    "group": ("algorithm=sft", "algorithm=sft", "brings its own configuration"),
    "experiment": ("+experiment=warmup", "experiment=warmup", "only keys like trainer.max_steps=80"),
    "addition": ("+trainer.max_steps=3", "trainer.max_steps=3", "brings its own configuration"),
    "removal": ("~trainer.max_steps", "trainer.max_steps", "brings its own configuration"),
    "sweep": ("trainer.max_steps=1,2", "trainer.max_steps=1,2", "brings its own configuration"),
    "misspelt key": ("trainer.max_stepz=80", "trainer.max_stepz=80", "did you mean max_steps?"),
    "misspelt group": ("trainr.max_steps=80", "trainr.max_steps=80", "did you mean trainer?"),
    "key of the other algorithm": ("algorithm.muon_lr=1", "algorithm.muon_lr=1", "there is no such key"),
    "wrong type": ("trainer.max_steps=many", "trainer.max_steps=many", "must be a whole number"),
    "out of range": ("trainer.max_steps=0", "trainer.max_steps=0", "must be positive"),
    "null": ("trainer.max_steps=null", "trainer.max_steps=null", "Incompatible value 'None'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line_that_names_the_key(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    override, received, remedy = MISTAKES[name]
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={run}", override])
    with pytest.raises(USER_ERRORS) as caught:
        typed(run, f'resume="{run}"', override)
    line = explain(caught.value)  # type: ignore[arg-type]
    assert line.startswith(received) and remedy in line and "\n" not in line


@pytest.mark.parametrize("content", ["", "seed: 0\n", "algorithm: {kind: ppo}\n", "algorithm: [\n", "name"])
def test_a_damaged_configuration_is_told_with_its_place(
    content: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", f"resume={run}"])
    (run / "config.yaml").write_text(content)
    with pytest.raises(USER_ERRORS) as caught:
        typed(run)
    assert "config.yaml" in explain(caught.value)  # type: ignore[arg-type]


COMMANDS = {
    Config: "python /a b/train.py +experiment=warmup",
    EvaluateConfig: "python evaluate.py policy=train.py",
    EditConfig: "python /x/mmsr1/evaluation/edit/__main__.py policy=start",
}


@pytest.mark.parametrize(
    ("made_by", "node", "told"),
    [
        (Config, EvaluateConfig, "python train.py made it; go on with python train.py resume={0}, or evaluate its "),
        (Config, EditConfig, "python train.py made it"),
        (EvaluateConfig, Config, "python evaluate.py made it; go on with python evaluate.py resume={0}"),
        (EditConfig, Config, "python -m mmsr1.evaluation.edit made it; go on with python -m mmsr1.evaluation.edit "),
    ],
)
def test_a_run_of_another_program_is_refused_by_its_name(
    made_by: type[Config], node: type[Config], told: str, run: Path
) -> None:
    (run / "run.json").write_text(json.dumps({"command": COMMANDS[made_by]}))
    with pytest.raises(ConfigError) as caught:
        resumed(run, [], node)
    line = str(caught.value)
    assert line.startswith(f"resume={run}: {told.format(run)}") and "\n" not in line
    assert ("policy=" in line) is (node is EvaluateConfig)


@pytest.mark.parametrize(
    "content", [json.dumps({"command": COMMANDS[Config]}), '{"command": "python own.py"}', "{", "[]"]
)
def test_a_run_of_this_program_or_of_one_that_is_not_known_goes_on(content: str, run: Path) -> None:
    (run / "run.json").write_text(content)
    assert typed(run).resume == str(run)


def test_a_command_line_without_resume_stays_as_it_is() -> None:
    arguments = ["train.py", "-m", "seed=0,1", "hydra.run.dir=x", "data.root=resume=x"]
    assert _resuming(list(arguments)) == arguments


@pytest.mark.parametrize("folder", ["run", "two words", "a=b,c", "50% (1) [x] {y}", "it's", "uml\u00e4ut"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_the_run_directory_becomes_hydras_own(
    folder: str, quote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = started(tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    given = ["train.py", "hydra.run.dir=elsewhere", f"resume={quote}{folder}{quote}", "trainer.max_steps=80"]
    first, *overrides = _resuming(given)
    assert first == "train.py"
    parsed = {one.key_or_group: one.value() for one in OverridesParser.create().parse_overrides(overrides)}
    assert parsed == {"trainer.max_steps": 80, "resume": str(run), "hydra.run.dir": str(run)}


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["resume=nowhere"], "error: resume=nowhere: no run there; give the run directory, which holds config.yaml\n"),
        (["resume="], "error: resume=: no run there; give the run directory, which holds config.yaml\n"),
        (["resume=run/config.yaml"], "error: resume=run/config.yaml: no run there; "),
        (["-m", "resume=run"], "error: resume=run: a run is resumed alone, not in a sweep; leave out -m\n"),
        (["resume=run", "--multirun"], "error: resume=run: a run is resumed alone, not in a sweep; leave out -m\n"),
    ],
)
def test_what_cannot_be_resumed_is_refused(
    arguments: list[str], line: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run.parent)
    with pytest.raises(SystemExit) as caught:
        _resuming(["train.py", *arguments])
    said = capsys.readouterr().err
    assert caught.value.code == 2 and said.startswith(line) and said.count("\n") == 1
