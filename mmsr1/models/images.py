"""Pictures to patches: the one image processor that rollouts and training share, with caches by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from PIL.Image import Image, Resampling
from torch import Tensor

from mmsr1.torchvision_shim import ensure_torchvision
from mmsr1.types import Picture

ensure_torchvision()

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize  # noqa: E402


class ImageFeatures:
    """Patches and grid of a picture, as Qwen2.5-VL's processor makes them.

    `processor` is the library's image processor, `decode` the project's safe decoder. The patches of recent
    pictures are kept, up to `capacity_bytes`.
    """

    def __init__(self, processor: Any, decode: Callable[[Picture], Image], capacity_bytes: int = 2**30) -> None:
        self._processor = processor
        self._decode = decode
        self._merge = int(processor.merge_size) ** 2
        self._patch = int(processor.patch_size)
        self._room = capacity_bytes
        self._cache: OrderedDict[str, tuple[Float[Tensor, "P D"], tuple[int, int, int]]] = OrderedDict()

    def __call__(self, picture: Picture) -> tuple[Float[Tensor, "P D"], tuple[int, int, int]]:
        """(patches, (time, height, width) in patches). Raises what `decode` raises for bytes that are no image."""
        if picture.digest not in self._cache:
            out = self._processor(images=[self.fitted(picture)], return_tensors="pt")
            t, h, w = (int(n) for n in out["image_grid_thw"][0])
            self._cache[picture.digest] = (out["pixel_values"].to(torch.float32), (t, h, w))
            self._room -= self._cache[picture.digest][0].nbytes
            while self._room < 0 and len(self._cache) > 1:
                self._room += self._cache.popitem(last=False)[1][0].nbytes
        self._cache.move_to_end(picture.digest)
        return self._cache[picture.digest]

    def fitted(self, picture: Picture) -> Image:
        """The picture at the size the model sees it, a whole number of tokens wide and high.

        The engine is given this too: libraries interpolate differently, by enough to part the log-probs of engine and
        trainer, and an image that already fits is resized by none of them.
        """
        image = self._decode(picture)
        size, rule = (image.width, image.height), self._processor
        while True:  # a long thin shape exceeds the limit at first, and would be resized once more
            limits = rule.size["shortest_edge"], rule.size["longest_edge"]
            height, width = smart_resize(size[1], size[0], rule.patch_size * rule.merge_size, *limits)
            if size == (width, height):
                return image if image.size == size else image.resize(size, Resampling.BICUBIC)
            size = (width, height)

    def tokens(self, picture: Picture) -> int:
        """How many tokens the picture takes in the language model."""
        t, h, w = self(picture)[1]
        return t * h * w // self._merge

    def size(self, picture: Picture) -> tuple[int, int]:
        """Width and height in pixels at which the model sees the picture."""
        _, h, w = self(picture)[1]
        return w * self._patch, h * self._patch
