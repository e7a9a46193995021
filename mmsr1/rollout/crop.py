"""The part of a picture that the model names.

The model speaks of pixels of the image as it sees it (Qwen2.5-VL: absolute coordinates after resizing); what is
searched for is cut out of the original, which may show more.
"""

from __future__ import annotations

import math

from mmsr1.rollout.protocol import LEAST_CROP, Box
from mmsr1.tools.pictures import decode, encode_png
from mmsr1.types import Picture


def crop(picture: Picture, box: Box, seen: tuple[int, int]) -> Picture:
    """The part of the original inside `box`, as PNG; `seen` is the width and height that the model sees it at.

    What lies beyond the edges of the picture is left out. Raises ValueError if too little is left to show anything, or
    if the picture cannot be decoded. Takes tens of milliseconds: call it in a worker thread.
    """
    image = decode(picture)
    across, down = image.width / seen[0], image.height / seen[1]
    left, top = max(0, math.floor(box[0] * across)), max(0, math.floor(box[1] * down))
    right, bottom = min(image.width, math.ceil(box[2] * across)), min(image.height, math.ceil(box[3] * down))
    if min(right - left, bottom - top) < LEAST_CROP:
        raise ValueError(f"less than {LEAST_CROP} pixels of the image lie within the crop")
    return encode_png(image.crop((left, top, right, bottom)))
