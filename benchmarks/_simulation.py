"""A training step of any size that computes nothing: fake tensors in place of floating-point ones, memory counted.

The trainer's own code runs, sharding included: FSDP2 with a process group of any size that exists only in name. Torch's
MemTracker counts every storage from its making to its end, so figures are exact and the same every time; the slack of
the GPU's allocator is not in them. Attention is that of the CPU, which saves for the backward pass what the kernels
for GPUs save.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
import torch.distributed  # noqa: E402
from torch import Tensor  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode  # noqa: E402
from torch.distributed._tools.mem_tracker import MemTracker  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration  # noqa: E402

from mmsr1.batch import Batch  # noqa: E402
from mmsr1.models.grpo import LossSpec, policy_loss, size_of  # noqa: E402
from mmsr1.models.lora import add_adapters  # noqa: E402
from mmsr1.models.module import OptimSpec, PolicyModule, Sharding  # noqa: E402
from mmsr1.models.policy import Policy  # noqa: E402


@dataclass(frozen=True)
class Simulated:
    """How the policy is held in a simulation."""

    ranks: int = 1
    dtype: str = "float32"
    param_dtype: str = "float32"
    offload: bool = False
    checkpointing: bool = True
    freeze_vision: bool = False
    lora_rank: int = 0
    reference: bool = False
    chunk: int = 1024
    loss: LossSpec = LossSpec()


class WholeNumbersOnly(FakeTensorMode):
    """Floating-point tensors are fake; whole numbers and masks are real, since shapes depend on their values.

    What would be read from a fake tensor is 0.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0
        whole = not any(isinstance(one, FakeTensor) or one.is_floating_point() for one in given)
        made = kwargs.get("dtype", None if func.overloadpacket is not torch.ops.aten.arange else torch.int64)
        if whole and (given or (made is not None and not made.is_floating_point)):
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _as_positions(args[1]))
        return super().dispatch(func, types, args, kwargs)


class Peak(MemTracker):
    """MemTracker for the total alone: its figures for every module take most of its time, and it cannot make them where
    a parameter is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def _update_peak_stats(self, peak_state: Any) -> None:
        self.bytes = max(self.bytes, sum(kinds["Total"] for kinds in self._curr_mem_snap.values()))

    def _pre_fw_hook(self, module: Any, inputs: Any) -> None: ...

    def _post_fw_hook(self, module: Any, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: Any, args: Any) -> None: ...

    def _post_bw_hook(self, module: Any, args: Any) -> None: ...


def peak_bytes(config: Qwen2_5_VLConfig, batch: Batch, how: Simulated) -> int:
    """The most memory that is there during the forward and backward pass of `batch`, gradients of an earlier one and
    weights included, optimiser states not."""
    mode = WholeNumbersOnly(allow_non_fake_inputs=True)
    models = [_blueprint(config, how), *([_blueprint(config, replace(how, param_dtype=how.dtype))] * how.reference)]
    with _process_group(how.ranks), mode:
        policy, *others = [_policy(model, how) for model in models]
        batch = replace(batch, **{name: mode.from_tensor(tensor) for name, tensor in _numbers(batch).items()})
        for parameter in policy.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        tracker = Peak()
        tracker.track_external(policy, *others, *_numbers(batch).values())
        with tracker:
            _pass(policy, others, batch, how)
    return tracker.bytes


def _blueprint(config: Qwen2_5_VLConfig, how: Simulated) -> Qwen2_5_VLForConditionalGeneration:
    """The model on the meta device (peft cannot work on fake tensors)."""
    with torch.device("meta"):
        held = getattr(torch, how.param_dtype)
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="sdpa", dtype=held)
        if how.lora_rank:
            add_adapters(model, how.lora_rank, 32.0)
    if how.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def _policy(model: Qwen2_5_VLForConditionalGeneration, how: Simulated) -> Policy:
    _fill(model)
    sharding = Sharding(getattr(torch, how.dtype), how.offload)
    module = PolicyModule(Policy(model, how.chunk), OptimSpec(1e-6, "constant", 1), how.freeze_vision, sharding)
    module._device_mesh = init_device_mesh("cpu", (how.ranks,), mesh_dim_names=("data_parallel",))
    module.shard(module.policy)
    return module.policy


def _fill(model: torch.nn.Module) -> None:
    """Fake tensors on the CPU in place of those on the meta device; tied ones stay tied."""
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor not in made:
                    blank = torch.empty_like(tensor, device="cpu")
                    is_parameter = isinstance(tensor, torch.nn.Parameter)
                    made[tensor] = torch.nn.Parameter(blank, tensor.requires_grad) if is_parameter else blank
                if tensor is not None:
                    tensors[name] = made[tensor]  # pyright: ignore[reportArgumentType]  (parameters and buffers alike)


def _pass(policy: Policy, references: Sequence[Policy], batch: Batch, how: Simulated) -> None:
    stats = policy(batch)
    with torch.no_grad():
        compared = [reference(batch).logprobs_T for reference in references]
    policy_loss(
        stats.logprobs_T,
        batch.old_logprobs_T,
        batch.advantages_T,
        batch.loss_mask_T,
        batch.sequence_ids_T,
        size_of(batch.loss_mask_T, batch.sequence_ids_T),
        replace(how.loss, kl_weight=0.001) if compared else how.loss,
        reference_logprobs_T=compared[0] if compared else None,
        entropy_T=stats.entropy_T,
    ).loss.backward()


@contextmanager
def _process_group(ranks: int) -> Iterator[None]:
    torch.distributed.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _numbers(batch: Batch) -> dict[str, Tensor]:
    tensors = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {name: tensor for name, tensor in tensors.items() if tensor.is_floating_point()}


def _as_positions(indices: Any) -> list[Tensor | None]:
    """A mask among the indices of `tensor[indices]` as the positions that it selects."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            with torch._C._DisableTorchDispatch():
                found.extend(index.nonzero().unbind(1))
        else:
            found.append(index)
    return found
