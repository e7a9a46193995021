"""Whom an evaluation or a question is for: the policy that the user names."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mmsr1.config import HUB_ID, check
from mmsr1.config.edit import EditConfig
from mmsr1.config.evaluate import AskConfig, EvaluateConfig

C = TypeVar("C", EvaluateConfig, AskConfig, EditConfig)

_WEIGHTS = ("*.safetensors", "*.bin")
INSTRUCTING = ("on_demand", "on_demand_crops")  # prompts that a workflow's own take the place of


def with_policy(config: C) -> C:
    """The configuration with the policy that `policy` names. Raises ConfigError."""
    asks_api = config.rollout.engine == "openai"
    remedy = "goes with rollout=openai, and only with it"
    check((config.policy == "openai") == asks_api, "policy", config.policy, remedy)
    if config.policy in ("start", "openai"):
        return config
    folder = Path(config.policy)
    trained = folder / "policy" if (folder / "policy" / "config.json").is_file() else folder
    hub = not folder.exists() and re.fullmatch(HUB_ID, config.policy)  # checked where it is loaded
    there = (trained / "config.json").is_file() or bool(hub)
    check(
        there,
        "policy",
        config.policy,
        "holds no policy; give a run directory that has one, a model's folder or a hub id",
    )
    weights = not trained.is_dir() or any(file for kind in _WEIGHTS for file in trained.glob(kind))
    check(weights, "policy", config.policy, f"{trained} holds no weights ({', '.join(_WEIGHTS)}); give a whole model")
    return replace(config, model=replace(config.model, path=str(trained)))


def with_prompts(config: EvaluateConfig) -> EvaluateConfig:
    """The configuration with the prompts of its workflow, for models that follow instructions."""
    if config.workflow.prompts is None or config.rollout.prompts not in INSTRUCTING:
        return config
    return replace(config, rollout=replace(config.rollout, prompts=config.workflow.prompts))


def with_engine(arguments: list[str]) -> list[str]:
    """The command line, where `policy=openai` means the engine that asks an API.

    A sweep over it and others is composed by Hydra with one engine for all, so there `++` has the options of the API
    pass beside any engine; each job comes here again with its own policy.
    """
    named = [argument.removeprefix("policy=") for argument in arguments if argument.startswith("policy=")]
    policies = named[-1].split(",") if named else []
    if "openai" not in policies:
        return arguments
    if policies != ["openai"]:
        kept = [argument for argument in arguments if argument != "rollout=openai"]
        return [f"++{one}" if one.startswith("rollout.api.options.") else one for one in kept]
    others = [one for one in arguments if one.startswith("rollout=") and one != "rollout=openai"]
    for other in others:
        sys.stderr.write(f"policy=openai: asks an API, so that {other} does not apply to it\n")
    kept = [argument for argument in arguments if argument not in (*others, "rollout=openai")]
    return [*kept, "rollout=openai"]
