"""The scripted engine keeps the Engine's contract, so that tests on it say something about the real one."""

import asyncio

import pytest
import torch

from mmsr1.rollout.engines.base import Completion, EngineFailure, Sampling, TokenPrompt
from mmsr1.rollout.engines.scripted import ScriptedEngine

PROMPT = TokenPrompt((1, 2, 3), ())


class Letters:
    """One token per character."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [ord(character) for character in text]


def ask(engine: ScriptedEngine, seed: int = 0, max_tokens: int = 99) -> Completion | EngineFailure:
    return asyncio.run(engine.generate(PROMPT, Sampling(1.0, 1.0, max_tokens, seed)))


def test_a_sequence_is_read_in_the_order_of_the_calls():
    engine = ScriptedEngine(["ab", EngineFailure("gone")], Letters())
    assert ask(engine) == Completion((97, 98), (-1.0, -1.0), "stop", 0)
    assert ask(engine) == EngineFailure("gone")
    assert engine.prompts == [PROMPT, PROMPT]
    with pytest.raises(IndexError):
        ask(engine)


def test_a_mapping_is_read_by_seed_and_a_function_by_the_call():
    assert ask(ScriptedEngine({7: "c"}, Letters()), seed=7).token_ids == (99,)
    engine = ScriptedEngine(lambda prompt, sampling: f"{len(prompt.token_ids)}{sampling.seed}", Letters())
    assert ask(engine, seed=5).token_ids == (ord("3"), ord("5"))


def test_a_long_answer_is_cut_as_a_real_engine_would():
    answer = ask(ScriptedEngine(["abc"], Letters(), logprob=lambda ids: [-i / 100 for i in ids]), max_tokens=2)
    assert answer == Completion((97, 98), (-0.97, -0.98), "length", 0)


def test_weights_are_read_to_the_end_and_name_the_version():
    engine = ScriptedEngine(["a"], Letters())
    read = []

    def tensors():
        for name in ("x", "y"):
            read.append(name)
            yield name, torch.zeros(1)

    asyncio.run(engine.load_weights(tensors(), 4))
    assert read == ["x", "y"] and ask(engine).weight_version == 4


def test_latency_delays_the_call_it_belongs_to_alone():
    engine = ScriptedEngine(lambda _, s: str(s.seed), Letters(), latency_s=lambda _, s: 0.05 * (s.seed == 0))
    order = []

    async def call(seed: int) -> None:
        await engine.generate(PROMPT, Sampling(1.0, 1.0, 9, seed))
        order.append(seed)

    async def both() -> None:
        await asyncio.gather(call(0), call(1))

    asyncio.run(both())
    assert order == [1, 0]


def test_a_turn_over_a_weight_sync_falls_into_parts():
    turn = Completion((5, 6, 7), (-0.1, -0.2, -0.3), "stop", 3, ((1, 4),))
    assert list(turn.parts()) == [((5,), (-0.1,), 3), ((6, 7), (-0.2, -0.3), 4)]
    assert list(Completion((5,), (-0.1,), "stop", 3).parts()) == [((5,), (-0.1,), 3)]
