"""`policy=openai` means the engine that asks an API, also for the one job of a sweep that has it."""

from __future__ import annotations

from typing import Any

import pytest

from mmsr1 import cli
from mmsr1.assembly.chosen import with_engine, with_policy
from mmsr1.config.evaluate import EvaluateConfig, register

API = ["rollout.api.url=http://x", "rollout.api.options.model=NAME"]


def composed(arguments: list[str]) -> EvaluateConfig:
    register()
    config: Any = cli.checked(cli.composed(arguments, "evaluate"))
    return config


def test_other_policies_and_keys_change_nothing() -> None:
    arguments = ["evaluate.py", "-m", "policy=start,x/openai", "rollout=transformers", *API]
    assert with_engine(arguments) == arguments
    assert with_engine(["evaluate.py"]) == ["evaluate.py"]


@pytest.mark.parametrize("engine", [[], ["rollout=transformers"], ["rollout=openai"]], ids=["none", "another", "same"])
def test_each_job_of_a_sweep_has_the_engine_of_its_policy(engine: list[str]) -> None:
    sweep = with_engine(["-m", "policy=start,openai", *engine, *API])
    assert sweep[:2] == ["-m", "policy=start,openai"]
    register()
    jobs = {policy: [f"policy={policy}", *sweep[2:]] for policy in ("start", "openai")}
    for arguments in jobs.values():  # what Hydra does with each before it starts the job
        cli.composed(arguments, "evaluate")
    found = {policy: with_policy(composed(with_engine(arguments))) for policy, arguments in jobs.items()}
    assert found["start"].rollout.engine == ("transformers" if engine == ["rollout=transformers"] else "vllm")
    assert found["openai"].rollout.engine == "openai"
    assert found["openai"].rollout.api.options["model"] == "NAME"


def test_an_engine_that_does_not_apply_is_told(capsys: Any) -> None:
    assert with_engine(["policy=openai", "rollout=vllm"]) == ["policy=openai", "rollout=openai"]
    assert capsys.readouterr().err == "policy=openai: asks an API, so that rollout=vllm does not apply to it\n"
    with_engine(["policy=openai", "rollout=openai"])
    assert capsys.readouterr().err == ""
