"""AdamW with bfloat16 moments: it does what torch's does up to the rounding, and the rounding is right on average."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter

from mmsr1.models.adamw import LowMemoryAdamW, stochastic_bfloat16
from tests.models.two_ranks import in_two_processes

SHAPES = ((64, 48), (48,))


def parameters(seed: int = 0) -> list[Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, held: list[Parameter], count: int, seed: int = 1) -> None:
    """Update by gradients of several magnitudes; the same ones for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in held:
            scale = 10.0 ** torch.linspace(-4, 1, parameter.shape[-1])
            parameter.grad = scale * (0.5 + torch.randn(parameter.shape, generator=generator))
        optimizer.step()


def flat(held: list[Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in held])


def test_the_first_step_is_that_of_torch() -> None:
    """The moments are rounded after they have been used."""
    ours, theirs = parameters(), parameters()
    settings = {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    steps(LowMemoryAdamW(ours, **settings), ours, 1)
    steps(torch.optim.AdamW(theirs, **settings), theirs, 1)
    torch.testing.assert_close(flat(ours), flat(theirs), atol=1e-6, rtol=0)
    assert (flat(ours) - flat(parameters())).abs().mean() > 9e-3


def test_fifty_steps_are_those_of_torch_up_to_the_rounding_of_the_moments() -> None:
    """A moment is off by at most 2^-7, mostly less and in either direction, so updates by about 1 % of their size."""
    torch.manual_seed(2)
    start, ours, theirs = flat(parameters()), parameters(), parameters()
    steps(LowMemoryAdamW(ours, lr=1e-3, weight_decay=0.01), ours, 50)
    steps(torch.optim.AdamW(theirs, lr=1e-3, weight_decay=0.01), theirs, 50)
    travelled, off = flat(theirs) - start, flat(ours) - flat(theirs)
    assert travelled.abs().mean() > 0.02
    assert 1e-4 < off.norm() / travelled.norm() < 0.01
    standard_error = off.std() / math.sqrt(len(off))
    assert off.mean().abs() < 4 * standard_error, "a bias would add up over a run"


def test_weight_decay_is_exact() -> None:
    ours, theirs = parameters(), parameters()
    optimizer = LowMemoryAdamW(ours, lr=1e-2, weight_decay=0.3)
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.3)
    for parameter in (*ours, *theirs):
        parameter.grad = torch.zeros_like(parameter)
    for _ in range(7):
        optimizer.step()
        reference.step()
    assert torch.equal(flat(ours), flat(theirs))
    torch.testing.assert_close(flat(ours), flat(parameters()) * (1 - 0.003) ** 7, atol=0, rtol=1e-6)


def neighbours(value: float) -> tuple[float, float]:
    """The bfloat16 numbers (8 significant bits) below and above, in double precision."""
    spacing = 2.0 ** (math.frexp(value)[1] - 8)
    low = math.floor(value / spacing) * spacing
    return low, low + spacing


VALUES = (1.001, 1.0078, -1.001, 0.1, 1.9999, -3.14159, 1e-30, 12345.678, -2.3e-12, 1 + 2**-23)


def test_a_number_becomes_one_of_its_two_neighbours_and_is_kept_on_average() -> None:
    torch.manual_seed(3)
    count = 100_000
    for value in torch.tensor(VALUES).tolist():  # as float32 holds them
        low, high = neighbours(value)
        drawn = stochastic_bfloat16(torch.full((count,), value)).double()
        assert set(drawn.unique().tolist()) <= {low, high}, value
        share = (value - low) / (high - low)
        standard_error = (high - low) * math.sqrt(share * (1 - share) / count)
        assert abs(drawn.mean().item() - value) < 4 * standard_error, value


def test_what_bfloat16_holds_is_not_changed() -> None:
    torch.manual_seed(4)
    special = [0.0, -0.0, 1.0, -1.0, 255.0, 2.0**-126, 2.0**-133, 3.3895313892515355e38, math.inf, -math.inf]
    held = torch.cat([torch.randn(10_000) * 10.0 ** torch.randint(-20, 20, (10_000,)), torch.tensor(special)])
    held = held.to(torch.bfloat16)
    for _ in range(5):
        assert torch.equal(stochastic_bfloat16(held.float()).view(torch.int16), held.view(torch.int16))
    assert stochastic_bfloat16(torch.tensor([math.nan])).isnan().all()


def test_the_second_moment_moves_where_the_nearest_number_is_always_the_old_one() -> None:
    """From 1 towards a squared gradient of 2, by 0.001 a step; neighbours of 1 are 0.0078 away."""
    torch.manual_seed(5)
    stuck = torch.ones((), dtype=torch.bfloat16)
    for _ in range(300):
        stuck = (0.999 * stuck.float() + 0.001 * 2.0).to(torch.bfloat16)
    assert stuck == 1
    (parameter,) = held = [Parameter(torch.zeros(4096))]
    optimizer = LowMemoryAdamW(held, lr=0.0)
    parameter.grad = torch.full((4096,), math.sqrt(2.0))
    optimizer.step()
    optimizer.state[parameter]["exp_avg_sq"].fill_(1.0)
    for _ in range(300):
        optimizer.step()
    # Of one element: 300 roundings, each with a standard deviation of at most half the distance of the neighbours.
    standard_error = math.sqrt(300) * 2**-8 / math.sqrt(4096)
    mean = optimizer.state[parameter]["exp_avg_sq"].double().mean().item()
    assert mean == pytest.approx(2 - 0.999**300, abs=4 * standard_error)


def test_the_moments_take_half_the_memory() -> None:
    def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
        return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]

    ours, theirs = parameters(), parameters()
    small, large = LowMemoryAdamW(ours, lr=1e-3), torch.optim.AdamW(theirs, lr=1e-3)
    steps(small, ours, 2)
    steps(large, theirs, 2)
    assert {one.dtype for one in moments(small)} == {torch.bfloat16}
    sizes = [sum(one.numel() * one.element_size() for one in moments(which)) for which in (small, large)]
    assert 2 * sizes[0] == sizes[1] == 8 * (64 * 48 + 48)


def test_a_saved_state_goes_on_as_it_would_have_and_stays_in_bfloat16() -> None:
    """torch's own loading gives every moment the type of its parameter."""
    held = parameters()
    optimizer = LowMemoryAdamW(held, lr=1e-2, betas=(0.7, 0.9), weight_decay=0.1)
    torch.manual_seed(6)
    steps(optimizer, held, 3)
    again = [Parameter(parameter.detach().clone()) for parameter in held]
    other = LowMemoryAdamW(again, lr=5.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert mine.keys() == theirs.keys()
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
            assert tensor.data_ptr() != theirs[name].data_ptr()
    for chosen, its in ((optimizer, held), (other, again)):
        torch.manual_seed(7)
        steps(chosen, its, 3, seed=8)
    assert torch.equal(flat(held), flat(again))
    with pytest.raises(ValueError, match="parameter group"):
        LowMemoryAdamW(held[:1], lr=1e-2).load_state_dict(optimizer.state_dict())


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    held = parameters()
    held[0].grad = torch.ones_like(held[0])
    optimizer = LowMemoryAdamW(held, lr=1e-2, weight_decay=0.5)
    assert optimizer.step(lambda: 0.25) == 0.25
    assert torch.equal(held[1], parameters()[1]) and held[1] not in optimizer.state
    assert not torch.equal(held[0], parameters()[0])


SHARDED = ((5, 6), (1, 8), (8,))  # an odd number of rows, and a rank without any


def whole_tensors() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randn(shape, generator=generator) for shape in SHARDED]


def exact_gradients() -> list[list[Tensor]]:
    """Three steps of +-1 and +-1/2: with betas of 1/2 and 3/4 no moment needs more than 8 significant bits."""
    generator = torch.Generator().manual_seed(10)
    choices = torch.tensor([1.0, -1.0, 0.5, -0.5])
    return [[choices[torch.randint(4, shape, generator=generator)] for shape in SHARDED] for _ in range(3)]


EXACT = {"lr": 1e-2, "betas": (0.5, 0.75), "weight_decay": 0.1}


def sharded_steps(rank: int, folder: Path) -> list[Tensor]:
    mesh = init_device_mesh("cpu", (2,))
    held = [Parameter(distribute_tensor(tensor, mesh, [Shard(0)])) for tensor in whole_tensors()]
    optimizer = LowMemoryAdamW(held, **EXACT)
    torch.manual_seed(rank)
    for gradients in exact_gradients():
        for parameter, gradient in zip(held, gradients, strict=True):
            parameter.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        optimizer.step()
    moments = [optimizer.state[parameter]["exp_avg_sq"] for parameter in held]
    assert all(isinstance(one, DTensor) and one.dtype == torch.bfloat16 for one in moments)
    return [one.full_tensor() for one in (*(parameter.detach() for parameter in held), *moments)]


def test_shards_are_updated_as_the_whole_tensors_would_be(tmp_path: Path) -> None:
    held = [Parameter(tensor) for tensor in whole_tensors()]
    optimizer, reference = LowMemoryAdamW(held, **EXACT), [Parameter(tensor) for tensor in whole_tensors()]
    torchs = torch.optim.AdamW(reference, **EXACT)
    for gradients in exact_gradients():
        for parameter, twin, gradient in zip(held, reference, gradients, strict=True):
            parameter.grad, twin.grad = gradient, gradient.clone()
        optimizer.step()
        torchs.step()
    expected = [*(parameter.detach() for parameter in held), *(optimizer.state[p]["exp_avg_sq"] for p in held)]
    for found in in_two_processes(sharded_steps, tmp_path):
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    for parameter, twin in zip(held, reference, strict=True):
        torch.testing.assert_close(parameter, twin, atol=1e-6, rtol=0)
