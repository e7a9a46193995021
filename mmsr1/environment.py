"""What a training process needs settled before torch is imported: threads, and the libraries' start-up chatter."""

from __future__ import annotations

import logging
import os
import warnings

from mmsr1.torchvision_shim import ensure_torchvision

# What these libraries say of each other's use in every run, and nobody here can act on.
_KNOWN = (
    (FutureWarning, r"`torch.distributed.reduce_op` is deprecated"),
    (Warning, r"`isinstance\(treespec, LeafSpec\)` is deprecated"),
)


def prepare_process(threads: int) -> None:
    """Call first: OpenMP and torch's C++ side read these once, when they are loaded. Warnings still come through."""
    # Lightning would set the number of threads to that of the cores.
    os.environ["OMP_NUM_THREADS"] = str(threads)
    # A thread that waits for its team must not spin: on a busy machine small operations would take twenty times longer.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for category, message in _KNOWN:
        warnings.filterwarnings("ignore", message=message, category=category)
    ensure_torchvision()  # torchmetrics, which Lightning imports, imports torchvision
    import lightning  # noqa: F401  (importing it sets the levels that are changed here)

    for name in ("lightning.pytorch", "lightning.fabric", "faiss.loader"):
        logging.getLogger(name).setLevel(logging.WARNING)
