"""The half of the transformers engine that blocks: made, called and closed on one thread only, the engine thread."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

from mmsr1.models.images import ImageFeatures
from mmsr1.models.loading import PolicyFiles, load_policy
from mmsr1.rollout.engines.base import Sampling
from mmsr1.rollout.engines.transformers_inputs import ConversationBuilder, batch_of
from mmsr1.rollout.engines.transformers_sampling import Request, Row, RowSampler, RowsOver
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

ensure_torchvision()

from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList  # noqa: E402  (after the shim)


class TransformersCore:
    """A model that samples batches: no event loop. Arguments are those of `TransformersEngine`.

    Raises what `load_policy` raises.
    """

    def __init__(
        self,
        model: str,
        *,
        dtype: str,
        device: str,
        max_model_len: int,
        images_per_prompt: int,
        threads: int,
        image_cache_bytes: int,
        reset_encoder_cache: bool,
        pixels: Callable[[Picture], Image],
    ) -> None:
        torch.set_num_threads(threads)  # of this thread
        files = load_policy(model, dtype, pixels)
        config = files.model.config
        self.model = own_copy(files.model, torch.device(device))
        self._tokenizer = files.tokenizer.backend_tokenizer
        self._ends = end_tokens(files)
        self._pad = min(self._ends, default=0)  # padding is masked: any text token will do
        self._banned = [
            getattr(config, f"{name}_token_id") for name in ("image", "video", "vision_start", "vision_end")
        ]
        # The folder's own settings (Qwen's: a repetition penalty) would change the logits before they are recorded.
        self.model.generation_config = GenerationConfig(do_sample=False, use_cache=True)
        patches = ImageFeatures(files.image_processor, pixels, image_cache_bytes)
        self._prompts = ConversationBuilder(self.model, patches, images_per_prompt, image_cache_bytes)
        self._max_model_len = max_model_len
        self._reset_encoder_cache = reset_encoder_cache
        self._version = 0
        self._sleeps = self.model.device.type != "cpu"
        self._asleep = False

    def run(self, requests: Sequence[Request]) -> None:
        """Answer all requests; one that cannot be served fails alone.

        Raises whatever `generate` raises, and may then leave some without an answer.
        """
        rows = [row for request in requests if (row := self._admit(request)) is not None]
        if not rows:
            return
        device = self.model.device
        self.model.generate(
            **batch_of([row.conversation for row in rows], self._pad, device),
            max_new_tokens=max(row.limit for row in rows),
            logits_processor=LogitsProcessorList([RowSampler(rows, self._banned, device)]),
            stopping_criteria=StoppingCriteriaList([RowsOver(rows)]),
        )
        if not all(row.over for row in rows):
            raise RuntimeError("generate returned before all rows were over")

    def load_weights(self, tensors: Iterable[tuple[str, Tensor]], version: int) -> None:
        """See `copy_weights`; afterwards pictures are encoded anew."""
        if self._asleep:
            for parameter in self.model.parameters():
                parameter.untyped_storage().resize_(parameter.nbytes)
            self._asleep = False
        copy_weights(self.model, tensors)
        if self._reset_encoder_cache:
            self._prompts.forget()
        self._version = version

    def sleep(self) -> None:
        """Free the weights and encoded pictures of a GPU; `load_weights` brings them back."""
        if not self._sleeps:
            return
        self._asleep = True
        self._prompts.forget()
        for parameter in self.model.parameters():
            parameter.untyped_storage().resize_(0)
        torch.cuda.empty_cache()  # hand it back: the trainer may be another process

    def close(self) -> None:
        """Give the model's memory back."""
        del self.model, self._prompts
        gc.collect()
        torch.cuda.empty_cache()

    def _admit(self, request: Request) -> Row | None:
        if request.answer.done():  # cancelled while it waited
            return None
        try:
            if self._asleep:
                raise ValueError("the engine sleeps until new weights are loaded")
            check(request.sampling)
            conversation = self._prompts.build(request.prompt, self._max_model_len - 1)
        except Exception as error:  # whatever is wrong with one request must not reach the others
            request.fail(f"request refused: {error}")
            return None
        limit = min(request.sampling.max_tokens, self._max_model_len - len(conversation.sequence))
        return Row(request, conversation, limit, self._version, self._ends, self._tokenizer)


def own_copy(model: Any, device: torch.device) -> Any:
    """The model on this device, for sampling. Any: the library's annotations do not fit its own mixins."""
    for parameter in model.parameters():  # the file that they come from stays mapped, and may be overwritten
        parameter.data = parameter.data.to(device, copy=True)
    return model.to(device).eval().requires_grad_(False)


def end_tokens(files: PolicyFiles) -> frozenset[int]:
    """The ids that end a turn, of the tokenizer and of the model's generation settings (one, several or none)."""
    configured = files.model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (files.tokenizer.eos_token_id, *ids) if token is not None)


def check(sampling: Sampling) -> None:
    """Raises ValueError for settings that name no distribution."""
    if sampling.temperature < 0 or not 0 < sampling.top_p <= 1 or sampling.max_tokens < 1:
        raise ValueError(f"cannot sample with {sampling}")


@torch.no_grad()
def copy_weights(model: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy each tensor into the parameter of its Hugging Face name; tied parameters may come under one name or all.

    Each tensor may live on any device and have any float type. Raises ValueError if a parameter is missing or a name
    is unknown, RuntimeError if a shape differs. After any of these the model holds a mixture and must not sample.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    loaded: set[Tensor] = set()
    for name, tensor in tensors:
        if name not in parameters:
            raise ValueError(f"the model has no parameter {name!r}")
        if tensor.shape != parameters[name].shape:  # copying would stretch some shapes to fit
            raise RuntimeError(
                f"{name}: new weights of shape {tuple(tensor.shape)}, not {tuple(parameters[name].shape)}"
            )
        parameters[name].copy_(tensor)
        loaded.add(parameters[name])
    missing = [name for name, parameter in model.named_parameters() if parameter not in loaded]
    if missing:
        raise ValueError(f"no new weights for {missing[0]!r} and {len(missing) - 1} more; send all")
