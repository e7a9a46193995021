"""The schema of `conf/rollout`: how episodes are sampled, by what, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from omegaconf import MISSING

from mmsr1.config.checks import ConfigError, at_least, check, one_of, positive
from mmsr1.config.tools import PartConfig

TRAINABLE = ("vllm", "vllm_process", "vllm_server", "transformers")  # engines that take the weights of a training run
ENGINES = (*TRAINABLE, "openai", "emblem_teacher")


@dataclass
class VllmConfig:
    """Arguments of the in-process engine; `extra` goes to vLLM as it is."""

    max_num_seqs: int = MISSING
    max_model_len: int = MISSING
    max_num_batched_tokens: int = MISSING
    kv_cache_gib: float | None = MISSING
    images_per_prompt: int = MISSING
    enforce_eager: bool = MISSING
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive("rollout.vllm", self, "max_num_seqs", "max_model_len", "images_per_prompt")
        key, fits = "rollout.vllm.max_num_batched_tokens", self.max_num_batched_tokens >= self.max_model_len
        check(fits, key, self.max_num_batched_tokens, "must be at least rollout.vllm.max_model_len")


@dataclass
class TransformersConfig:
    """The engine that needs no vLLM: rows of a batch, and the device it runs on."""

    max_batch: int = MISSING
    device: str = MISSING

    def __post_init__(self) -> None:
        positive("rollout.transformers", self, "max_batch")


@dataclass
class ServerConfig:
    """Machines that run `mmsr1.rollout.engines.serve`; `transfer` is how the weights get there: between GPUs, or on
    this same host. A request to one of them may take `timeout_s`; without any live one the run ends after `wait_s`."""

    urls: list[str] = field(default_factory=list)
    transfer: str = MISSING
    timeout_s: float = MISSING
    wait_s: float = 600.0  # here and not in conf: a run of before has none in its config.yaml

    def __post_init__(self) -> None:
        one_of("rollout.server.transfer", self.transfer, "nccl", "mmsr1_shm")
        positive("rollout.server", self, "timeout_s", "wait_s")
        seen: set[tuple[object, ...]] = set()
        for url in self.urls:
            server = _address(url)
            check(server not in seen, "rollout.server.urls", url, "is there twice; name each server once")
            seen.add(server)


def _address(url: str) -> tuple[object, ...]:
    """What makes an address another server's. Raises ConfigError, which repeats no secret, if it is none."""
    key = "rollout.server.urls"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{key}: one of them is no address; give some such as http://node7:8000") from None
    shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
    plain = not (parts.query or parts.fragment or "@" in parts.netloc)
    check(plain, key, shown, "holds no name, password or query; put a token into MMSR1_ENGINE_TOKEN")
    check(url.startswith(("http://", "https://")), key, url, "must begin with http:// or https://")
    check(bool(parts.hostname), key, url, "must name a machine, such as http://node7:8000")
    return parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme], parts.path.rstrip("/")


@dataclass
class RolloutConfig:
    """How episodes are sampled. Token limits count the expanded image tokens.

    `on_tool_failure` and `on_over_budget` (of the run, `tools.budget`): `tell` reports it to the model and goes on,
    `stop` ends the episode, which is then not trained on. `crops` lets the model search by a part of the image.

    `overlap` 1 rolls out a step while the one before it trains; `oversample` is the share of groups that are on their
    way beyond what a step takes; `max_staleness` null is the least that these two need. `keep_running` lets turns go on
    over a weight sync, `sleep` frees the engine's GPU memory while the trainer works.

    Two engines only answer, for evaluation, balancing and traces: `openai` asks the model behind `api`, and
    `emblem_teacher` writes the emblem world's demonstrations by the boundary that `teacher` names.
    """

    engine: str = MISSING
    prompts: str = MISSING
    turns: int = MISSING
    turn_tokens: int = MISSING
    episode_tokens: int = MISSING
    image_searches: int = MISSING
    text_searches: int = MISSING
    on_tool_failure: str = MISSING
    on_over_budget: str = MISSING
    crops: bool = MISSING
    temperature: float = MISSING
    top_p: float = MISSING
    deterministic: bool = MISSING
    reset_encoder_cache: bool = MISSING
    overlap: int = MISSING
    oversample: float = MISSING
    max_staleness: int | None = MISSING
    keep_running: bool = MISSING
    sleep: bool = MISSING
    vllm: VllmConfig = MISSING
    transformers: TransformersConfig = MISSING
    server: ServerConfig = MISSING
    api: PartConfig = field(default_factory=lambda: PartConfig("openai"))
    teacher: str = "oracle"

    def __post_init__(self) -> None:
        one_of("rollout.engine", self.engine, *ENGINES)
        one_of("rollout.teacher", self.teacher, "oracle", "mismatched")
        if self.engine == "openai":
            self.api.check_as("rollout.api", ("openai",))
        self._check_order()
        one_of("rollout.on_tool_failure", self.on_tool_failure, "stop", "tell")
        one_of("rollout.on_over_budget", self.on_over_budget, "stop", "tell")
        positive("rollout", self, "turns", "turn_tokens")
        at_least(0, "rollout", self, "image_searches", "text_searches")
        check(self.temperature >= 0, "rollout.temperature", self.temperature, "must be 0 (greedy) or more")
        check(0 < self.top_p <= 1, "rollout.top_p", self.top_p, "must be in (0, 1]")
        room = self.episode_tokens - 2 * self.turn_tokens
        check(
            room > 0, "rollout.episode_tokens", self.episode_tokens, "must exceed two turns (2 * rollout.turn_tokens)"
        )
        fits = self.vllm.max_model_len >= self.episode_tokens
        check(fits, "rollout.vllm.max_model_len", self.vllm.max_model_len, "must be at least rollout.episode_tokens")

    def _check_order(self) -> None:
        """Which weights sample what, and when."""
        check(self.overlap in (0, 1), "rollout.overlap", self.overlap, "must be 0 or 1 (steps that rollouts run ahead)")
        share = 0 <= self.oversample <= 1
        check(share, "rollout.oversample", self.oversample, "must be between 0 and 1 (of algorithm.prompts_per_step)")
        least = self.overlap + (self.oversample > 0)
        enough = self.max_staleness is None or self.max_staleness >= least
        remedy = (
            f"must be at least {least} with rollout.overlap={self.overlap} and rollout.oversample={self.oversample}"
        )
        check(enough, "rollout.max_staleness", self.max_staleness, remedy)
        key, remedy = "rollout.oversample", "rollout.deterministic=true takes prompts in their order; give 0"
        check(not (self.deterministic and self.oversample), key, self.oversample, remedy)
        repeats = not self.deterministic or self.engine in ("vllm", "transformers")
        remedy = f"rollout.engine={self.engine} does not repeat bit by bit; give false"
        check(repeats, "rollout.deterministic", self.deterministic, remedy)
        partial = not self.keep_running or self.engine == "vllm_process"
        check(partial, "rollout.keep_running", self.keep_running, "only rollout.engine=vllm_process can; give false")
        running = not self.keep_running or least > 0
        remedy = "no rollout runs during a weight sync without rollout.overlap or rollout.oversample; give false"
        check(running, "rollout.keep_running", self.keep_running, remedy)
        idle = not self.sleep or not least
        check(idle, "rollout.sleep", self.sleep, "the engine works while the trainer does; give false")
        shared = not self.sleep or self.engine != "vllm_server"
        check(shared, "rollout.sleep", self.sleep, "the servers have GPUs of their own; give false")
        named = self.engine != "vllm_server" or bool(self.server.urls)
        remedy = 'name the machines, e.g. rollout.server.urls=["http://node7:8000"]'
        check(named, "rollout.server.urls", self.server.urls, remedy)
