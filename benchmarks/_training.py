"""Training steps in one process, as train.py would make them."""

from __future__ import annotations

from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch.distributed  # noqa: E402
from lightning import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


def fit(module: LightningModule, steps: Any, callback: Callback, on_gpu: bool = False) -> None:
    """One training step for each of `steps`, a sequence of `StepPrompts`."""
    trainer = Trainer(
        accelerator="cuda" if on_gpu else "cpu",
        devices=1,
        strategy=ModelParallelStrategy(1, 1, process_group_backend="nccl" if on_gpu else "gloo"),
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, DataLoader(steps, batch_size=None, shuffle=False))
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
