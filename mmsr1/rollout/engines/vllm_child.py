"""What a vLLM in a process of its own needs: an environment while it is started, and an end with its parent.

Imports neither torch nor vLLM, which runs `end_with_parent` and `take_signals` as plugins in all its processes.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

PARENT = "MMSR1_VLLM_PARENT"  # its process id, in the environment of the child
WATCH = "end with parent"
# What its libraries say of each other in every child (`mmsr1.environment` keeps it from this process's terminal).
KNOWN_WARNINGS = "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning"


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
            "PYTHONWARNINGS": ",".join(filter(None, (KNOWN_WARNINGS, before.get("PYTHONWARNINGS")))),  # the last wins
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

    vLLM's engine process waits for the next message of a parent that was killed for ever. This is a
    `vllm.platform_plugins` entry point, because those run first of all; returning None, it provides no platform.
    vLLM's remark that there is no Triton for a CPU comes before it has set up its own log, and would reach the
    terminal.
    """
    parent = int(os.environ.get(PARENT, os.getpid()))
    if parent != os.getpid():
        logging.getLogger("vllm.triton_utils.importing").setLevel(logging.ERROR)
        del os.environ[PARENT]  # what this process starts ends with it by vLLM's own means
        threading.Thread(target=_end_after, args=(parent,), name=WATCH, daemon=True).start()


def take_signals() -> None:
    """In a child started under `child_environment`: leave Ctrl-C to the parent, and end quickly when told to.

    On a terminal Ctrl-C reaches both; only the parent knows what should become of the child. Told to end, the child
    skips the seconds that the interpreter would take to tear itself down. This is a `vllm.general_plugins` entry
    point, because those run after vLLM has installed its own handlers.
    """
    if all(thread.name != WATCH for thread in threading.enumerate()):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shut_down = signal.getsignal(signal.SIGTERM)

    def terminate(number: int, frame: FrameType | None) -> None:
        atexit.register(os._exit, 0)
        if callable(shut_down):
            shut_down(number, frame)

    signal.signal(signal.SIGTERM, terminate)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:  # an orphan is adopted
        time.sleep(0.5)
    os._exit(1)
