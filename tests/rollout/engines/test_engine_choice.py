"""The engine that a configuration names: its addresses, and the device and the names that it is given."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mmsr1.assembly import engines
from mmsr1.config import Config, ConfigError, register
from mmsr1.config.rollout import ServerConfig
from mmsr1.models.loading import PolicyFiles, load_policy
from mmsr1.rollout.engines import transformers, vllm_process, vllm_server
from mmsr1.rollout.engines import vllm as vllm_engine
from mmsr1.rollout.engines.scripted import ScriptedEngine
from mmsr1.tools.pictures import decode
from tests.rollout.engines.talks import save_tiny

CONF = Path(__file__).parents[3] / "conf"
ENGINES = {
    "vllm": (vllm_engine, "VllmEngine"),
    "vllm_process": (vllm_process, "VllmProcessEngine"),
    "transformers": (transformers, "TransformersEngine"),
}


def config(*overrides: str) -> Config:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        made = OmegaConf.to_object(compose("config", list(overrides)))
    assert isinstance(made, Config)
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> PolicyFiles:
    folder = save_tiny(tmp_path_factory.mktemp("tiny"), tied=True).folder
    return load_policy(str(folder), "float32", decode)


@pytest.fixture
def given(files, monkeypatch):
    """What the engine of this name would be started with."""

    def start(name: str, *overrides: str) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        module, kind = ENGINES[name]

        def started(folder, **named):
            arguments.update(named)
            return ScriptedEngine([], files.tokenizer)

        monkeypatch.setattr(module, kind, started)
        engines._MAKE[name](config(f"rollout={name}", *overrides), files, Path("folder"), 0)
        return arguments

    return start


@pytest.fixture
def fourth_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


EIGHT = ("trainer.accelerator=cuda", "trainer.devices=8")


def test_each_process_has_its_engine_on_its_own_gpu(given, fourth_gpu):
    for name in ("vllm", "vllm_process"):
        assert given(name, *EIGHT)["engine_args"]["device_ids"] == [3]
    assert given("transformers", *EIGHT)["device"] == "cuda:3"


def test_a_gpu_that_the_user_names_stays(given, fourth_gpu):
    extra = "+rollout.vllm.extra.device_ids=[5]"
    assert given("vllm", *EIGHT, extra)["engine_args"]["device_ids"] == [5]
    assert given("transformers", *EIGHT, "rollout.transformers.device=cpu")["device"] == "cpu"


def test_a_process_alone_and_one_without_a_gpu_leave_it_to_the_engine(given, fourth_gpu):
    assert "device_ids" not in given("vllm", "trainer.accelerator=cuda")["engine_args"]
    assert "device_ids" not in given("vllm")["engine_args"]
    assert "device_ids" not in given("vllm", *EIGHT, "+rollout.vllm.extra.tensor_parallel_size=8")["engine_args"]
    assert given("transformers")["device"] == "cpu"


def test_vllm_takes_the_gpu_that_it_is_given_among_those_that_are_visible(tmp_path, monkeypatch):
    from vllm.engine.arg_utils import EngineArgs
    from vllm.platforms import current_platform

    folder = save_tiny(tmp_path, tied=True).folder
    arguments = EngineArgs(str(folder), dtype="float32", max_model_len=512, kv_cache_memory_bytes=2**26, device_ids=[1])
    assert arguments.create_engine_config().parallel_config.assigned_physical_gpu_ids == [1]
    monkeypatch.setattr(current_platform, "device_control_env_var", "CUDA_VISIBLE_DEVICES")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    assert arguments._resolve_device_ids() == [6]


@pytest.mark.parametrize(
    ("urls", "reason"),
    [
        (["http://a:8000", "http://a:8000"], "http://a:8000: is there twice"),
        (["http://a:8000", "http://a:8000/"], "http://a:8000/: is there twice"),
        (["http://a", "http://A:80"], "is there twice"),
        (["http://me:hunter2@a:8000"], "=http://a:8000: holds no name, password or query"),
        (["http://a:8000/?token=hunter2"], "=http://a:8000/: holds no name"),
        (["http://a:8000#hunter2"], "holds no name"),
        (["a:8000"], "must begin with http"),
        (["http://:8000"], "must name a machine"),
        (["http://a:eight"], "is no address"),
        (["http://[::1"], "is no address"),
    ],
)
def test_addresses_are_checked_in_one_line_that_repeats_no_secret(urls, reason):
    with pytest.raises(ConfigError, match=re.escape(reason)) as error:
        ServerConfig(urls, "nccl", 1.0)
    assert "hunter2" not in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).startswith("rollout.server.urls")


def test_addresses_that_differ_are_taken():
    ServerConfig(
        ["http://a:8000", "http://a:8001", "https://a:8000", "http://b:8000/one", "http://b:8000/two"], "nccl", 1
    )


@pytest.fixture
def served(files):
    """Make the fleet of a configuration; `files` are those of the model that is served."""

    def make(*overrides: str, rank: int = 0):
        folder = Path(files.tokenizer.name_or_path)
        return engines._vllm_server(config("rollout=vllm_server", *overrides), files, folder, rank)

    return make


def test_a_server_that_is_not_there_is_a_mistake_in_one_line(served):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"rollout.server.urls: no engine server for 0.3 s: {url}: cannot"):
            served(f"rollout.server.urls=[{url}]", "rollout.server.wait_s=0.3")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is right with a GPU")
def test_weights_over_nccl_need_a_gpu_to_come_from(served):
    with pytest.raises(ConfigError, match="rollout.server.transfer=nccl: the trainer has no GPU"):
        served("rollout.server.urls=[http://127.0.0.1:9]", "rollout.server.transfer=nccl")


def test_all_processes_of_a_trainer_name_the_same_owner_and_another_trainer_another(served, files, monkeypatch):
    class Second:
        """A process whose group has told it the first one's name."""

        def gather(self, item):
            return ["0a1b2c3d", item]

    made: list[dict[str, Any]] = []

    class Engine(ScriptedEngine):
        def __init__(self, *urls_and_model, **arguments):
            super().__init__([], files.tokenizer)
            made.append(arguments)

        def find_servers(self):
            pass

    monkeypatch.setattr(vllm_server, "VllmServerEngine", Engine)
    for _ in range(2):
        served("rollout.server.urls=[http://a]")
    monkeypatch.setattr(engines.Ranks, "current", staticmethod(Second))
    served("rollout.server.urls=[http://a]", "rollout.server.wait_s=7", rank=1)
    first, again, second = made
    assert first["owner"] != again["owner"] and (second["owner"], second["pushes"]) == ("0a1b2c3d", False)
    assert (first["wait_s"], second["wait_s"]) == (600, 7)
