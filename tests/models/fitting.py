"""A Lightning run as train.py sets it up: one CPU process under ModelParallelStrategy, without loggers or files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch.distributed  # noqa: E402
from lightning import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402


@contextmanager
def one_process_group() -> Iterator[None]:
    """Whatever process group Lightning makes inside is gone afterwards, and so are the variables that announce it."""
    before = dict(os.environ)
    try:
        yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name in os.environ.keys() - before.keys():
            del os.environ[name]


def fit(module: LightningModule, batches: Sequence[Any], *callbacks: Callback, logger: Any = False) -> Trainer:
    """Train on `batches`, one training step each; returns the trainer for what it counted."""
    with one_process_group():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            strategy=ModelParallelStrategy(
                data_parallel_size=1,
                tensor_parallel_size=1,
                process_group_backend="gloo",
                save_distributed_checkpoint=True,
            ),
            max_epochs=1,
            callbacks=list(callbacks),
            logger=logger,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        dataset: Any = list(batches)  # has the two methods of a map-style Dataset
        trainer.fit(module, DataLoader(dataset, batch_size=None, shuffle=False))
    return trainer


def assert_equal_weights(one: Any, other: Any, tolerance: float = 0.0) -> None:
    """Both modules hold the same tensors under the same names."""
    theirs = dict(other.full_weights())
    for name, tensor in one.full_weights():
        difference = (tensor - theirs.pop(name)).abs().max().item()
        assert difference <= tolerance, f"{name} differs by {difference}"
    assert not theirs
