"""Checkpoints as files: written whole or not at all, refused in a line where they are damaged, removed when old."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmsr1.models import checkpoint
from mmsr1.models.ranks import Ranks


def policy(value: float) -> tuple[torch.nn.Linear, list[torch.optim.Optimizer]]:
    """A layer of equal weights, and its optimiser after a step."""
    layer = torch.nn.Linear(16, 16, bias=False)
    layer.weight.grad = torch.ones(16, 16)
    optimizer = torch.optim.AdamW(layer.parameters())
    optimizer.step()
    optimizer.zero_grad()
    torch.nn.init.constant_(layer.weight, value)
    return layer, [optimizer]


def write(folder: Path, step: int, reward: float | None = None) -> Path:
    """The weights tell step and reward."""
    return checkpoint.write(folder, step, *policy(step + (reward or 0)), {"reward": reward}, Ranks())


def read(path: Path) -> float:
    layer, optimizers = policy(-1.0)
    checkpoint.restore(path, layer, optimizers, Ranks())
    (value,) = set(layer.weight.flatten().tolist())
    return value


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def overwritten(name: str, place: float) -> Callable[[Path], Any]:
    """One byte of a file is another one."""

    def damage(path: Path) -> None:
        content = bytearray((path / name).read_bytes())
        content[int(place * len(content))] ^= 0xFF
        (path / name).write_bytes(content)

    return damage


def shortened(name: str) -> Callable[[Path], Any]:
    return lambda path: (path / name).write_bytes((path / name).read_bytes()[:-1])


def stated(content: str) -> Callable[[Path], Any]:
    return lambda path: (path / "state.json").write_text(content)


TENSORS = "weights/__0_0.distcp"
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a byte less": (shortened(TENSORS), rf"{TENSORS} has \d+ bytes instead of \d+; remove this folder"),
    "no tensors": (lambda path: (path / TENSORS).unlink(), f"{TENSORS} is missing; remove this folder"),
    "no generators": (lambda path: (path / "rng-0.json").unlink(), "rng-0.json is missing"),
    "another weight": (overwritten(TENSORS, 0.2), f"{TENSORS} is damaged; remove this folder to use the one before"),
    "another moment": (overwritten(TENSORS, 0.9), f"{TENSORS} is damaged"),
    "another layout": (overwritten("weights/.metadata", 0.3), "weights/.metadata is damaged"),
    "other generators": (overwritten("rng-0.json", 0.5), "rng-0.json is damaged"),
    "no state": (lambda path: (path / "state.json").unlink(), "not a checkpoint: no state.json in it"),
    "nothing": (shutil.rmtree, "not a checkpoint"),
    "half a state": (shortened("state.json"), "state.json is damaged; remove this folder to use the one before"),
    "an empty state": (stated(""), "state.json is damaged"),
    "a list": (stated("[]"), "state.json is damaged"),
    "a state of nothing": (stated("{}"), "state.json is damaged"),
    "a state of other files": (stated('{"format": 1, "files": [7]}'), "state.json is damaged"),
    "a newer format": (stated('{"format": 2}'), "format 2, newer than this program's 1; use the version that wrote it"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    path = write(tmp_path, 2)
    assert read(path) == 2
    damage, message = DAMAGE[name]
    damage(path)
    layer, optimizers = policy(-1.0)
    with pytest.raises(checkpoint.CheckpointError, match=message) as caught:
        checkpoint.restore(path, layer, optimizers, Ranks())
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert (layer.weight == -1.0).all()


def test_moments_of_another_split_of_the_parameters_are_refused_in_one_line(tmp_path: Path) -> None:
    """As many optimisers, but of other parameters; the reason comes from torch, and is cut to a line."""
    model = torch.nn.Sequential(*(policy(value)[0] for value in (1.0, 2.0)))
    optimizers = [torch.optim.AdamW(layer.parameters()) for layer in model]
    model(torch.ones(1, 16)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    path = checkpoint.write(tmp_path, 1, model, optimizers, {}, Ranks())
    other = [torch.optim.AdamW(layer.parameters()) for layer in reversed(model)]
    with pytest.raises(checkpoint.CheckpointError, match="not readable: .*optimizer_0") as caught:
        checkpoint.restore(path, model, other, Ranks())
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)


class Killed(BaseException):
    """Stands in for SIGKILL: nothing that the program does about errors comes after it."""


MOMENTS = {
    "before the tensors": (checkpoint, "save"),
    "after the tensors": (checkpoint, "save"),
    "before the state": (checkpoint, "fingerprint"),
    "before the name": (Path, "write_text"),  # the state is the last file
}


@pytest.mark.parametrize("step", [4, 6])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_write_that_is_cut_off_leaves_the_older_checkpoints_as_they_were(
    moment: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a new step, or of one that is there, as when a run has been resumed from an older one."""
    for earlier in (2, 4):
        write(tmp_path, earlier, reward=0.5)
    owner, name = MOMENTS[moment]
    real = getattr(owner, name)

    def cut(*args: Any, **kwargs: Any) -> None:
        if moment != "before the tensors":
            real(*args, **kwargs)
        if moment != "before the name" or args[0].name.startswith("state"):
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(owner, name, cut)
        write(tmp_path, step, reward=0.25)
    assert names(tmp_path) == [f".{step:08d}.new", "00000002", "00000004"]
    assert checkpoint.complete(tmp_path) == [tmp_path / "00000002", tmp_path / "00000004"]
    assert checkpoint.best(tmp_path) == tmp_path / "00000002"
    assert [read(path) for path in checkpoint.complete(tmp_path)] == [2.5, 4.5]
    write(tmp_path, 8)
    assert names(tmp_path) == ["00000002", "00000004", "00000008"]
    assert read(write(tmp_path, 8, reward=0.125)) == 8.125


def test_the_last_ones_and_the_best_stay(tmp_path: Path) -> None:
    assert checkpoint.complete(tmp_path / "none") == [] and checkpoint.best(tmp_path) is None
    rewards = {9: 0.25, 10: 0.5, 99: None, 100: 0.5, 101: 0.125}
    for step, reward in rewards.items():
        write(tmp_path, step, reward)
    assert [int(path.name) for path in checkpoint.complete(tmp_path)] == [*rewards]
    assert checkpoint.best(tmp_path) == tmp_path / "00000010"
    for keep, left in ((7, [9, 10, 99, 100, 101]), (2, [10, 100, 101]), (1, [10, 101])):
        checkpoint.prune(tmp_path, keep)
        assert names(tmp_path) == [f"{step:08d}" for step in left]
    write(tmp_path, 102, 0.75)
    checkpoint.prune(tmp_path, 1)
    assert names(tmp_path) == ["00000102"]


def test_a_checkpoint_that_is_half_removed_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (2, 4):
        write(tmp_path, step)

    def cut(folder: Path) -> None:
        (folder / "state.json").unlink()
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(shutil, "rmtree", cut)
        checkpoint.prune(tmp_path, 1)
    assert checkpoint.complete(tmp_path) == [tmp_path / "00000004"] and len(names(tmp_path)) == 2
    write(tmp_path, 6)
    assert names(tmp_path) == ["00000004", "00000006"]
