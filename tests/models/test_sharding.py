"""A GRPO step of two processes under FSDP2 is that of one, also where their work differs; and mixed precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from mmsr1.batch import Batch
from mmsr1.models.buffer import RolloutBuffer
from mmsr1.models.grpo import LossSpec
from mmsr1.models.grpo_module import Encoding, GRPOModule
from mmsr1.models.lora import add_adapters
from mmsr1.models.module import FLOAT32, OptimSpec, Sharding
from mmsr1.models.packing import flatten, pack
from mmsr1.models.plan_step import MiniBatchPlan, plan_step
from mmsr1.models.policy import Policy
from mmsr1.types import Group, StepPrompts
from tests.models.conversations import (
    as_sampled_by,
    conversation,
    image_token,
    patches,
    text_conversation,
    tiny_model,
    tokenizer,
)
from tests.models.fitting import Callback, fit
from tests.models.test_grpo_module import Feed, group
from tests.models.two_ranks import RANKS, in_two_processes
from tests.tiny_model import random_weights, tiny_config

Steps = Sequence[Sequence[Group]]
START = tiny_model()
TALKS = [as_sampled_by(START, conversation(seed)) for seed in range(40, 50)]
TEXTS = [as_sampled_by(START, text_conversation(seed)) for seed in (50, 51)]
FLAT = group(TALKS[4:6], [0.0, 0.0])


def pair(first: int) -> Group:
    return group(TALKS[first : first + 2], [1.0, -1.0])


def untied_model() -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return random_weights(tiny_config(tokenizer(), tied=False), 0)


def module(
    lr: float = 1e-3,
    mini_batches: int = 1,
    kl_weight: float = 0.0,
    token_budget: int = 400,
    adapters: bool = False,
    checkpointing: bool = False,
    freeze_vision: bool = False,
    tied: bool = True,
    sharding: Sharding = FLOAT32,
    **optim: Any,
) -> GRPOModule:
    model = tiny_model() if tied else untied_model()
    if adapters:
        torch.manual_seed(3)
        add_adapters(model, rank=4, alpha=8.0)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return GRPOModule(
        Policy(model),
        RolloutBuffer(),
        Encoding(patches(), image_token(), 2, frozenset(tokenizer().added_tokens_decoder)),
        LossSpec(kl_weight=kl_weight),
        OptimSpec(lr, "constant", total_steps=10, **optim),
        mini_batches,
        token_budget,
        None,
        freeze_vision,
        sharding,
        max_staleness=9,
    )


@dataclass(frozen=True)
class Scenario:
    """The groups of each step, the settings of the module, and those that only the sharded one has.

    An update may be off by `noise` of its size.
    """

    steps: Steps
    settings: dict[str, Any] = field(default_factory=dict)
    sharded: dict[str, Any] = field(default_factory=dict)
    noise: float = 0.0


SCENARIOS = {
    "several mini- and micro-batches": Scenario(
        [[pair(0), pair(2), pair(4)], [pair(6), pair(8)]], {"mini_batches": 2, "token_budget": 150}
    ),
    "a rank without a group": Scenario([[pair(0)]]),
    # Nothing but learned tokens reaches a head of its own; a 7B model has one.
    "a rank without a group, and a head that is not the embedding": Scenario([[pair(0)]], {"tied": False}),
    "a rank without an image": Scenario([[pair(0), group(TEXTS, [1.0, -1.0])]], {"lr": 1e-4}),
    "nothing to learn": Scenario([[FLAT, FLAT]]),
    "a reference": Scenario([[pair(0), pair(2)], [pair(4)]], {"kl_weight": 0.5}),
    "adapters": Scenario([[pair(0), pair(2)], [pair(4)]], {"kl_weight": 0.5, "adapters": True, "lr": 1e-2}),
    "activation checkpointing and offload": Scenario(
        [[pair(0), pair(2)]], {}, {"checkpointing": True, "sharding": Sharding(offload=True)}
    ),
    "moments in bfloat16": Scenario([[pair(0), pair(2)]], {"moments": "bfloat16"}),
    # Muon multiplies in bfloat16, and blows up the rounding of what is small in a gradient; most so in the vision tower
    # with its gradients of low rank. One process is as far from a computation in double precision as two are.
    "muon": Scenario([[pair(0), pair(2)]], {"muon_lr": 1e-2, "freeze_vision": True}, noise=0.2),
}


@dataclass(frozen=True)
class Trained:
    figures: list[dict[str, float]]
    weights: dict[str, Tensor]


def trained(one: GRPOModule, steps: Steps, trainer: Callable[[Any], Any] | None = None) -> Trained:
    feed, prompts = Feed(steps), [StepPrompts(step, ()) for step in range(len(steps))]
    if trainer is None:
        fit(one, prompts, feed)
    else:
        loader: Any = torch.utils.data.DataLoader(prompts, batch_size=None)  # type: ignore[arg-type]
        trainer(feed).fit(one, loader)
    return Trained(feed.figures, {name: tensor.clone() for name, tensor in one.full_weights()})


def in_both(rank: int, folder: Path) -> dict[str, Trained]:
    """All scenarios, with the trainer of train.py."""
    from train import _trainer

    found = {}
    for name, scenario in SCENARIOS.items():
        sharding = scenario.sharded.get("sharding", Sharding())
        knobs = SimpleNamespace(accelerator="cpu", devices=RANKS, num_nodes=1, offload=sharding.offload)
        config: Any = SimpleNamespace(trainer=knobs, logger=SimpleNamespace(project=None))
        one = module(**scenario.settings, **scenario.sharded)
        found[name] = trained(one, scenario.steps, lambda feed, config=config: _trainer(config, folder, feed))
        assert all(isinstance(parameter, DTensor) for parameter in one.policy.parameters())
    return found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """As in the two processes; a tiny model gains nothing from more, and they wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Trained]]:
    return in_two_processes(in_both, tmp_path_factory.mktemp("both"))


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_do_what_one_does(name: str, both: list[dict[str, Trained]]) -> None:
    scenario = SCENARIOS[name]
    alone = trained(module(**scenario.settings), scenario.steps)
    start = {tensor: weight.detach() for tensor, weight in module(**scenario.settings).full_weights()}
    for found in (rank[name] for rank in both):
        assert len(found.figures) == len(scenario.steps)
        for figures, expected in zip(found.figures, alone.figures, strict=True):
            assert figures == pytest.approx(expected, rel=1e-5, abs=1e-5)
        assert found.weights.keys() == alone.weights.keys()
        for tensor, weight in found.weights.items():
            expected, update = alone.weights[tensor], alone.weights[tensor] - start[tensor]
            off = weight - expected
            assert off.abs().max() < 1e-5 or off.norm() < scenario.noise * update.norm(), tensor
    moved = max((weight - start[tensor]).abs().max().item() for tensor, weight in alone.weights.items())
    assert moved == 0 if name == "nothing to learn" else moved > 0.9 * scenario.settings.get("lr", 1e-3)


def test_the_scenarios_are_what_their_names_say() -> None:
    """How the work of each falls to the two ranks."""

    def parts(name: str) -> list[list[MiniBatchPlan]]:
        one = module()
        budget = SCENARIOS[name].settings.get("token_budget", 400)
        count = SCENARIOS[name].settings.get("mini_batches", 1)
        groups = SCENARIOS[name].steps[0]
        return [plan_step(groups, count, budget, rank, RANKS, one._expanded_length) for rank in range(RANKS)]

    several = parts("several mini- and micro-batches")
    assert [len(rank) for rank in several] == [2, 2]
    assert several[0][0].count > 1 and 0 in [len(rank[1].micro_batches) for rank in several]
    assert [len(rank[0].micro_batches) for rank in parts("a rank without a group")] == [1, 0]
    shown = [
        sum(len(segment.images) for part in rank[0].micro_batches for work in part for segment in work.episode.segments)
        for rank in parts("a rank without an image")
    ]
    assert sorted(shown)[0] == 0 < sorted(shown)[1]
    assert parts("nothing to learn") == [[], []]


def in_bfloat16(one: Any) -> Any:
    """The same parameters rounded; buffers stay as they are, as the frequencies of positions have to."""
    for parameter in one.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return one


MIXED = Sharding(compute_dtype=torch.bfloat16)


class Looks(Callback):
    """Log-probs of some conversations before the first step."""

    logprobs: Tensor

    @torch.no_grad()
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.logprobs = pl_module.policy(looked_at()).logprobs_T


def looked_at() -> Batch:
    return pack([flatten(talk, patches(), image_token()) for talk in TALKS[:2]], patches())


def test_mixed_precision_computes_in_bfloat16_and_keeps_updates_that_bfloat16_would_lose() -> None:
    looks, feed, prompts = Looks(), Feed([[pair(0)]]), [StepPrompts(0, ())]
    mixed, exact = module(lr=1e-6, sharding=MIXED), module(lr=1e-6)
    fit(mixed, prompts, looks, feed)
    trained(exact, [[pair(0)]])
    assert {parameter.dtype for parameter in mixed.policy.parameters()} == {torch.float32}
    mask = looked_at().loss_mask_T
    with torch.no_grad():
        half, single = Policy(in_bfloat16(tiny_model()))(looked_at()), Policy(START)(looked_at())
    assert (looks.logprobs - half.logprobs_T)[mask].abs().max() < 2e-2
    assert (looks.logprobs - single.logprobs_T)[mask].abs().max() > 1e-3, "computed in float32 all the same"
    start = dict(START.named_parameters())
    for (name, weight), (_, other) in zip(mixed.full_weights(), exact.full_weights(), strict=True):
        update, expected = weight - start[name], other - start[name]
        assert (update * expected > 0).float().mean() > 0.8, f"{name} goes elsewhere than in float32"
        kept = (weight.to(torch.bfloat16) != start[name].to(torch.bfloat16)).float().mean()
        assert 5e-7 < update.abs().median() < 2e-6 and kept < 0.1


def test_the_reference_of_a_run_in_mixed_precision_is_the_policy_at_its_start() -> None:
    found = trained(module(kl_weight=0.5, sharding=MIXED), [[pair(0)]])
    assert found.figures[0]["kl"] == pytest.approx(0, abs=1e-9)
