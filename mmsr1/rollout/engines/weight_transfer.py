"""New weights for a vLLM in another process of this machine: safetensors chunks in shared memory, one at a time.

    trainer: push(tensors, send) -- writes a chunk --> /dev/shm <-- maps it -- weight_worker.SharedMemoryEngine: vLLM

`register` is a `vllm.general_plugins` entry point, which vLLM runs in every process that it starts; an engine asks for
the back end with `weight_transfer_config={"backend": BACKEND}`. What vLLM is told of a chunk is the path of its file.
Both ends agree on where such a file can be, so a path from anywhere else is refused by the worker (`checked_path`).
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

BACKEND = "mmsr1_shm"
REFUSED = "weights refused: "  # how the worker's message begins; the type of an error does not cross a process
PREFIX, FILE = "mmsr1-weights-", "chunk.safetensors"
SHARED_MEMORY = Path("/dev/shm")
FRESH_S = 60.0  # the age below which a folder may belong to a process that has not locked it yet


def register() -> None:
    """Tell vLLM of the back end; a second call changes nothing."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    with suppress(ValueError):  # registered already
        WeightTransferEngineFactory.register_engine(
            BACKEND, "mmsr1.rollout.engines.weight_worker", "SharedMemoryEngine"
        )


def shared_chunks(
    tensors: Iterable[tuple[str, Tensor]], chunk_bytes: int = 2**28
) -> Generator[dict[str, str], None, None]:
    """Write the tensors to files of at most `chunk_bytes` (or one tensor); yield what vLLM is told of each (its
    `update_info`). A file lives until the next one is asked for or the iterator is closed.

    Tensors are read one at a time. Beside the file, at most a chunk of copies is held, of tensors on other devices.
    Raises ValueError if a name comes twice, OSError if there is no room, and what `tensors` raises.
    """
    seen: set[str] = set()
    chunk: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors:
        if name in seen:
            raise ValueError(f"two tensors are named {name!r}")
        seen.add(name)
        if chunk and size + tensor.nbytes > chunk_bytes:
            yield from _shared(chunk, size)
            size = 0
        chunk[name] = tensor.detach().cpu().contiguous()
        size += tensor.nbytes
    if chunk:
        yield from _shared(chunk, size)


async def push(
    tensors: Iterable[tuple[str, Tensor]],
    send: Callable[[dict[str, str]], Awaitable[None]],
    chunk_bytes: int = 2**28,
) -> None:
    """Await `send` for each of the `shared_chunks`. Tensors are read and written on one thread, not on the event loop.

    No file is left behind, whatever is raised, and what a killed process left behind is removed.
    """
    loop, chunks = asyncio.get_running_loop(), shared_chunks(tensors, chunk_bytes)
    thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
    try:
        await loop.run_in_executor(thread, sweep)
        while (update_info := await loop.run_in_executor(thread, next, chunks, None)) is not None:
            await send(update_info)
    finally:
        closed = loop.run_in_executor(thread, chunks.close)  # on that thread: a `next` may not have ended, if cancelled
        thread.shutdown(wait=False)
        await closed


def sweep() -> None:
    """Remove the folders of this user's processes that were killed during a push.

    A living process holds a lock on its own. (Its number would tell nothing in another container that shares the
    memory.)
    """
    for folder in [folder for place in _places() for folder in place.glob(f"{PREFIX}*")]:
        with suppress(OSError):
            status = os.lstat(folder)
            private = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if private and time.time() - status.st_mtime > FRESH_S:
                with _locked(folder):
                    shutil.rmtree(folder)


def refusal(error: Exception) -> Exception:
    """The error to raise in the trainer: ValueError where the worker refused the weights, else RuntimeError."""
    _, refused, reason = str(error).partition(REFUSED)
    return ValueError(reason) if refused else RuntimeError(f"{type(error).__name__}: {error}")


def checked_path(path: str) -> Path:
    """The path, if `shared_chunks` of a process of this user can have made it. Raises ValueError if not."""
    file = Path(path)
    folder = file.parent
    if not folder.name.startswith(PREFIX) or file.name != FILE:
        raise ValueError(f"{path!r} is no file of shared weights")
    if folder.parent not in _places():
        here = " or ".join(map(str, _places()))
        raise ValueError(f"{path!r} is no file of shared weights in {here}: start both sides with the same TMPDIR")
    status = os.lstat(folder)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ValueError(f"{folder} is not private to this user")
    return file


def _shared(chunk: dict[str, Tensor], size: int) -> Iterator[dict[str, str]]:
    """Move the chunk to a file in a folder with a random name that only this user can enter."""
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=_place(size)) as folder, ExitStack() as held:
        with suppress(OSError):  # a file system without locks, where `sweep` gets none either
            held.enter_context(_locked(folder))
        path = Path(folder, FILE)
        save_file(_unshared(chunk), path)
        chunk.clear()
        yield {"path": str(path)}


@contextmanager
def _locked(folder: str | Path) -> Iterator[None]:
    """Hold the folder's lock, which the system takes back when this process ends. Raises OSError if it is held."""
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(file)


def _unshared(chunk: dict[str, Tensor]) -> dict[str, Tensor]:
    """The format has no room for two tensors in the same memory, such as tied weights: copy the later ones."""
    memory: set[int] = set()
    own = {}
    for name, tensor in chunk.items():
        address = tensor.untyped_storage().data_ptr()
        own[name] = tensor.clone() if address in memory else tensor
        memory.add(address)
    return own


def _place(size: int) -> Path:
    """Shared memory if it has room (a container may have 64 MB of it), else the folder of temporary files."""
    memory, temporary = _places()
    room = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > size + 2**20
    return memory if room else temporary


def _places() -> tuple[Path, Path]:
    return SHARED_MEMORY, Path(tempfile.gettempdir())
