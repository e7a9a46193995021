"""Policies from disk or from nothing, and back to disk as plain Hugging Face folders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from mmsr1.models.images import ImageFeatures
from mmsr1.models.lora import whole_weights
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

ensure_torchvision()

from transformers import AutoConfig, AutoTokenizer, Qwen2_5_VLForConditionalGeneration  # noqa: E402
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402

transformers_logging.disable_progress_bar()  # its bars for one file would break into the run's own


@dataclass(frozen=True)
class PolicyFiles:
    """A loaded policy: model, tokenizer, image processor, and patches through it."""

    model: Qwen2_5_VLForConditionalGeneration
    tokenizer: Any
    image_processor: Qwen2VLImageProcessorPil
    patches: ImageFeatures

    @property
    def image_token(self) -> int:
        return int(self.model.config.image_token_id)

    @property
    def merge(self) -> int:
        return int(self.model.model.visual.spatial_merge_size)


def load_policy(path: str, dtype: str, decode: Callable[[Picture], Image], weights: bool = True) -> PolicyFiles:
    """Load a folder or hub id; without `weights` the model is one on the meta device, which takes no memory.

    Raises ValueError, in one line, if there is none, a part is missing, or it is another architecture."""
    try:
        config = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.path={path}: no model there; give a Hugging Face folder, or a hub id with network"
        ) from error
    if config.model_type != "qwen2_5_vl":
        raise ValueError(f"model.path={path}: the model is a {config.model_type}; a qwen2_5_vl is needed")
    try:
        if weights:
            model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                path, dtype=getattr(torch, dtype), attn_implementation="sdpa"
            )
        else:
            with torch.device("meta"):
                model = Qwen2_5_VLForConditionalGeneration(config)
        tokenizer = AutoTokenizer.from_pretrained(path)
        processor = Qwen2VLImageProcessorPil.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"model.path={path}: the model is not complete: {' '.join(str(error).split())}") from error
    return PolicyFiles(model, tokenizer, processor, ImageFeatures(processor, decode))


def save_policy(directory: Path, files: PolicyFiles, state: dict[str, torch.Tensor] | None, dtype: torch.dtype) -> None:
    """Write a folder that transformers and vLLM load; `state` (full tensors) stands in for a sharded model's own."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = state if state is not None else dict(whole_weights(files.model))
    converted = {name: tensor.detach().cpu().to(dtype) for name, tensor in tensors.items()}
    files.model.save_pretrained(directory, state_dict=converted)
    files.tokenizer.save_pretrained(directory)
    files.image_processor.save_pretrained(directory)
