"""Keeps the libraries' start-up chatter out of a run's output; their warnings and errors still come through."""

from __future__ import annotations

import logging
import os
import warnings

# What these libraries say of each other's use in every run, and nobody here can act on.
_KNOWN = (
    (FutureWarning, r"`torch.distributed.reduce_op` is deprecated"),
    (Warning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)


def quiet_libraries() -> None:
    """Call before torch is imported: its C++ side reads its log level once."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for category, message in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category)
