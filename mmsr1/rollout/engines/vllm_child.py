"""What a vLLM in a process of its own needs: an environment while it is started, and an end with its parent.

Imports neither torch nor vLLM: vLLM runs `end_with_parent` (a `vllm.general_plugins` entry point) in all its processes.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT = "MMSR1_VLLM_PARENT"  # its process id, in the environment of the child


@contextmanager
def child_environment(threads: int, eager: bool) -> Iterator[None]:
    """What the child finds in its environment, and vLLM's half in this process while it is imported and started.

    Afterwards the environment of this process is what it was, vLLM's own changes included: they are meant for the
    child. That has `threads` threads, however many this process has.
    """
    before = dict(os.environ)
    os.environ.update(
        {
            PARENT: str(os.getpid()),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
            "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork of a process with threads can hang
            "OMP_NUM_THREADS": str(threads),
            "VLLM_NO_USAGE_STATS": before.get("VLLM_NO_USAGE_STATS", "1"),
            "VLLM_LOGGING_LEVEL": before.get("VLLM_LOGGING_LEVEL", "ERROR"),
        }
    )
    if eager:  # see `vllm_core.environment`
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    try:
        yield
    finally:
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def end_with_parent() -> None:
    """In a child started under `child_environment`: end when the parent does, however that ends.

    vLLM's engine process waits for the next message of a parent that was killed for ever. A Ctrl-C on the terminal
    reaches parent and child; only the parent knows what should become of it. Told to end, the child skips the seconds
    that the interpreter would take to tear itself down.
    """
    parent = multiprocessing.parent_process()
    if parent is None or os.environ.get(PARENT) != str(parent.pid):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shut_down = signal.getsignal(signal.SIGTERM)

    def terminate(number: int, frame: FrameType | None) -> None:
        atexit.register(os._exit, 0)
        if callable(shut_down):
            shut_down(number, frame)

    signal.signal(signal.SIGTERM, terminate)

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, name="end_with_parent", daemon=True).start()
