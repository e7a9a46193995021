"""Weights through shared memory: the files that are written, and what a worker makes of them.

The worker's end is driven by hand over the model of an in-process engine, a tiny Qwen2.5-VL with tied embeddings.
"""

import asyncio
import os
import shutil
import stat
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mmsr1.rollout.engines import weight_transfer
from mmsr1.rollout.engines.weight_sync import drop_caches
from mmsr1.rollout.engines.weight_transfer import BACKEND, checked_path, push, refusal, register, shared_chunks
from tests.rollout.engines.talks import conversations, save_tiny, start_engine
from tests.tiny_model import perturb


@pytest.fixture
def shared(tmp_path, monkeypatch):
    """A folder in place of shared memory, in which nothing is left behind."""
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(weight_transfer, "SHARED_MEMORY", folder)
    yield folder
    assert list(folder.iterdir()) == []


def numbered(count: int, pulled: list[int] | None = None, fail_at: int | None = None):
    """Tensors of 400 bytes under the names t0, t1, ..."""
    for number in range(count):
        if number == fail_at:
            raise OSError("the trainer lost a rank")
        if pulled is not None:
            pulled.append(number)
        yield f"t{number}", torch.full((100,), float(number))


def test_every_tensor_arrives_as_it_was_in_files_of_bounded_size(shared):
    wide = torch.arange(60.0).reshape(6, 10)
    tensors = dict(numbered(10)) | {
        "half": torch.arange(7).to(torch.bfloat16),
        "transposed": wide.T,
        "tied": wide,
        "scalar": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(torch.ones(5)),
        "larger than a chunk": torch.zeros(1000),
    }
    arrived, sizes = {}, []
    for update_info in shared_chunks(tensors.items(), chunk_bytes=1000):
        chunk = load_file(checked_path(update_info["path"]))
        sizes.append(sum(tensor.nbytes for tensor in chunk.values()))
        arrived |= chunk
    assert arrived.keys() == tensors.keys()
    assert all(torch.equal(arrived[name], tensors[name]) for name in tensors)
    assert all(arrived[name].dtype == tensors[name].dtype for name in tensors)
    assert sorted(sizes)[-1] == 4000 and sorted(sizes)[-2] <= 1000 and len(sizes) > 5


def test_tensors_are_pulled_one_by_one_and_one_file_exists_at_a_time(shared):
    pulled: list[int] = []
    for number, update_info in enumerate(shared_chunks(numbered(9, pulled), chunk_bytes=800)):
        assert len(pulled) == min(9, 2 * number + 3)  # this chunk, and the tensor that did not fit into it
        (folder,) = shared.iterdir()
        assert Path(update_info["path"]).parent == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_no_file_outlives_an_error_or_a_reader_that_stops(shared):
    with pytest.raises(OSError, match="lost a rank"):
        list(shared_chunks(numbered(9, fail_at=7), chunk_bytes=800))
    with pytest.raises(ValueError, match="two tensors are named 't0'"):
        list(shared_chunks([*numbered(9), *numbered(1)], chunk_bytes=800))
    chunks = shared_chunks(numbered(9), chunk_bytes=800)
    next(chunks)
    assert len(list(shared.iterdir())) == 1
    chunks.close()


def test_a_shared_memory_without_room_is_left_alone(shared, tmp_path, monkeypatch):
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(weight_transfer.tempfile, "gettempdir", lambda: str(temporary))
    full = shutil.disk_usage(shared)._replace(free=2**20)
    monkeypatch.setattr(weight_transfer.shutil, "disk_usage", lambda path: full)
    (path,) = (checked_path(update_info["path"]) for update_info in shared_chunks(numbered(3)))
    assert path.parents[1] == temporary and not path.parent.exists()


def test_a_path_that_no_trainer_of_this_user_made_is_refused(shared, tmp_path):
    elsewhere = tmp_path / "mmsr1-weights-elsewhere"
    elsewhere.mkdir(mode=0o700)
    made = [shared / "mmsr1-weights-open", shared / "mmsr1-weights-link", shared / "other"]
    made[0].mkdir(mode=0o755)
    made[1].symlink_to(elsewhere)
    made[2].mkdir(mode=0o700)
    inside = shared / "mmsr1-weights-x" / ".." / "mmsr1-weights-y"
    for folder in (elsewhere, *made, inside, Path("/etc")):
        with pytest.raises((ValueError, FileNotFoundError)):
            checked_path(str(folder / "chunk.safetensors"))
    with pytest.raises(ValueError, match="no file of shared weights"):
        checked_path("/etc/passwd")
    made[0].rmdir()
    made[1].unlink()
    made[2].rmdir()


def test_push_sends_one_chunk_after_the_other_and_cleans_up_when_sending_fails(shared, loop):
    sent: list[str] = []

    async def send(update_info: dict[str, str]) -> None:
        await asyncio.sleep(0.01)
        sent.extend(load_file(update_info["path"]))
        if len(sent) == 6:
            raise ConnectionError("the engine is gone")

    async def never(update_info: dict[str, str]) -> None:
        await asyncio.sleep(60)

    async def cancelled() -> None:
        pushing = asyncio.create_task(push(numbered(4), never))
        while not list(shared.iterdir()):
            await asyncio.sleep(0.001)
        pushing.cancel()
        await asyncio.wait([pushing])

    loop.run(push(numbered(5), send, chunk_bytes=800))
    assert sent == ["t0", "t1", "t2", "t3", "t4"]
    sent.clear()
    with pytest.raises(ConnectionError):
        loop.run(push(numbered(9), send, chunk_bytes=800))
    with pytest.raises(OSError, match="lost a rank"):
        loop.run(push(numbered(9, fail_at=5), send, chunk_bytes=800))
    loop.run(cancelled())


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mmsr1.rollout.engines import weight_transfer

weight_transfer.SHARED_MEMORY = Path(sys.argv[1])
chunks = weight_transfer.shared_chunks([("t", torch.zeros(9))])
next(chunks)
print("written", flush=True)
sys.stdin.read()
"""


def test_what_a_killed_trainer_left_is_swept_and_what_a_living_one_holds_is_not(shared, loop):
    def others():
        return {folder for folder in shared.iterdir() if folder not in mine}

    async def sent(update_info: dict[str, str]) -> None:
        mine.add(Path(update_info["path"]).parent)
        seen.append(len(others()))

    def age():
        for folder in shared.iterdir():
            os.utime(folder, (0, 0))

    mine: set[Path] = set()
    seen: list[int] = []
    command = [sys.executable, "-c", KILLED, str(shared)]
    trainer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert trainer.stdout is not None and trainer.stdin is not None
    trainer.stdout.readline()
    age()
    loop.run(push(numbered(1), sent))
    trainer.kill()
    trainer.communicate()
    (left,) = shared.iterdir()
    os.utime(left)  # as if it was just made, and not yet locked
    loop.run(push(numbered(1), sent))
    age()
    (shared / "mmsr1-weights-file").touch()
    loop.run(push(numbered(1), sent))
    assert seen == [1, 1, 1] and not left.exists()
    (shared / "mmsr1-weights-file").unlink()


def test_folders_of_temporary_files_that_differ_are_named(shared, tmp_path):
    with pytest.raises(ValueError, match=rf"in {shared} or .*start both sides with the same TMPDIR"):
        checked_path(str(tmp_path / "mmsr1-weights-x" / "chunk.safetensors"))


def test_vllm_finds_the_back_end_and_the_other_plugins():
    def load(group: str, name: str):
        return entry_points(group=group)[name].load()

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    for _ in range(2):
        load("vllm.general_plugins", "mmsr1_weight_transfer")()
    for group, name in (
        ("vllm.general_plugins", "mmsr1_signals"),
        ("vllm.platform_plugins", "mmsr1_end_with_parent"),
        ("vllm.platform_plugins", "mmsr1_torchvision"),
    ):
        assert load(group, name)() is None  # without effect in a process that vLLM did not start
    assert load("vllm.general_plugins", "mmsr1_weight_transfer") is register
    engine = WeightTransferEngineFactory._registry[BACKEND]()
    assert engine.__name__ == "SharedMemoryEngine"


def test_only_a_refusal_of_the_worker_blames_the_weights():
    error = refusal(Exception("Call to collective_rpc method failed: weights refused: 'x' is unknown"))
    assert isinstance(error, ValueError) and str(error) == "'x' is unknown"
    assert isinstance(refusal(Exception("out of memory")), RuntimeError)


# The worker's end.


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def engine(tiny, loop):
    engine = start_engine(tiny)
    yield engine
    loop.run(engine.close())


class Worker:
    """vLLM's worker, as far as weights go: the calls come under its configuration."""

    def __init__(self, vllm) -> None:
        from mmsr1.rollout.engines.weight_worker import SharedMemoryEngine

        (self.model,) = vllm.apply_model(lambda model: model)
        self.config = vllm.vllm_config
        self.engine = SharedMemoryEngine(None, self.config, torch.device("cpu"), self.model)

    def update(self, *parts) -> None:
        """One update from several iterables of tensors."""
        from vllm.config import set_current_vllm_config

        with set_current_vllm_config(self.config):
            self.engine.start_weight_update()
            for part in parts:
                for update_info in shared_chunks(part, chunk_bytes=2**16):
                    self.engine.update_weights(update_info)
            self.engine.finish_weight_update()

    def forget(self) -> None:
        """Make the model whole again after an update that broke off."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload
        from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

        for layer in self.model.modules():
            info = get_layerwise_info(layer)
            info.loaded_weights.clear()
            info.load_numel = 0
        finalize_layerwise_reload(self.model, self.config.model_config)


@pytest.fixture
def worker(engine, shared):
    worker = Worker(engine._core.engine)
    yield worker
    worker.forget()


def test_weights_in_many_chunks_are_the_models_new_weights(tiny, engine, worker, loop):
    stale = loop.run(conversations(engine, tiny, 3))
    perturb(tiny.model, seed=1, scale=0.03)
    worker.update(tiny.model.named_parameters())
    drop_caches(engine._core.engine)
    turns = loop.run(conversations(engine, tiny, 3))
    assert max(tiny.gap(*turn) for turn in turns) < 1e-4 < 1e-2 < max(tiny.gap(*turn) for turn in stale)


Q, K = (f"model.language_model.layers.1.self_attn.{part}_proj.weight" for part in "qk")
EMBEDDING, NORM = "model.language_model.embed_tokens.weight", "model.visual.blocks.0.norm1.weight"
WRONG = {
    "missing part": (lambda w: [{n: t for n, t in w.items() if n != K}], "qkv_proj"),
    "missing layer": (lambda w: [{n: t for n, t in w.items() if n != NORM}], "norm1"),
    "missing embedding": (lambda w: [{n: t for n, t in w.items() if n != EMBEDDING}], "embed_tokens"),
    "unknown": (lambda w: [w, {"model.language_model.layers.2.input_layernorm.weight": w[NORM]}], "layers.2"),
    "twice instead of another": (lambda w: [{n: t for n, t in w.items() if n != Q}, {K: w[K]}], f"named '{K}'"),
    "too short": (lambda w: [w | {NORM: w[NORM][:-1]}], "norm1"),
    "short part": (lambda w: [w | {Q: w[Q][:-1]}], "q_proj"),
    "too long": (lambda w: [w | {Q: torch.cat([w[Q], w[Q][:1]])}], "64 elements too many"),
    "a head that is not used": (lambda w: [w, {"lm_head.weight": w[EMBEDDING]}], "elements too many"),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_not_the_models_are_refused(tiny, worker, case):
    change, reason = WRONG[case]
    parts = change({name: tensor.detach() for name, tensor in tiny.model.named_parameters()})
    with pytest.raises(ValueError, match="weights refused: ") as error:
        worker.update(*(part.items() for part in parts))
    assert reason in str(error.value)


def test_an_update_does_not_build_on_one_that_broke_off(tiny, worker):
    with pytest.raises(OSError, match="lost a rank"):
        worker.update(numbered(2, fail_at=0))
    with pytest.raises(RuntimeError, match="half done"):
        worker.update(tiny.model.named_parameters())
