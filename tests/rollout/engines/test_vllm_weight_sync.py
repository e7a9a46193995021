"""Weight syncs that go wrong, and an engine that dies; on a tiny Qwen2.5-VL with untied embeddings.

The engine is started with the fault that the tests look for: it keeps the vision tower's outputs over a sync.
"""

import asyncio
import gc
import weakref

import pytest

from mmsr1.rollout.engines.base import EngineFailure
from mmsr1.rollout.engines.weight_sync import load_weights
from tests.rollout.engines.talks import conversations, picture, question, sampling, save_tiny, start_engine
from tests.tiny_model import perturb


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def engine(tiny, loop):
    engine = start_engine(tiny, reset_encoder_cache=False)
    yield engine
    loop.run(engine.close())


def ask(tiny, engine, loop, *pictures):
    """The log-prob gap of one answer about each picture."""

    async def main():
        prompts = [question(tiny, 0, picture) for picture in pictures]
        answers = await asyncio.gather(*(engine.generate(prompt, sampling(0)) for prompt in prompts))
        return max(tiny.gap(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True))

    return loop.run(main())


def test_a_sync_of_the_language_model_alone_needs_no_reset_of_the_encoder(tiny, engine, loop):
    turns = loop.run(conversations(engine, tiny, 4))
    assert max(tiny.gap(*turn) for turn in turns) < 1e-4
    perturb(tiny.model.model.language_model, seed=1, scale=0.03)
    perturb(tiny.model.lm_head, seed=2, scale=0.03)
    loop.run(engine.load_weights(tiny.model.named_parameters(), 1))
    turns = loop.run(conversations(engine, tiny, 4))
    assert max(tiny.gap(*turn) for turn in turns) < 1e-4


def test_an_encoder_cache_left_alone_shows_as_a_gap_once_the_tower_is_trained(tiny, engine, loop):
    seen, unseen = picture(70), picture(71)
    assert ask(tiny, engine, loop, seen) < 1e-4
    perturb(tiny.model.model.visual, seed=3, scale=0.01)
    loop.run(engine.load_weights(tiny.model.named_parameters(), 2))
    assert ask(tiny, engine, loop, unseen) < 1e-4
    assert ask(tiny, engine, loop, seen) > 1e-3


def test_a_step_that_raises_fails_what_is_in_flight_and_ends_the_engine(tiny, engine, loop, monkeypatch):
    vllm = engine._core.engine

    def crash():
        raise RuntimeError("out of memory")

    async def main():
        with monkeypatch.context() as patch:
            patch.setattr(vllm, "step", crash)
            failures = await asyncio.gather(*(engine.generate(question(tiny, i), sampling(i)) for i in range(3)))
        return [*failures, await engine.generate(question(tiny, 0), sampling(0))]

    assert loop.run(main()) == [EngineFailure("vLLM failed: RuntimeError: out of memory")] * 4
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run(engine.load_weights(tiny.model.named_parameters(), 3))


@pytest.mark.parametrize(
    ("leave_out", "reason"),
    [("self_attn.k_proj.weight", "qkv_proj"), ("input_layernorm.weight", "input_layernorm"), ("lm_head", "lm_head")],
)
def test_a_sync_that_misses_tensors_is_refused(tiny, engine, leave_out, reason):
    tensors = [(name, tensor) for name, tensor in tiny.model.named_parameters() if leave_out not in name]
    with pytest.raises(ValueError, match=reason):
        load_weights(engine._core.engine, tensors)


def test_closing_gives_the_memory_back(tiny, engine, loop):
    model = weakref.ref(engine._core.engine.model_executor.driver_worker.model_runner.model)
    assert model() is not None
    loop.run(engine.close())
    gc.collect()
    assert model() is None
    assert loop.run(engine.generate(question(tiny, 0), sampling(0))) == EngineFailure(
        "vLLM failed: RuntimeError: out of memory"
    )
