"""TRL's side of `benchmarks.rollout_latency`: rollouts of one search call each, through its own tool path."""

from __future__ import annotations

import time
from typing import Any

from benchmarks._process import Channel
from benchmarks._trl.trainer import as_data, make_trainer


class Rollouts:
    """What vLLM has sampled is replaced by the script, of as many tokens, as in `benchmarks._forced`."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.task = task
        self.seconds: dict[str, float] = {}
        self.turns: list[list[list[int]]] = []
        episodes = task["prompts"] * task["rollouts"]

        def search(query: str) -> str:
            """
            Search for a text.

            Args:
                query: What to look for.

            Returns:
                What was found.
            """
            time.sleep(self.seconds[query])
            return task["passage"]

        config = {
            "per_device_train_batch_size": episodes,
            "max_completion_length": 512,
            "max_steps": 1,
        }
        blank = [{"prompt": [{"role": "user", "content": ""}]}] * task["prompts"]
        self.trainer = make_trainer(task, blank, config=config, tools=[search])
        self._sample = self.trainer.vllm_generation.generate
        self.trainer.vllm_generation.generate = self._forced
        self._generate = self.trainer._generate
        self.trainer._generate = self._timed
        self.took = 0.0

    def run(self, calls: list[list[float]], rows: list[dict[str, str]]) -> float:
        """Wall seconds. Raises RuntimeError if the script was not heard to its end."""
        queries = [f"{number} 0" for number in range(len(calls))]
        self.seconds = {query: one[0] for query, one in zip(queries, calls, strict=True)}
        searching = [self._padded(self.task["turn"].format(query=query)) for query in queries]
        self.turns = [searching, [self._padded(self.task["answer"])] * len(calls)]
        asked = [row for row in as_data(rows) for _ in range(self.task["rollouts"])]
        self.trainer.vllm_generation.sync_weights()  # drops the prefix cache; not counted
        self.trainer._last_loaded_step = self.trainer.state.global_step
        self.trainer.model.train()
        self.trainer._generate_and_score_completions(asked)
        if self.turns:
            raise RuntimeError(f"{len(self.turns)} turns of the script were never asked for")
        return self.took

    def _timed(self, prompts: Any) -> Any:
        start = time.perf_counter()
        result = self._generate(prompts)
        self.took = time.perf_counter() - start
        return result

    def _forced(self, **arguments: Any) -> tuple[Any, ...]:
        prompts, sampled, *rest = self._sample(**arguments)
        said = self.turns.pop(0)
        if [len(ids) for ids in sampled] != [len(ids) for ids in said]:
            raise RuntimeError("another number of tokens was sampled than the script has")
        return prompts, said, *rest

    def _padded(self, text: str) -> list[int]:
        tokenizer = self.trainer._tokenizer
        ids = tokenizer.encode(text, add_special_tokens=False)
        return tokenizer.encode(".", add_special_tokens=False) * (self.task["tokens"] - len(ids)) + ids


def main(channel: Channel) -> None:
    task = channel.receive()
    assert task is not None
    rollouts = Rollouts(task)
    channel.send({})
    while (wanted := channel.receive()) is not None:
        channel.send(rollouts.run(**wanted))


if __name__ == "__main__":
    main(Channel())
