"""Puts the trainer's tensors into a model inside vLLM, and drops everything that was computed with the old ones.

vLLM keeps weights in the form its kernels want (query, key and value fused; packed for the CPU's matrix product),
so tensors under their Hugging Face names go through its layer-wise reload: set the layers up as at the first load,
load, post-process each layer, copy the result into the storage that the kernels already point to. An in-process
engine reads the trainer's tensors themselves; for one in another process see `weight_transfer`.

Three caches outlive a reload and none notices it: key-value blocks of earlier prefixes, processed images, and the
vision tower's outputs. Left alone, each mixes old weights into new answers without a word (the last one shifts
log-probs by a few hundredths to tenths as soon as the tower is trained: vLLM#44910, TRL#7198).
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from vllm.v1.engine.llm_engine import LLMEngine


def load_weights(engine: LLMEngine, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Replace every parameter of the in-process engine's model by the tensor of its Hugging Face name.

    Each tensor may live on any device and have any float type. Raises what `Reload` raises.
    """
    model_config, vllm_config = engine.model_config, engine.vllm_config

    def reload(model: Any) -> None:  # an nn.Module with vLLM's `load_weights`
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(vllm_config):
            new = Reload(model, model_config)
            new.load(tensors)
            new.finish()

    engine.apply_model(reload)


class Reload:
    """One replacement of all weights of a model inside vLLM, whose configuration must be the current one.

    The tensors may come in any number of `load`s and must together be exactly those of the model: a layer that got
    only some of its parts would be filled up with whatever was in memory, and of a tensor that is too large vLLM may
    take what it needs. After any error the model holds a mixture and must not sample again.
    Raises RuntimeError if an earlier reload was left half done.
    """

    def __init__(self, model: Any, model_config: Any) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        if any(get_layerwise_info(layer).can_load() for layer in model.modules()):
            raise RuntimeError("an earlier weight sync was left half done: start the engine again")
        self._model, self._model_config = model, model_config
        self._expected = {name for name, _ in model.named_parameters()}
        self._loaded: set[str] = set()
        self._seen: set[str] = set()
        self._loading: tuple[str, Tensor] | None = None
        self._elements = 0
        initialize_layerwise_reload(model)
        self._room = _elements(model, self._expected)

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Take some tensors, under their Hugging Face names; each is read once, at the latest in `finish`.

        Raises ValueError if a name is unknown or came before or a shape is wrong, and what `tensors` raises.
        """
        try:
            self._loaded |= self._model.load_weights(self._once(tensors))
        except Exception as error:
            if self._loading is None:  # `tensors` raised it
                raise
            name, tensor = self._loading
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"{name!r} of shape {tuple(tensor.shape)} does not fit: {reason}") from error

    @torch.no_grad()
    def finish(self) -> None:
        """Bring what was loaded into the form of the kernels. Raises ValueError if not all or too much was sent."""
        from vllm.config import get_current_vllm_config
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        missing = sorted(self._expected - self._loaded) or _half_loaded(self._model)
        # It would warn of a tied head, which has no weights of its own; whatever is missing is an error here.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        finalize_layerwise_reload(self._model, self._model_config)
        _repack_heads(self._model)
        if missing:
            raise ValueError(f"no or not all new weights for {missing[0]!r} and {len(missing) - 1} more; send all")
        whole = (
            get_current_vllm_config().parallel_config.world_size == 1
        )  # else a worker takes its share of what is sent
        if whole and self._elements > self._room:
            excess = self._elements - self._room
            raise ValueError(f"{excess} elements too many: a tensor is too large, or a tied head was sent, too")

    def _once(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if name in self._seen:
                raise ValueError(f"two tensors are named {name!r}")
            self._seen.add(name)
            self._elements += tensor.numel()
            self._loading = name, tensor
            yield name, tensor
            self._loading = None


def _elements(model: nn.Module, names: Collection[str]) -> int:
    """How many numbers a checkpoint holds for these parameters of a model that is set up to be loaded."""
    from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

    parameters = dict(model.named_parameters(remove_duplicate=False))
    elements = sum(parameters[name].numel() for name in names)
    for name, layer in model.named_modules():
        if isinstance(layer, VocabParallelEmbedding) and f"{name}.weight" in names:
            elements -= (layer.num_embeddings_padded - layer.org_vocab_size) * layer.embedding_dim
    return elements


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
