"""The worker's end of `weight_transfer`: vLLM imports this module in the processes that hold the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from safetensors import safe_open
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from mmsr1.rollout.engines.weight_sync import Reload
from mmsr1.rollout.engines.weight_transfer import REFUSED, checked_path


@dataclass
class NothingToSetUp(WeightTransferInitInfo):
    pass


@dataclass
class SharedChunk(WeightTransferUpdateInfo):
    """Some tensors under their Hugging Face names, in a safetensors file of `weight_transfer.shared_chunks`."""

    path: str


class SharedMemoryEngine(WeightTransferEngine[NothingToSetUp, SharedChunk]):
    """Reloads the model layer by layer from chunks. Raises ValueError, beginning with `REFUSED`, for weights that are
    not exactly those of the model; it holds a mixture then and must not sample again."""

    init_info_cls, update_info_cls = NothingToSetUp, SharedChunk
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: NothingToSetUp) -> None:
        pass

    def start_weight_update(self) -> None:
        self._reload = Reload(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        if self.device.type == "cpu":  # which has nothing to synchronise: vLLM's own method would raise
            self.receive_weights(self.parse_update_info(update_info))
        else:
            super().update_weights(update_info)

    def receive_weights(self, update_info: SharedChunk) -> None:
        with _refusing(), safe_open(checked_path(update_info.path), framework="pt") as file:
            self._reload.load((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118  (no mapping)

    def finish_weight_update(self) -> None:
        with _refusing():
            self._reload.finish()

    def shutdown(self) -> None:
        pass


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise ValueError(f"{REFUSED}{error}") from error
