"""A run that goes on from a checkpoint is the run that was never stopped; what cannot be used is refused in a line."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from mmsr1.models import checkpoint
from mmsr1.models.lora import add_adapters
from mmsr1.models.module import OptimSpec, PolicyModule
from mmsr1.models.packing import flatten
from mmsr1.models.policy import Policy
from mmsr1.models.ranks import Ranks
from mmsr1.models.sft_module import Demonstrations, SFTModule
from tests.models.conversations import conversation, image_token, patches, tiny_model, tokenizer
from tests.models.fitting import Callback, assert_equal_weights, fit
from tests.models.two_ranks import in_two_processes
from tests.tiny_model import random_weights, tiny_config

STEPS = 4


def demonstrations() -> list[Demonstrations]:
    def taught(seed: int) -> Any:
        talk = conversation(seed)
        weights = [[1.0] * len(one.token_ids) if one.sampled is not None else None for one in talk]
        return flatten(talk, patches(), image_token(), weights=weights)

    return [Demonstrations(step, [taught(60 + 2 * step), taught(61 + 2 * step)]) for step in range(STEPS)]


def module(seed: int, frozen: bool = False, adapters: bool = False, lr: float = 1e-3, **optim: Any) -> SFTModule:
    model = tiny_model(seed)
    if adapters:
        torch.manual_seed(seed)
        add_adapters(model, rank=4, alpha=8.0)
    spec = OptimSpec(lr, **{"schedule": "cosine", "total_steps": STEPS, "weight_decay": 0.1, **optim})
    return SFTModule(Policy(model), patches(), spec, 400, frozen)


KINDS: dict[str, Callable[[int], SFTModule]] = {
    "adamw": lambda seed: module(seed),
    "low memory": lambda seed: module(seed, moments="bfloat16"),
    "muon": lambda seed: module(seed, muon_lr=1e-2),
    "frozen": lambda seed: module(seed, frozen=True, moments="bfloat16", muon_lr=1e-2),
    "adapters": lambda seed: module(seed, adapters=True),
}


def scramble(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    random.gauss(0, 1)  # leaves a second number behind, which is state too
    np.random.randn()


def drawn() -> list[Any]:
    """From the generators. Python's is only looked at: beartype draws from it as it checks what tests call."""
    _, internal, second = random.getstate()
    return [torch.rand(3), torch.randn(3), np.random.rand(3).tolist(), np.random.randn(), internal[:-1], second]


def inside(one: Any) -> list[Any]:
    """Everything about the training of a module that moves; draws from the generators too."""
    trainer = one.trainer
    optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
    schedules = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    weights = dict(one.policy.named_parameters())
    return copy.deepcopy([weights, optimizers, schedules, drawn()])


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bit by bit, types included."""
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, Sequence) and not isinstance(one, str):
        assert len(one) == len(other), where
        for number, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, theirs, f"{where}.{number}")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), where
    else:
        assert type(one) is type(other) and one == other, where


class Saves(Callback):
    """Writes a checkpoint when `done` steps are done."""

    def __init__(self, folder: Path, done: int) -> None:
        self.folder, self.done = folder, done
        self.path, self.then = folder, []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        if self.done == 0:
            self.save(pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch.step + 1 == self.done:
            self.save(pl_module)

    def save(self, one: Any) -> None:
        scramble(17)
        self.path = one.write_checkpoint(self.folder, self.done, {"reward": 0.5, "record": {"best": None}})
        self.then = inside(one)


class Resumes(Callback):
    def __init__(self, path: Path) -> None:
        self.path, self.then = path, []
        self.state: dict[str, Any] = {}

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        scramble(18)
        self.state = pl_module.restore(self.path)
        self.then = inside(pl_module)


@pytest.mark.parametrize(("kind", "done"), [*((kind, 2) for kind in KINDS), ("low memory", 0), ("muon", 0)])
def test_a_resumed_run_is_the_run_that_was_not_stopped(kind: str, done: int, tmp_path: Path) -> None:
    whole, resumed = KINDS[kind](0), KINDS[kind](5)
    saves = Saves(tmp_path, done)
    fit(whole, demonstrations(), saves)
    assert saves.path == tmp_path / f"{done:08d}" and saves.path.is_dir()
    resumes = Resumes(saves.path)
    fit(resumed, demonstrations()[done:], resumes)
    assert resumes.state["step"] == done and resumes.state["record"] == {"best": None}
    assert_same(saves.then, resumes.then)
    assert_same(whole.figures, resumed.figures)
    assert_equal_weights(whole, resumed)


@pytest.mark.parametrize("done", [0, 2])
def test_writing_a_checkpoint_does_not_change_the_run(done: int, tmp_path: Path) -> None:
    class Scrambles(Saves):
        def save(self, one: Any) -> None:
            scramble(17)
            drawn()

    saved, free = KINDS["low memory"](0), KINDS["low memory"](0)
    for one, saves in ((saved, Saves(tmp_path, done)), (free, Scrambles(tmp_path, done))):
        torch.manual_seed(16)
        fit(one, demonstrations(), saves)
    assert_equal_weights(saved, free)


def test_a_learning_rate_schedule_or_weight_decay_given_anew_counts(saved: Path) -> None:
    """The checkpoint says only how far the schedule is: after two of now eight steps."""
    one = module(5, lr=3e-4, moments="bfloat16", weight_decay=0.5, schedule="linear", total_steps=8)
    resumes = Resumes(saved)
    fit(one, demonstrations()[2:3], resumes)
    (resumed,), (after,) = resumes.then[1][0]["param_groups"], one.trainer.optimizers[0].param_groups
    assert resumed["weight_decay"] == 0.5 and resumed["lr"] == pytest.approx(3e-4 * 6 / 8)
    assert after["weight_decay"] == 0.5 and after["lr"] == pytest.approx(3e-4 * 5 / 8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two steps; copy it before damaging it."""
    saves = Saves(tmp_path_factory.mktemp("checkpoints"), 2)
    fit(KINDS["low memory"](0), demonstrations()[:2], saves)
    return saves.path


def restored(path: Path, one: PolicyModule) -> PolicyModule:
    """By one process, without a trainer."""
    checkpoint.restore(path, one.policy, one.configure_optimizers()[0], Ranks())
    return one


def other_size() -> SFTModule:
    config = tiny_config(tokenizer(), tied=True)
    config.text_config.intermediate_size = 160
    return SFTModule(Policy(random_weights(config, 0)), patches(), OptimSpec(1e-3, "constant", 1), 400, False)


OTHERS: dict[str, tuple[Callable[[], PolicyModule], str]] = {
    "of another size": (other_size, "another model"),
    "with fewer trained parameters": (lambda: module(0, frozen=True, moments="bfloat16"), "another model"),
    "with adapters": (lambda: module(0, adapters=True, moments="bfloat16"), "another model"),
    "with more optimisers": (lambda: module(0, muon_lr=1e-2, moments="bfloat16"), "with 1 optimisers, not 2"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_checkpoint_of_another_model_is_refused_in_one_line(name: str, saved: Path) -> None:
    make, message = OTHERS[name]
    with pytest.raises(checkpoint.CheckpointError, match=f"{message}.*run's own model") as caught:
        restored(saved, make())
    assert "\n" not in str(caught.value)


def test_the_weights_alone_can_be_read(saved: Path) -> None:
    one = KINDS["adamw"](5)
    checkpoint.read_weights(saved, one.policy)
    assert_equal_weights(one, restored(saved, KINDS["low memory"](6)))


def sharded(one: PolicyModule) -> PolicyModule:
    """Over the two ranks, without a trainer."""
    one._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    one.configure_model()
    assert all(isinstance(parameter, DTensor) for parameter in one.policy.parameters())
    return one


def whole(value: Any) -> Any:
    """Nested state with the shards of each tensor put together."""
    if isinstance(value, Mapping):
        return {key: whole(one) for key, one in value.items()}
    if isinstance(value, list):
        return [whole(one) for one in value]
    return value.detach().full_tensor() if isinstance(value, DTensor) else copy.deepcopy(value)


def held(one: PolicyModule, optimizers: Sequence[Any]) -> list[Any]:
    return whole([dict(one.policy.named_parameters()), [optimizer.state_dict() for optimizer in optimizers]])


def from_one_to_two(rank: int, folder: Path) -> dict[str, Any]:
    """Restore what one process wrote, and write it again as two; by kind what each then holds."""
    found = {}
    for kind in SHARDED:
        one = sharded(KINDS[kind](5))
        optimizers, ranks = one.configure_optimizers()[0], Ranks.current()
        checkpoint.restore(folder / kind / "00000002", one.policy, optimizers, ranks)
        torch.manual_seed(30 + rank)
        checkpoint.write(folder / kind, 3, one.policy, optimizers, {"reward": 0.25}, ranks)
        found[kind] = held(one, optimizers)
    drawn = torch.rand(4)
    again = sharded(KINDS[kind](6))
    checkpoint.restore(folder / kind / "00000003", again.policy, again.configure_optimizers()[0], ranks)
    assert torch.equal(drawn, torch.rand(4)), "each rank goes on with its own random numbers"
    return found


SHARDED = ("frozen", "adapters")  # the first one has both kinds of optimisers


def test_two_processes_read_what_one_wrote_and_one_what_two_wrote(tmp_path: Path) -> None:
    expected = {}
    for kind in SHARDED:
        one, saves = KINDS[kind](0), Saves(tmp_path / kind, 2)
        fit(one, demonstrations()[:2], saves)
        expected[kind] = held(one, one.trainer.optimizers)
    for found in in_two_processes(from_one_to_two, tmp_path):
        assert_same(found, expected)
    for kind in SHARDED:
        path = tmp_path / kind / "00000003"
        assert len([*path.glob("weights/*.distcp")]) == 2 == len([*path.glob("rng-*.json")])
        one = KINDS[kind](7)
        optimizers = one.configure_optimizers()[0]
        assert checkpoint.restore(path, one.policy, optimizers, Ranks())["reward"] == 0.25
        assert_same(held(one, optimizers), expected[kind])
