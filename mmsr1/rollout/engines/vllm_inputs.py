"""Token prompts and encoded pictures into vLLM's engine inputs; each picture is decoded and processed once.

vLLM would process a prompt's images on every request, or keep two mirrored caches of them that must see the same
operations in the same order. The rollouts of a group and the turns of a conversation repeat their images many times,
so here the processed image is kept under the picture's digest, prompts are put together around it, and vLLM's own
cache is off. The digest is also vLLM's name for the image: in the keys of its prefix cache, and of its encoder cache,
which is why the vision tower sees an image once for a whole group. Processed pixels do not depend on the weights.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from PIL.Image import Image

from mmsr1.rollout.engines.base import TokenPrompt
from mmsr1.types import Picture

if TYPE_CHECKING:
    from vllm.inputs import EngineInput
    from vllm.multimodal.inputs import MultiModalKwargsItem
    from vllm.renderers import BaseRenderer


@dataclass(frozen=True)
class ProcessedImage:
    """An image as the model takes it: its fields (pixels, grid), the placeholders it fills, and its size in memory."""

    fields: MultiModalKwargsItem
    placeholders: int
    bytes: int


class PromptBuilder:
    """Builds the inputs of one vLLM engine; not safe to share between threads.

    `cache_bytes` bounds what is kept of processed images; the least recently used go first. `pixels` decodes a picture.
    """

    def __init__(
        self,
        renderer: BaseRenderer,
        image_token: int | None,
        images_per_prompt: int,
        cache_bytes: int,
        pixels: Callable[[Picture], Image],
    ) -> None:
        self._pixels = pixels
        self._renderer = renderer
        self._image_token = image_token
        self._images_per_prompt = images_per_prompt
        self._cache_bytes = cache_bytes
        self._cached: OrderedDict[str, ProcessedImage] = OrderedDict()
        self._bytes = 0

    def build(self, prompt: TokenPrompt) -> EngineInput:
        """The prompt with each placeholder widened to its image's length.

        Raises ValueError if the images are too many or not as many as the placeholders, `BadPicture` if one cannot be
        decoded, and what the image processor raises for one it cannot take.
        """
        from vllm.inputs import mm_input, tokens_input
        from vllm.multimodal.inputs import MultiModalKwargsItems, PlaceholderRange

        pads = [place for place, token in enumerate(prompt.token_ids) if token == self._image_token]
        if len(pads) != len(prompt.images):
            raise ValueError(f"{len(pads)} image placeholders for {len(prompt.images)} images")
        if len(pads) > self._images_per_prompt:
            raise ValueError(f"{len(pads)} images, more than the {self._images_per_prompt} allowed per prompt")
        if not pads:
            return tokens_input(list(prompt.token_ids))
        images = [self._processed(picture, prompt.token_ids[pads[0]]) for picture in prompt.images]
        ids: list[int] = []
        ranges, start = [], 0
        for pad, image in zip(pads, images, strict=True):
            ids += prompt.token_ids[start:pad]
            ranges.append(PlaceholderRange(offset=len(ids), length=image.placeholders))
            ids += [prompt.token_ids[pad]] * image.placeholders
            start = pad + 1
        ids += prompt.token_ids[start:]
        return mm_input(
            ids,
            MultiModalKwargsItems({"image": [image.fields for image in images]}),
            {"image": [picture.digest for picture in prompt.images]},
            {"image": ranges},
        )

    def _processed(self, picture: Picture, image_token: int) -> ProcessedImage:
        if picture.digest in self._cached:
            self._cached.move_to_end(picture.digest)
            return self._cached[picture.digest]
        image = self._cached[picture.digest] = self._process(picture, image_token)
        self._bytes += image.bytes
        while self._bytes > self._cache_bytes and len(self._cached) > 1:
            self._bytes -= self._cached.popitem(last=False)[1].bytes
        return image

    def _process(self, picture: Picture, image_token: int) -> ProcessedImage:
        from vllm.inputs import TokensPrompt

        tokens = TokensPrompt(
            prompt_token_ids=[image_token],
            multi_modal_data={"image": [self._pixels(picture)]},
            multi_modal_uuids={"image": [picture.digest]},
        )
        (rendered,) = cast("list[Any]", self._renderer.render_cmpl([tokens]))  # one of many kinds: the multimodal one
        (fields,), (place,) = rendered["mm_kwargs"]["image"], rendered["mm_placeholders"]["image"]
        return ProcessedImage(fields, place.length, sum(tensor.nbytes for tensor in fields.get_data().values()))
