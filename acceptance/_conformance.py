"""`python -m acceptance._conformance ENGINE --tied|--untied [--fault NAME] --count N`: the suite of
tests/rollout/engines/conformance.py on one engine. Prints one JSON object: figures, or the violation."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from acceptance.lines import free_port
from mmsr1.environment import prepare_process

prepare_process(threads=1)

from tests.rollout.engines.conformance import (  # noqa: E402  (threads are settled before torch is loaded)
    TENSORS,
    ExpandsPlaceholders,
    KeepsOneTensor,
    Violation,
    check,
)
from tests.rollout.engines.talks import Tiny, save_tiny  # noqa: E402

ENGINES = ("vllm", "vllm_process", "vllm_server", "transformers")
FAULTS = ("encoder_cache", "expanded", *TENSORS)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """A `vllm serve` of the folder on loopback; its address."""
    port = free_port()
    flags = ["--max-model-len", "512", "--max-num-seqs", "32", "--kv-cache-gib", "0.125", "--cpu-threads", "1"]
    serve = [sys.executable, "-m", "mmsr1.rollout.engines.serve", str(folder), "--port", str(port), *flags]
    process = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(30)


def started(name: str, tiny: Tiny, stack: ExitStack, **faults: Any) -> Any:
    sizes = {"max_model_len": 512}
    if name == "transformers":
        from mmsr1.rollout.engines.transformers import TransformersEngine

        return TransformersEngine(tiny.folder, max_batch=32, **sizes, **faults)
    if name == "vllm_server":
        from mmsr1.rollout.engines.vllm_server import VllmServerEngine

        url = stack.enter_context(server(tiny.folder))
        return VllmServerEngine([url], tiny.folder, transfer="mmsr1_shm", **sizes, **faults)
    from mmsr1.rollout.engines.vllm import VllmEngine
    from mmsr1.rollout.engines.vllm_process import VllmProcessEngine

    kind = {"vllm": VllmEngine, "vllm_process": VllmProcessEngine}[name]
    return kind(tiny.folder, max_num_seqs=32, kv_cache_bytes=2**27, **sizes, **faults)


def main() -> None:
    parser = argparse.ArgumentParser(prog="acceptance._conformance")
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, required=True)
    parser.add_argument("--fault", choices=FAULTS)
    parser.add_argument("--count", type=int, default=64)
    asked = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        tiny = save_tiny(Path(folder), asked.tied)
        keeps = {"reset_encoder_cache": False} if asked.fault == "encoder_cache" else {}
        engine = faulty = started(asked.engine, tiny, stack, **keeps)
        if asked.fault == "expanded":
            faulty = ExpandsPlaceholders(engine, tiny)
        elif asked.fault in TENSORS:
            faulty = KeepsOneTensor(engine, tiny, asked.fault)
        with asyncio.Runner() as runner:
            try:
                found = runner.run(check(faulty, tiny, asked.count))
            except Violation as violation:
                said: dict[str, Any] = {"violation": str(violation)}
            else:
                digest = hashlib.sha256(repr(found.greedy).encode()).hexdigest()
                said = {"violation": None, "gaps": found.gaps, "ties": found.ties, "greedy": digest}
            runner.run(engine.close())
    sys.stdout.write(json.dumps({**said, "seconds": time.perf_counter() - start}) + "\n")


if __name__ == "__main__":
    main()
