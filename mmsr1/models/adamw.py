"""AdamW whose moments are kept in bfloat16: half the memory of float32 ones, and no bias from the rounding.

The second moment moves by (1 - beta2) = 0.1 % a step, less than half the distance of two neighbouring bfloat16 numbers
(0.4 %): rounded to nearest it would never move again. Rounded up or down at random in proportion to the distances it
is right on average. Arithmetic is in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from torch.distributed.tensor import DTensor


class LowMemoryAdamW(torch.optim.Optimizer):
    """Loshchilov and Hutter, arXiv 1711.05101; as `torch.optim.AdamW` but for the moments' precision.

    Draws from torch's generator of each parameter's device.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, which would also give the moments the type of their parameter."""
        super().load_state_dict({**state_dict, "state": {}})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if number in state_dict["state"]:
                saved = state_dict["state"][number]
                moments = {name: value.to(parameter.device) for name, value in saved.items() if name != "step"}
                self.state[parameter] = {**saved, **moments}

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
            state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=torch.bfloat16)
        state["step"] += 1
        (beta1, beta2), step = group["betas"], float(state["step"])
        weight, gradient = _local(parameter), _local(parameter.grad).float()
        kept, kept_sq = _local(state["exp_avg"]), _local(state["exp_avg_sq"])
        mean = kept.float().lerp_(gradient, 1 - beta1)
        square = kept_sq.float().mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = (square / (1 - beta2**step)).sqrt_().add_(group["eps"])
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_((mean / scale).to(weight.dtype), alpha=-group["lr"] / (1 - beta1**step))
        kept.copy_(stochastic_bfloat16(mean))
        kept_sq.copy_(stochastic_bfloat16(square))


def stochastic_bfloat16(values: Float32[Tensor, "*shape"]) -> BFloat16[Tensor, "*shape"]:
    """One of the two neighbouring bfloat16 numbers each, the nearer one more often: right on average.

    A bfloat16 is the upper half of a float32's bits, so adding 16 random bits below and cutting them off does it.
    """
    noise = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    return ((values.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32).to(torch.bfloat16)


def _local(tensor: Any) -> Tensor:
    """This rank's part of a sharded tensor; the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
