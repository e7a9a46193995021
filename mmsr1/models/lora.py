"""Low-rank adapters on the language model, through peft: W x becomes W x + (alpha / rank) B A x, and W is frozen.

Everything outside this module sees the model under its plain Hugging Face names with the adapters merged in.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

from peft import LoraConfig, inject_adapter_in_model  # noqa: E402  (imports transformers)
from peft.tuners.lora import LoraLayer  # noqa: E402

# From the root of the model: the vision blocks have modules called gate_proj, up_proj and down_proj too.
_TARGETS = r"model\.language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
_ADAPTER = "default"
_ADAPTER_PARAMETER = re.compile(r"\.lora_[AB]\.")


def add_adapters(model: nn.Module, rank: int, alpha: float) -> None:
    """Put adapters on the decoder's attention and MLP projections, in place, and freeze all that was there before.

    A is drawn from torch's global generator and B is zero, so the model computes what it did. Adapters have the type
    and device of the weights that they sit on. Raises ValueError if the model has adapters already.
    """
    if _adapted(model):
        raise ValueError("the model has adapters already")
    # peft declares a whole alpha, and only divides it by the rank.
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=_TARGETS)  # pyright: ignore[reportArgumentType]
    inject_adapter_in_model(config, model, _ADAPTER)
    for layer in _adapted(model).values():
        for part in (layer.lora_A, layer.lora_B):  # peft keeps adapters of half precision in float32
            part.to(layer.get_base_layer().weight.dtype)


def has_adapters(model: nn.Module) -> bool:
    return bool(_adapted(model))


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, a forward pass is that of the model before `add_adapters`, and records no gradient.

    Run no backward pass inside: activation checkpointing would repeat the forward pass without adapters. Raises
    ValueError if there are none: what is meant as a reference would be the policy itself.
    """
    layers = _adapted(model).values()
    if not layers:
        raise ValueError("the model has no adapters to leave out")
    # peft's own switch also sets requires_grad, by which FSDP2 settles the precision of gradients at its first forward
    # pass: a reference pass that comes first would make it that of the computation, and the backward pass fail.
    for layer in layers:
        layer._disable_adapters = True
    try:
        with torch.no_grad():
            yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def whole_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(Hugging Face name, whole tensor) of each parameter, one at a time, with any adapters merged in.

    Names, order and types are those of `named_parameters()` without adapters. A tensor is the parameter's own memory
    unless it is sharded or adapted. A collective if sharded: every rank must iterate it to the end.
    """
    adapted = _adapted(model)
    for name, parameter in model.named_parameters():
        owner, wrapped, leaf = name.partition(".base_layer.")
        if wrapped:
            yield f"{owner}.{leaf}", _merged(adapted[owner]) if leaf == "weight" else _whole(parameter)
        elif not _ADAPTER_PARAMETER.search(name):
            yield name, _whole(parameter)


def _merged(layer: Any) -> Tensor:
    """W + scaling * B A, computed in float32: in half precision the sum of many small updates would be lost."""
    weight = _whole(layer.get_base_layer().weight)
    a, b = (_whole(part[_ADAPTER].weight).float() for part in (layer.lora_A, layer.lora_B))
    return torch.addmm(weight.float(), b, a, alpha=layer.scaling[_ADAPTER]).to(weight.dtype)


def _whole(parameter: Tensor) -> Tensor:
    data = parameter.detach()
    return data.full_tensor() if isinstance(data, DTensor) else data


def _adapted(model: nn.Module) -> dict[str, Any]:
    """LoraLayers by name; Any, because as a Module its weights could be modules to a type checker."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
