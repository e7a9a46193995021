"""Adapters sit where they should, start as nothing, can be left out, and come out merged: alone, sharded, in vLLM."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.spawn import spawn

from mmsr1.batch import Batch
from mmsr1.models.lora import add_adapters, whole_weights, without_adapters
from mmsr1.models.module import OptimSpec, PolicyModule, Sharding
from mmsr1.models.packing import flatten, pack
from mmsr1.models.policy import Policy
from mmsr1.models.sft_module import Demonstrations, SFTModule
from tests.models.conversations import conversation, image_token, patches, tiny_model
from tests.models.fitting import fit
from tests.rollout.engines.talks import conversations, save_tiny, start_engine

LAYERS = 2
PROJECTIONS = {
    f"model.language_model.layers.{layer}.{part}_proj"
    for layer in range(LAYERS)
    for part in (*(f"self_attn.{one}" for one in "qkvo"), "mlp.gate", "mlp.up", "mlp.down")
}
TALKS = (conversation(80), conversation(81))


def batch(*numbers: int) -> Batch:
    return pack([flatten(TALKS[number], patches(), image_token()) for number in numbers or (0, 1)], patches())


def adapted(seed: int = 0) -> Any:
    """The tiny model with adapters; those of seed 0 are fresh, others as after some training."""
    model = tiny_model()
    torch.manual_seed(seed)
    add_adapters(model, rank=4, alpha=8.0)
    if seed:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.15 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def logprobs(model: Any) -> Tensor:
    return Policy(model)(batch()).logprobs_T


def trained(model: Any) -> dict[str, Tensor]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def step_gradients(policy: Policy, one: Batch, between: Callable[[], Any]) -> None:
    """The gradient of a sum over the batch's tokens; `between` runs after the forward pass."""
    policy.zero_grad()
    loss = (policy(one).logprobs_T * torch.linspace(0.5, 1.5, len(one.token_ids))).sum()
    between()
    loss.backward()


def test_adapters_sit_on_the_decoders_projections_and_are_all_that_is_trained():
    model = tiny_model()
    inner = {name for name, _ in model.named_modules()}
    assert "model.visual.blocks.0.mlp.gate_proj" in inner and inner > PROJECTIONS  # the trap is there
    add_adapters(model, rank=4, alpha=8.0)
    expected = {f"{name}.lora_{side}.default.weight" for name in PROJECTIONS for side in "AB"}
    assert trained(model).keys() == expected
    assert all(4 in parameter.shape for parameter in trained(model).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_the_type_of_their_weights(dtype):
    model = tiny_model().to(dtype)
    add_adapters(model, rank=4, alpha=8.0)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}


def test_the_policy_starts_as_the_base_model():
    assert torch.equal(logprobs(adapted()), logprobs(tiny_model()))


def test_the_start_is_drawn_from_the_global_generator():
    def drawn(seed: int) -> Tensor:
        model = tiny_model()
        torch.manual_seed(seed)
        add_adapters(model, rank=4, alpha=8.0)
        return torch.cat([parameter.detach().flatten() for parameter in trained(model).values()])

    assert torch.equal(drawn(3), drawn(3))
    assert not torch.equal(drawn(3), drawn(4))


def test_without_adapters_the_model_is_the_base_and_afterwards_it_is_not():
    model, base = adapted(1), logprobs(tiny_model())
    changed = logprobs(model)
    assert (changed - base).abs().max() > 0.01
    before = trained(model).keys()
    with without_adapters(model):
        assert torch.equal(logprobs(model), base)
        assert not torch.is_grad_enabled() and trained(model).keys() == before
    assert torch.equal(logprobs(model), changed) and trained(model).keys() == before


def test_adapters_are_back_after_an_error():
    model = adapted(1)
    changed = logprobs(model)
    with pytest.raises(ZeroDivisionError), without_adapters(model):
        raise ZeroDivisionError
    assert torch.equal(logprobs(model), changed)


def test_a_model_without_adapters_has_none_to_leave_out_and_no_model_gets_them_twice():
    with pytest.raises(ValueError, match="no adapters"), without_adapters(tiny_model()):
        pass
    with pytest.raises(ValueError, match="already"):
        add_adapters(adapted(), rank=4, alpha=8.0)


def test_a_reference_pass_leaves_the_gradients_of_a_checkpointed_model_alone():
    plain, model = Policy(adapted(1)).train(), adapted(1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    policy = Policy(model).train()

    def reference() -> None:
        with without_adapters(policy):
            policy(batch())

    step_gradients(plain, batch(), nullcontext)
    step_gradients(policy, batch(), reference)
    for (name, one), other in zip(trained(plain).items(), trained(policy).values(), strict=True):
        assert one.grad is not None and other.grad is not None and one.grad.abs().max() > 1e-3, name
        torch.testing.assert_close(other.grad, one.grad, atol=1e-5, rtol=1e-4)


def test_whole_weights_are_those_of_a_plain_model_that_computes_the_same():
    model, plain = adapted(1), tiny_model()
    before = {name: parameter.clone() for name, parameter in plain.named_parameters()}
    merged = dict(whole_weights(model))
    assert list(merged) == list(before)
    changed = {name for name, tensor in merged.items() if not torch.equal(tensor, before[name])}
    assert changed == {f"{name}.weight" for name in PROJECTIONS}
    plain.load_state_dict(merged, strict=False)  # a tied head goes by the embedding's name alone
    torch.testing.assert_close(logprobs(plain), logprobs(model), atol=2e-5, rtol=0)
    assert (logprobs(plain) - logprobs(tiny_model())).abs().max() > 0.01


def test_a_plain_model_gives_its_own_parameters():
    model = tiny_model()
    given = dict(whole_weights(model))
    assert list(given) == [name for name, _ in model.named_parameters()]
    assert all(given[name].data_ptr() == parameter.data_ptr() for name, parameter in model.named_parameters())


def test_half_precision_is_merged_in_float32():
    model = tiny_model().bfloat16()
    torch.manual_seed(5)
    add_adapters(model, rank=4, alpha=8.0)
    layer = model.model.language_model.layers[0].mlp.up_proj
    a, b, weight = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.base_layer.weight
    torch.nn.init.normal_(b, std=0.01)
    exact = weight.double() + 2.0 * b.double() @ a.double()  # scaling = alpha / rank
    merged = dict(whole_weights(model))["model.language_model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert (merged == exact.to(torch.bfloat16)).double().mean() > 0.999
    assert (weight + 2.0 * (b @ a) == exact.to(torch.bfloat16)).double().mean() < 0.98  # the shortcut is worse


def test_training_moves_the_projections_and_nothing_else():
    taught = [flatten(talk, patches(), image_token(), weights=weights(talk)) for talk in TALKS]
    module = SFTModule(Policy(adapted()), patches(), OptimSpec(1e-2, "constant", 1), 400, freeze_vision=False)
    fit(module, [Demonstrations(0, taught)])
    start = dict(tiny_model().named_parameters())
    moved = {name for name, tensor in module.full_weights() if not torch.equal(tensor, start[name])}
    assert moved == {f"{name}.weight" for name in PROJECTIONS}


def weights(talk: Any) -> list[list[float] | None]:
    return [[1.0] * len(one.token_ids) if one.sampled is not None else None for one in talk]


def sharded_step(rank: int, folder: Path) -> None:
    """One of two processes, in float32 and in mixed precision."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    results = {dtype: half_a_step(rank, dtype) for dtype in (torch.float32, torch.bfloat16)}
    if rank == 0:
        torch.save(results, folder / "sharded.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def half_a_step(rank: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """(log-probs of the reference, gradients, weights after an update by 0.01 of them): half of the batch each.

    Reference passes come first and, as in GRPO, between the forward pass and the backward pass.
    """
    model = adapted(1)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = PolicyModule(Policy(model), OptimSpec(1e-2, "constant", 1), True, Sharding(dtype))
    module._device_mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data_parallel", "tensor_parallel"))
    module.configure_model()
    assert all(isinstance(parameter, DTensor) for parameter in module.policy.parameters())

    def reference() -> Tensor:
        with without_adapters(module.policy):
            return module.policy(batch(rank)).logprobs_T

    before = reference()
    step_gradients(module.policy, batch(rank), reference)
    gradients: dict[str, Tensor] = {}
    for name, parameter in trained(module.policy).items():
        assert isinstance(parameter.grad, DTensor), f"{name} has no gradient"
        gradients[name] = 2 * parameter.grad.full_tensor()  # FSDP averages over ranks
    torch.optim.SGD(trained(module.policy).values(), lr=0.02).step()  # 0.01 of the sum over both
    return before, gradients, {name: tensor.clone() for name, tensor in module.full_weights()}


def test_two_sharded_processes_do_what_one_does(tmp_path):
    spawn(sharded_step, (tmp_path,), nprocs=2)
    results = torch.load(tmp_path / "sharded.pt")
    reference, gradients, whole = results[torch.float32]
    with torch.no_grad():
        torch.testing.assert_close(reference, Policy(tiny_model())(batch(0)).logprobs_T, atol=1e-5, rtol=0)
    policy, total = Policy(adapted(1)).train(), {}
    for number in (0, 1):
        step_gradients(policy, batch(number), nullcontext)
        total = {name: total.get(name, 0) + parameter.grad for name, parameter in trained(policy).items()}
    assert gradients.keys() == total.keys()
    for name, expected in total.items():
        assert expected.abs().max() > 1e-3
        torch.testing.assert_close(gradients[name], expected, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        for name, parameter in trained(policy).items():
            parameter.sub_(0.01 * total[name])
    merged = dict(whole_weights(policy.model))
    assert list(whole) == list(merged)
    for name, expected in merged.items():
        torch.testing.assert_close(whole[name], expected, atol=1e-5, rtol=1e-4)
    for name, mixed in results[torch.bfloat16][1].items():
        assert mixed.dtype == torch.float32
        assert (mixed - total[name]).norm() < 0.1 * total[name].norm(), name


@pytest.mark.parametrize("tied", [True, False])
def test_the_engine_samples_from_the_adapted_model_after_a_sync(tied, tmp_path):
    tiny = save_tiny(tmp_path, tied)
    torch.manual_seed(7)
    add_adapters(tiny.model, rank=4, alpha=8.0)
    with torch.no_grad():
        for parameter in trained(tiny.model).values():
            parameter.copy_(0.15 * torch.randn(parameter.shape))

    async def gap(engine: Any) -> float:
        return max(tiny.gap(*turn) for turn in await conversations(engine, tiny, 4))

    async def main() -> None:
        engine = start_engine(tiny)
        try:
            assert await gap(engine) > 0.01  # it still has the base model
            await engine.load_weights(whole_weights(tiny.model), 1)
            assert await gap(engine) < 1e-4
        finally:
            await engine.close()

    asyncio.run(main())
