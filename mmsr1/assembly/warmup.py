"""The demonstrations that the starting policy is taught."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from mmsr1.assembly.data import world_spec
from mmsr1.assembly.policy import renderer
from mmsr1.config import Config
from mmsr1.data.emblem.warmup import Demonstrator, WarmupSpec
from mmsr1.data.emblem.world import World
from mmsr1.models.loading import PolicyFiles
from mmsr1.models.packing import flatten
from mmsr1.models.sft_module import Demonstrations


class WarmupData(Dataset[Demonstrations]):
    """Demonstrations for each step, drawn afresh: a pure function of the seed and the step.

    Holds no model, so that a worker process can draw them while the trainer computes.
    """

    def __init__(self, config: Config, files: PolicyFiles) -> None:
        tools = config.tools
        self._patches, self._image_token, self._merge = files.patches, files.image_token, files.merge
        self._seed, self._batch, self._steps = config.seed, config.algorithm.batch_size, config.trainer.max_steps
        self._draw = Demonstrator(
            World(world_spec(config)),
            renderer(config, files),
            WarmupSpec(),
            image_items=tools.image_results,
            thumbnails=tools.thumbnails,
            text_items=tools.text_results,
            edge=tools.thumbnail_edge,
        )

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Demonstrations:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        rng = np.random.default_rng([self._seed, 13, step])
        shown = [self._draw.one(rng) for _ in range(self._batch)]
        laid_out = [flatten(d.segments, self._patches, self._image_token, self._merge, d.weights) for d in shown]
        return Demonstrations(step, laid_out)
