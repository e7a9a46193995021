"""Tokens per second of our rollout loop beside vLLM's own offline `LLM.generate`: the engine behind episodes and an
event loop against one call with everything known beforehand.

The same prompts with a picture each, the same seeds and the same settings, no tools and one turn; the random policy, of
which every turn has all tokens it may have, and the shipped one, which ends its turns itself. `LLM.generate` is given
token ids and opened pictures, and has vLLM's own caches. Each in its own process, without a second one for the engine;
the two take turns, with fresh questions every time.
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image

from benchmarks._policy import questions, read_policy, write_policy
from benchmarks._process import ROOT, Channel, Part
from benchmarks._worker import ENGINE, make_renderer, make_worker, sampling
from mmsr1.data.emblem.questions import heldout_examples
from mmsr1.data.emblem.world import World, WorldSpec
from mmsr1.rollout.engines.base import request_seed
from mmsr1.rollout.protocol import STOP_STRINGS
from mmsr1.types import Example

PROMPTS, ROLLOUTS, REPEATS = 16, 8, 15
SHIPPED = ROOT / "mmsr1" / "models" / "starting_policy"
# As our engine has it: no child process, and no compilation of a helper at the first log-prob.
IN_PROCESS = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TORCHDYNAMO_DISABLE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
TOKENS = {"random": 48, "shipped": 20}  # of a turn at most


def measure() -> dict[str, Any]:
    """Medians without the first repetition; `ratio` is the lower one."""
    with TemporaryDirectory() as scratch:
        write_policy(Path(scratch))
        figures = {**beside("random", Path(scratch)), **beside("shipped", SHIPPED)}
    ratio = min(figures["random_ratio"], figures["shipped_ratio"])
    return {"engine": "vllm", "requests": PROMPTS * ROLLOUTS, **figures, "ratio": ratio}


def beside(name: str, policy: Path) -> dict[str, Any]:
    task = {"policy": str(policy), "name": name, "tokens": TOKENS[name], "prompts": PROMPTS, "rollouts": ROLLOUTS}
    with Part.of("engine", "ours") as ours, Part.of("engine", "vllm", env=IN_PROCESS) as vllm:
        for part in (ours, vllm):
            part.ask(**task)
        answers = [(ours.ask(run=run), vllm.ask(run=run)) for run in range(REPEATS + 1)][1:]
    turns = [zip(mine["sampled"], other["sampled"], strict=True) for mine, other in answers]
    same = [mine[0] == other[0] for pairs in turns for mine, other in pairs]
    ours_rate, vllm_rate = (median(_rate(pair[side]) for pair in answers) for side in (0, 1))
    return {
        f"{name}_tokens": _tokens(answers[-1][0]),
        f"{name}_ours_tokens_per_second": ours_rate,
        f"{name}_vllm_tokens_per_second": vllm_rate,
        f"{name}_ratio": ours_rate / vllm_rate,
        f"{name}_same_turns": sum(same) / len(same),
    }


def _rate(answer: dict[str, Any]) -> float:
    return _tokens(answer) / answer["seconds"]


def _tokens(answer: dict[str, Any]) -> int:
    return sum(len(ids) for requests in answer["sampled"] for ids in requests)


class Ours:
    """`RolloutWorker` over `VllmEngine`."""

    def __init__(self, task: dict[str, Any]) -> None:
        files = read_policy(Path(task["policy"]))
        self.worker = make_worker(Path(task["policy"]), files, task["tokens"])
        self.weights, self.task = files.model, task

    def run(self, asked: Sequence[Example], run: int) -> tuple[float, list[list[tuple[int, ...]]]]:
        """(seconds, ids of each request of each rollout); there is a second one where a tag was only a mention."""
        start = time.perf_counter()
        groups = self.worker.rollout(asked, self.task["rollouts"], sampling(self.task["tokens"]), "train", run)
        seconds = time.perf_counter() - start
        self.worker.load_weights(self.weights.named_parameters(), run)  # as after a training step: caches are dropped
        episodes = [episode for group in groups for episode in group]
        return seconds, [[s.token_ids for s in episode.segments if s.sampled] for episode in episodes]


class Vllm:
    """`LLM.generate` with what our engine asks of vLLM."""

    def __init__(self, task: dict[str, Any]) -> None:
        from vllm import LLM

        files = read_policy(Path(task["policy"]))
        self.renderer, self.task = make_renderer(files), task
        config = files.model.config
        vision = (
            config.image_token_id,
            config.video_token_id,
            config.vision_start_token_id,
            config.vision_end_token_id,
        )
        self.banned = dict.fromkeys(vision, -100.0)
        self.llm = LLM(
            task["policy"],
            dtype="float32",
            max_model_len=ENGINE["max_model_len"],
            max_num_seqs=ENGINE["max_num_seqs"],
            max_num_batched_tokens=ENGINE["max_num_batched_tokens"],
            limit_mm_per_prompt={"image": ENGINE["images_per_prompt"], "video": 0},
            kv_cache_memory_bytes=2**28,
            block_size=32,
            enable_chunked_prefill=False,
            enforce_eager=True,
        )

    def run(self, asked: Sequence[Example], run: int) -> tuple[float, list[list[tuple[int, ...]]]]:
        """See `Ours.run`."""
        shown = [self._prompt(example) for example in asked]
        jobs = [(number, rollout) for number in range(len(asked)) for rollout in range(self.task["rollouts"])]
        drawn = [self._sampling(request_seed(0, "train", run, asked[n].id, rollout, 0, 0)) for n, rollout in jobs]
        start = time.perf_counter()
        outputs = self.llm.generate([shown[number] for number, _ in jobs], drawn, use_tqdm=False)
        seconds = time.perf_counter() - start
        self.llm.reset_prefix_cache()
        return seconds, [[tuple(output.outputs[0].token_ids)] for output in outputs]

    def _prompt(self, example: Example) -> Any:
        ids = [token for segment in self.renderer.first(example) for token in segment.token_ids]
        (picture,) = example.images
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": Image.open(io.BytesIO(picture.data))}}

    def _sampling(self, seed: int) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=1.0,
            max_tokens=self.task["tokens"],
            seed=seed,
            stop=list(STOP_STRINGS),
            include_stop_str_in_output=True,
            logprobs=0,
            logit_bias=self.banned,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def main(channel: Channel, side: str) -> None:
    task = channel.receive()
    assert task is not None
    torch.set_num_threads(1)
    system = {"ours": Ours, "vllm": Vllm}[side](task)
    held_out = heldout_examples(World(WorldSpec()), (REPEATS + 1) * task["prompts"])
    channel.send({})
    while (wanted := channel.receive()) is not None:
        run, count = wanted["run"], task["prompts"]
        asked = held_out[run * count :][:count] if task["name"] == "shipped" else questions(count, run)
        seconds, sampled = system.run(asked, run)
        channel.send({"seconds": seconds, "sampled": sampled})


if __name__ == "__main__":
    main(Channel(), sys.argv[1])
