"""The traces that a policy imitates, in their order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from mmsr1.assembly.answering import drawn
from mmsr1.config import Config, ConfigError
from mmsr1.data.traces.folder import TraceError, Traces, tokenizer_name
from mmsr1.models.loading import PolicyFiles
from mmsr1.models.packing import flatten
from mmsr1.models.sft_module import Demonstrations


class TraceData(Dataset[Demonstrations]):
    """Traces for each step, shuffled anew for every pass: a pure function of the seed and the step. Of
    `algorithm.questions` questions, if that is not 0, as many traces are drawn.

    Raises ConfigError for a folder that cannot be used.
    """

    def __init__(self, config: Config, files: PolicyFiles) -> None:
        try:
            self._traces = Traces(Path(config.algorithm.traces), tokenizer_name(files.tokenizer))
        except TraceError as error:
            raise ConfigError(f"algorithm.traces={error}") from error
        self._drawn = drawn(len(self._traces), config.algorithm.questions, config.seed)
        self._patches, self._image_token, self._merge = files.patches, files.image_token, files.merge
        self._order = (-1, np.empty(0, dtype=np.int64))  # of the pass that was drawn from last
        self._seed, self._batch, self._steps = config.seed, config.algorithm.batch_size, config.trainer.max_steps

    def __len__(self) -> int:
        return self._steps

    def __getitem__(self, step: int) -> Demonstrations:
        if not 0 <= step < self._steps:
            raise IndexError(step)
        shown = [self._traces[self._place(step * self._batch + i)] for i in range(self._batch)]
        return Demonstrations(step, [flatten(s, self._patches, self._image_token, self._merge) for s in shown])

    def _place(self, position: int) -> int:
        epoch, place = divmod(position, len(self._drawn))
        if epoch != self._order[0]:
            self._order = epoch, np.random.default_rng([self._seed, 17, epoch]).permutation(len(self._drawn))
        return self._drawn[int(self._order[1][place])]
