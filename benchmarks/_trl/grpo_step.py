"""TRL's side of `benchmarks.grpo_step`: makes a step whenever it is asked."""

from __future__ import annotations

import time
from typing import Any

from benchmarks._memory import peak_mib
from benchmarks._process import Channel
from benchmarks._trl.trainer import after, as_data, make_trainer

from transformers import TrainerCallback  # isort: skip  (the shim comes first)


class Steps(TrainerCallback):
    """Waits for each step, and answers with its figures."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.begun, self.begun_cpu, self.lengths = 0.0, 0.0, (0, 0)

    def generated(self, result: tuple[Any, ...]) -> None:
        prompts, completions = (sum(map(len, ids)) for ids in result[:2])
        self.lengths = completions, prompts + completions

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.channel.send({})

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.channel.receive()
        self.begun, self.begun_cpu = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds, cpu = time.perf_counter() - self.begun, time.process_time() - self.begun_cpu
        sampled, tokens = self.lengths
        answer = {"seconds": seconds, "cpu_seconds": cpu, "sampled": sampled, "in_all": tokens, "peak_mib": peak_mib()}
        self.channel.send(answer)


def main(channel: Channel) -> None:
    task = channel.receive()
    assert task is not None
    steps = Steps(channel)
    episodes = task["prompts"] * task["rollouts"]
    config = {
        "per_device_train_batch_size": task["micro_batch"],
        "gradient_accumulation_steps": episodes // task["micro_batch"],
        "max_completion_length": task["tokens"],
        "max_steps": len(task["rows"]) // task["prompts"],
        "learning_rate": task["lr"],
    }
    trainer = make_trainer(task, as_data(task["rows"]), config=config, callbacks=[steps])
    trainer._generate = after(trainer._generate, steps.generated)
    trainer.train()


if __name__ == "__main__":
    main(Channel())
