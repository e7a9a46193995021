"""A whole GRPO step without tools beside TRL's: rollouts, rewards, log-probs, losses, optimiser, weights to the engine.

The same random Qwen2.5-VL, questions with a picture each, and as many tokens sampled and trained on in both: every
rollout takes all the room it has. Both run vLLM inside the training process, float32 on one thread, and train the
vision tower too. The two take turns step by step after a first one that is not counted; memory is the largest resident
set of each process. `cpu_seconds` are those of the processor, which a busy machine disturbs less. Left out of ours:
what a run writes to disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from mmsr1.torchvision_shim import ensure_torchvision

ensure_torchvision()

import torch  # noqa: E402
from lightning import Callback, LightningModule, Trainer  # noqa: E402

from benchmarks import _peer  # noqa: E402
from benchmarks._memory import peak_mib  # noqa: E402
from benchmarks._policy import as_task, questions, read_policy, write_policy  # noqa: E402
from benchmarks._process import Channel, Part  # noqa: E402
from benchmarks._training import fit  # noqa: E402
from benchmarks._worker import make_worker, sampling  # noqa: E402
from mmsr1.models.buffer import RolloutBuffer  # noqa: E402
from mmsr1.models.grpo import LossSpec  # noqa: E402
from mmsr1.models.grpo_module import Encoding, GRPOModule  # noqa: E402
from mmsr1.models.loading import PolicyFiles  # noqa: E402
from mmsr1.models.module import OptimSpec  # noqa: E402
from mmsr1.models.policy import Policy  # noqa: E402
from mmsr1.rewards.advantage import make_group  # noqa: E402
from mmsr1.types import Episode, Example, Group, Reward, StepPrompts  # noqa: E402

PROMPTS, ROLLOUTS, TOKENS, STEPS = 16, 8, 32, 6
LEARNING_RATE = 6e-4
TOKEN_BUDGET, TRL_MICRO_BATCH = 2048, 16  # of a micro-batch: tokens of ours, episodes of TRL


def measure() -> dict[str, Any]:
    """Median seconds of a step, and peaks; None for TRL where it cannot be installed, and `trl_missing` says why."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_policy(folder / "policy")
        steps = [questions(PROMPTS, run) for run in range(STEPS + 1)]
        task = {
            "policy": str(folder / "policy"),
            "scratch": scratch,
            "prompts": PROMPTS,
            "rollouts": ROLLOUTS,
            "tokens": TOKENS,
            "lr": LEARNING_RATE,
            "micro_batch": TRL_MICRO_BATCH,
        }
        with Part.of("grpo_step") as ours, _peer.TrlPart("grpo_step") as trl:
            ours.ask(**task, steps=len(steps))
            trl.ask(**task, rows=[row for asked in steps for row in as_task(asked, folder)])
            answers = [(ours.ask(), trl.ask()) for _ in steps]
    found = {"ours": [one for one, _ in answers[1:]], "trl": [other for _, other in answers[1:]]}
    if len({(one["sampled"], one["in_all"]) for pair in answers for one in pair if one is not None}) != 1:
        raise RuntimeError(f"the two did not work on equally many tokens: {answers}")
    counts = {f"tokens_{name}": answers[0][0][name] for name in ("sampled", "in_all")}
    return {"engine": "vllm", "episodes": PROMPTS * ROLLOUTS, **counts, **_summary(found, trl.missing)}


def _summary(found: dict[str, list[Any]], missing: str | None) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for name, of in (("seconds", median), ("cpu_seconds", median), ("peak_mib", max)):
        for system, answers in found.items():
            figures[f"{system}_{name}"] = None if None in answers else of(answer[name] for answer in answers)
    both = missing is None
    return {
        **figures,
        "speedup": figures["trl_seconds"] / figures["ours_seconds"] if both else None,
        "memory_ratio": figures["ours_peak_mib"] / figures["trl_peak_mib"] if both else None,
        "trl_version": _peer.TRL if both else None,
        "trl_missing": missing,
    }


class Steps(Callback):
    """Waits for each step, does what `RolloutCallback` does around it, and answers with its figures."""

    def __init__(self, channel: Channel, task: dict[str, Any], files: PolicyFiles) -> None:
        self.channel, self.task, self.files = channel, task, files
        self.begun = self.begun_cpu = 0.0
        self.groups: tuple[Group, ...] = ()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.worker = make_worker(Path(self.task["policy"]), self.files, self.task["tokens"])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.worker.close()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.channel.send({})

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: StepPrompts, batch_idx: int) -> None:
        self.channel.receive()
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()
        drawn = sampling(self.task["tokens"])
        rolled = self.worker.rollout(batch.examples, self.task["rollouts"], drawn, "train", batch.step)
        self.groups = tuple(_group(*one) for one in zip(batch.examples, rolled, strict=True))
        pl_module.buffer.put(batch.step, self.groups)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: StepPrompts, batch_idx: int
    ) -> None:
        self.worker.load_weights(pl_module.full_weights(), batch.step + 1)
        seconds, cpu = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        episodes = [episode for group in self.groups for episode in group.episodes_G]
        self.channel.send(
            {
                "seconds": seconds,
                "cpu_seconds": cpu,
                "sampled": int(pl_module.figures["tokens_trained"]),
                "in_all": sum(self.worker.renderer.length(episode.segments) for episode in episodes),
                "peak_mib": peak_mib(),
            }
        )


def main(channel: Channel) -> None:
    """Ours: makes a step whenever it is asked."""
    task = channel.receive()
    assert task is not None
    torch.set_num_threads(1)
    files = read_policy(Path(task["policy"]))
    encoding = Encoding(files.patches, files.image_token, files.merge, frozenset(files.tokenizer.added_tokens_decoder))
    module = GRPOModule(
        Policy(files.model),
        RolloutBuffer(),
        encoding,
        LossSpec(),
        OptimSpec(task["lr"], "linear", task["steps"]),
        mini_batches=1,
        token_budget=TOKEN_BUDGET,
        gap_limit=1e-3,
        freeze_vision=False,
    )
    steps = [StepPrompts(step, tuple(questions(task["prompts"], step))) for step in range(task["steps"])]
    fit(module, steps, Steps(channel, task, files))


def _group(example: Example, episodes: Sequence[Episode]) -> Group:
    rewards = [Reward(float(index % 2), {}) for index in range(len(episodes))]
    return make_group(example, episodes, rewards, [True] * len(episodes), "std")


if __name__ == "__main__":
    main(Channel())
