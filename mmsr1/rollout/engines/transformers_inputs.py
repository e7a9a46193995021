"""Token prompts and pictures into what `generate` takes; each picture is encoded once per weight version.

Conversations are laid out, and pictures cut into patches, by the code that lays them out for training: ids with each
placeholder widened to its picture, and M-RoPE positions over the whole conversation. The vision tower's output is
kept under the picture's digest, for the rollouts of a group and for later turns. It is computed for one picture at a
time, so that it does not depend on the others of a batch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from mmsr1.models.images import ImageFeatures
from mmsr1.models.packing import FlatSequence, flatten
from mmsr1.rollout.engines.base import TokenPrompt
from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture, Segment

ensure_torchvision()

from transformers import Qwen2_5_VLForConditionalGeneration  # noqa: E402  (the shim must come first)
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402


@dataclass(frozen=True)
class Conversation:
    """An expanded prompt, and the vision tower's output for each of its pictures in order."""

    sequence: FlatSequence
    encoded: tuple[Float[Tensor, "_ H"], ...]


class ConversationBuilder:
    """Lays out the prompts of one model; not safe to share between threads.

    `cache_bytes` bounds what is kept of the vision tower's outputs; the least recently used go first.
    """

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        patches: ImageFeatures,
        images_per_prompt: int,
        cache_bytes: int,
    ) -> None:
        self._model: Any = model  # its annotations name legacy tensor classes
        self._patches = patches
        self._images_per_prompt = images_per_prompt
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[str, Float[Tensor, "N H"]] = OrderedDict()
        self._bytes = 0

    def build(self, prompt: TokenPrompt, max_tokens: int) -> Conversation:
        """Lay out a prompt.

        Raises ValueError if it has more than `max_tokens` tokens, expanded, or too many images, or not as many as
        placeholders, or ids that the model does not know, or an image for its last token; `BadPicture` if a picture
        cannot be decoded, and what the image processor raises for one it cannot take.
        """
        config = self._model.config
        if len(prompt.images) > self._images_per_prompt:
            raise ValueError(f"{len(prompt.images)} images, more than the {self._images_per_prompt} allowed per prompt")
        if not all(0 <= token < config.text_config.vocab_size for token in prompt.token_ids):
            raise ValueError(f"a token id is not below the vocabulary's {config.text_config.vocab_size}")
        segment = Segment("template", prompt.token_ids, trusted=True, images=prompt.images)
        sequence = flatten([segment], self._patches, config.image_token_id, config.vision_config.spatial_merge_size)
        if len(sequence) > max_tokens:
            raise ValueError(f"{len(sequence)} tokens, more than the {max_tokens} that leave room for an answer")
        if sequence.image_mask[-1]:  # `generate` goes on from the last position, which is not an image's largest
            raise ValueError("the last token is an image")
        return Conversation(sequence, tuple(self._encoded(picture) for picture in prompt.images))

    def forget(self) -> None:
        """Drop the vision tower's outputs."""
        self._cached.clear()
        self._bytes = 0

    def _encoded(self, picture: Picture) -> Float[Tensor, "N H"]:
        if picture.digest in self._cached:
            self._cached.move_to_end(picture.digest)
            return self._cached[picture.digest]
        encoded = self._cached[picture.digest] = self._encode(picture)
        self._bytes += encoded.nbytes
        while self._bytes > self._cache_bytes and len(self._cached) > 1:
            self._bytes -= self._cached.popitem(last=False)[1].nbytes
        return encoded

    @torch.no_grad()
    def _encode(self, picture: Picture) -> Float[Tensor, "N H"]:
        pixels, grid = self._patches(picture)
        device = self._model.device
        output: Any = self._model.model.get_image_features(pixels.to(device), torch.tensor([grid], device=device))
        return output.pooler_output[0]


def batch_of(conversations: Sequence[Conversation], pad: int, device: torch.device) -> dict[str, Any]:
    """Arguments of `generate` for these conversations, padded on the left with the token `pad`."""
    width = max(len(conversation.sequence) for conversation in conversations)
    size = len(conversations)
    ids_BT = torch.full((size, width), pad)
    mask_BT = torch.zeros(size, width, dtype=torch.int64)
    positions_4BT = torch.zeros(4, size, width, dtype=torch.int64)  # the place in the text, then M-RoPE's three
    for row, conversation in enumerate(conversations):
        sequence = conversation.sequence
        start = width - len(sequence)
        ids_BT[row, start:] = torch.from_numpy(sequence.token_ids)
        mask_BT[row, start:] = 1
        positions_4BT[0, row, start:] = torch.arange(len(sequence))
        positions_4BT[1:, row, start:] = torch.from_numpy(sequence.positions)
    encoded = [image for conversation in conversations for image in conversation.encoded]
    # Outputs of the vision tower go in where `generate` would put its own, so it does not call the tower.
    images = (
        {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=cast("Any", encoded))}}
        if encoded
        else {}
    )
    return {
        "input_ids": ids_BT.to(device),
        "attention_mask": mask_BT.to(device),
        "position_ids": positions_4BT.to(device),
        **images,
    }
