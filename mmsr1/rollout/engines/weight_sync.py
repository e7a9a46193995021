"""Puts the trainer's tensors into an in-process vLLM, and drops everything it computed with the old ones.

vLLM keeps weights in the form its kernels want (query, key and value fused; packed for the CPU's matrix product),
so tensors under their Hugging Face names go through its layer-wise reload: set the layers up as at the first load,
load, post-process each layer, copy the result into the storage that the kernels already point to. Nothing passes
through a disk or a socket; each tensor is read once, at the latest in `finalize_layerwise_reload`.

Three caches outlive a reload and none notices it: key-value blocks of earlier prefixes, processed images, and the
vision tower's outputs. Left alone, each mixes old weights into new answers without a word (the last one shifts
log-probs by a few hundredths to tenths as soon as the tower is trained: vLLM#44910, TRL#7198).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


def load_weights(engine: LLMEngine, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Replace every parameter of the engine's model by the tensor of its Hugging Face name.

    Each tensor may live on any device and have any float type. `tensors` must cover the whole model: a layer that
    got only some of its parts would be filled up with whatever was in memory.
    Raises ValueError if a parameter is missing or a name is unknown, RuntimeError if a shape differs. After any of
    these the model holds a mixture and must not sample again.
    """
    model_config, vllm_config = engine.model_config, engine.vllm_config

    def reload(model: Any) -> None:  # an nn.Module with vLLM's `load_weights`
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        expected = {name for name, _ in model.named_parameters()}
        with set_current_vllm_config(vllm_config), torch.no_grad():
            initialize_layerwise_reload(model)
            loaded = model.load_weights(tensors)
            missing = sorted(expected - loaded) or _half_loaded(model)
            finalize_layerwise_reload(model, model_config)
            _repack_heads(model)
        if missing:
            raise ValueError(f"no or not all new weights for {missing[0]!r} and {len(missing) - 1} more; send all")

    engine.apply_model(reload)


def _half_loaded(model: nn.Module) -> list[str]:
    """Layers of which a part was sent, such as the query but not the key.

    An embedding is not one of them: its rows are padded to a round number and never all loaded.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    names = []
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        unfinished = info.can_load() and 0 < info.load_numel < (info.load_numel_total or 0)
        if unfinished and not isinstance(layer, VocabParallelEmbedding):
            names.append(name)
    return names


def _repack_heads(model: nn.Module) -> None:
    """Pack the output heads again, on a CPU.

    A head tied to the embedding has no weights of its own to load, so the layer-wise reload passes it by, while the
    CPU's matrix product reads a packed copy that was made when the engine started.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for head in model.modules():
        if isinstance(head, ParallelLMHead) and head.weight.device.type == "cpu":
            head.quant_method.process_weights_after_loading(head)


def drop_caches(engine: LLMEngine, encoder: bool = True) -> None:
    """Forget key-value blocks, processed images and (`encoder`) the vision tower's outputs.

    Raises RuntimeError if vLLM refuses because a request still holds blocks.
    """
    if not engine.reset_prefix_cache():
        raise RuntimeError("vLLM kept its prefix cache: a request still holds key-value blocks during a weight sync")
    engine.reset_mm_cache()
    if encoder:
        engine.reset_encoder_cache()
