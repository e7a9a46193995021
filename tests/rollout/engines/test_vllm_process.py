"""vLLM in its own process against the Hugging Face model, on a tiny random Qwen2.5-VL.

One engine with tied embeddings for most tests; one with untied ones that keeps requests running over a weight sync,
and is killed in the end.
"""

import asyncio
import copy
import os
import signal
import threading
from pathlib import Path

import pytest
import torch

from mmsr1.rollout.engines.base import Completion, Engine, EngineFailure, TokenPrompt
from mmsr1.rollout.engines.vllm_process import VllmProcessEngine
from mmsr1.types import Picture
from tests.rollout.engines.talks import Tiny, conversations, picture, question, sampling, save_tiny
from tests.tiny_model import perturb

TOLERANCE = 1e-4


def start(tiny: Tiny, **arguments) -> VllmProcessEngine:
    return VllmProcessEngine(tiny.folder, max_model_len=512, max_num_seqs=16, kv_cache_bytes=2**26, **arguments)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def engine(tiny, loop):
    before = dict(os.environ), torch.get_num_threads()
    engine = start(tiny)
    assert (dict(os.environ), torch.get_num_threads()) == before
    yield engine
    loop.run(engine.close())


def together(loop, *calls):
    async def main():
        return await asyncio.gather(*calls)

    return loop.run(main())


def child(engine: VllmProcessEngine) -> int:
    (process,) = engine._front._processes
    return process.pid


async def has_work(engine: VllmProcessEngine) -> bool:
    """Whether the engine process still has something to sample."""
    asked = engine._front._llm.engine_core.call_utility_async("has_work")
    return await engine._there(asked)


async def until_all_have_sampled(engine: VllmProcessEngine, requests: int, tokens: int) -> None:
    states = engine._front._llm.output_processor.request_states
    while len(states) < requests or min(s.detokenizer.num_output_tokens() for s in [*states.values()]) < tokens:
        await asyncio.sleep(0.001)


def test_logprobs_equal_the_hf_forward_before_and_after_weight_syncs(tiny, engine, loop):
    assert isinstance(engine, Engine)
    for version in (1, 2):
        turns = loop.run(conversations(engine, tiny, 6))
        assert max(tiny.gap(*turn) for turn in turns) < TOLERANCE
        assert {completion.weight_version for _, completion in turns} == {version - 1}
        perturb(tiny.model, seed=version, scale=0.03)
        stale = max(tiny.gap(*turn) for turn in turns)
        loop.run(engine.load_weights(tiny.model.named_parameters(), version))
        turns = loop.run(conversations(engine, tiny, 6))
        assert max(tiny.gap(*turn) for turn in turns) < TOLERANCE < 1e-2 < stale
        assert {(completion.weight_version, completion.switches) for _, completion in turns} == {(version, ())}


def test_the_child_leaves_ctrl_c_to_the_parent(tiny, engine, loop):
    os.kill(child(engine), signal.SIGINT)
    (answer,) = together(loop, engine.generate(question(tiny, 0), sampling(0)))
    assert isinstance(answer, Completion)


def test_a_seed_draws_the_same_tokens_in_any_order_of_admission(tiny, engine, loop):
    requests = [(question(tiny, i % 7, picture(i % 5)), sampling(i)) for i in range(40)]
    first = together(loop, *(engine.generate(*request) for request in requests))
    second = together(loop, *(engine.generate(*request) for request in reversed(requests)))[::-1]
    assert [answer.token_ids for answer in first] == [answer.token_ids for answer in second]
    gaps = [abs(a - b) for x, y in zip(first, second, strict=True) for a, b in zip(x.logprobs, y.logprobs, strict=True)]
    assert max(gaps) < TOLERANCE
    assert len({answer.token_ids for answer in first}) > 30


def test_a_request_that_cannot_be_served_fails_alone(tiny, engine, loop):
    good, image = question(tiny, 1, picture(1)), picture(2)
    bad = {
        "longer than the maximum model length": TokenPrompt(tiny.prompt("a" * 600).token_ids, ()),
        "cannot be decoded": question(tiny, 2, Picture(b"not an image")),
        "more than the 6 allowed": question(tiny, 3, *[image] * 7),
        "0 image placeholders for 1 images": TokenPrompt(question(tiny, 4).token_ids, (image,)),
    }
    first, *failures, last = together(
        loop, *(engine.generate(prompt, sampling(0)) for prompt in (good, *bad.values(), good))
    )
    assert first == last and isinstance(first, Completion)
    for failure, reason in zip(failures, bad, strict=True):
        assert isinstance(failure, EngineFailure) and reason in failure.reason


def test_a_stop_string_ends_the_turn_and_the_ids_stay_as_sampled(tiny, engine, loop):
    prompt = question(tiny, 5, picture(5))
    frees = together(loop, *(engine.generate(prompt, sampling(seed, 20)) for seed in range(40)))
    control = tiny.tokenizer.added_tokens_decoder.keys()
    for seed, free in enumerate(frees):
        for end in range(6, len(free.token_ids)):
            stop, said = tiny.text(free.token_ids[end - 2 : end]), tiny.text(free.token_ids[: end - 1])
            if control.isdisjoint(free.token_ids[:end]) and stop.isascii() and len(stop) > 1 and stop not in said:
                (stopped,) = together(loop, engine.generate(prompt, sampling(seed, 20, stop=("</never>", stop))))
                assert stopped.finish == "stop" and stopped.token_ids == free.token_ids[:end]
                assert stopped.logprobs == pytest.approx(free.logprobs[:end], abs=TOLERANCE)
                return
    pytest.fail("no sample has two readable tokens in a row")


def test_cancelling_a_caller_frees_its_request(tiny, engine, loop):
    async def main():
        long = [asyncio.create_task(engine.generate(question(tiny, i, picture(i)), sampling(1, 450))) for i in range(8)]
        await until_all_have_sampled(engine, 8, 2)
        unsent = asyncio.create_task(engine.generate(question(tiny, 8), sampling(1, 450)))
        await asyncio.sleep(0)
        for task in (*long, unsent):
            task.cancel()
        await asyncio.wait([*long, unsent])
        assert all(task.cancelled() for task in (*long, unsent))
        return [await has_work(engine) for _ in range(20)]  # it answers between two of hundreds of steps

    assert not loop.run(main())[-1]
    assert not engine._front._llm.output_processor.request_states


def test_an_event_loop_that_ends_with_requests_in_flight_leaves_the_engine_usable(tiny, engine, loop):
    async def abandon():
        asyncio.create_task(engine.generate(question(tiny, 20), sampling(1, 400)))
        await until_all_have_sampled(engine, 1, 1)

    asyncio.run(abandon())
    (answer,) = together(loop, engine.generate(question(tiny, 21), sampling(1)))
    assert isinstance(answer, Completion)
    assert not engine._front._llm.output_processor.request_states


def test_a_sync_waits_for_running_requests_and_holds_later_ones_back(tiny, engine, loop):
    async def main():
        running = asyncio.create_task(engine.generate(question(tiny, 10), sampling(2, 100)))
        await until_all_have_sampled(engine, 1, 1)
        perturb(tiny.model, seed=9, scale=0.03)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 3))
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate(question(tiny, 11), sampling(2)))
        return await asyncio.gather(running, later, sync)

    running, later, _ = loop.run(main())
    assert (running.weight_version, later.weight_version) == (2, 3)
    assert running.switches == later.switches == ()
    assert tiny.gap(question(tiny, 11), later) < TOLERANCE < 1e-2 < tiny.gap(question(tiny, 10), running)


def test_a_sync_goes_on_when_its_caller_is_cancelled(tiny, engine, loop):
    async def main():
        perturb(tiny.model, seed=10, scale=0.03)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 4))
        await asyncio.sleep(0)
        sync.cancel()
        await asyncio.wait([sync])
        return await engine.generate(question(tiny, 12), sampling(2))

    answer = loop.run(main())
    assert answer.weight_version == 4 and tiny.gap(question(tiny, 12), answer) < TOLERANCE


def test_an_image_is_processed_once_for_all_rollouts_turns_and_weights(tiny, engine, loop, monkeypatch):
    renderer, rendered = engine._front._llm.renderer, []
    render = renderer.render_cmpl
    monkeypatch.setattr(renderer, "render_cmpl", lambda prompts: rendered.extend(prompts) or render(prompts))
    images = [picture(900), picture(901)]
    for version in (5, 6):
        prompts = [question(tiny, i, *images[: 1 + i % 2]) for i in range(16)]
        answers = together(loop, *(engine.generate(prompt, sampling(i)) for i, prompt in enumerate(prompts)))
        assert max(tiny.gap(*turn) for turn in zip(prompts, answers, strict=True)) < TOLERANCE
        loop.run(engine.load_weights(tiny.model.named_parameters(), version))
    assert len(rendered) == 2


def test_an_encoder_cache_left_alone_shows_as_a_gap_once_the_tower_is_trained(tiny, engine, loop, monkeypatch):
    def gap(image: Picture) -> float:
        prompt = question(tiny, 0, image)
        (answer,) = together(loop, engine.generate(prompt, sampling(0)))
        return tiny.gap(prompt, answer)

    seen, unseen = picture(70), picture(71)
    assert gap(seen) < TOLERANCE
    perturb(tiny.model.model.visual, seed=3, scale=0.05)
    monkeypatch.setattr(engine._front, "_reset_encoder_cache", False)
    loop.run(engine.load_weights(tiny.model.named_parameters(), 7))
    assert gap(unseen) < TOLERANCE < 1e-2 < gap(seen)
    monkeypatch.undo()
    loop.run(engine.load_weights(tiny.model.named_parameters(), 8))
    assert gap(seen) < TOLERANCE


def test_weights_that_miss_a_tensor_are_an_error_here_and_the_end_of_the_engine(tiny, engine, loop):
    async def main():
        tensors = [(name, tensor) for name, tensor in tiny.model.named_parameters() if "k_proj.weight" not in name]
        sync = asyncio.create_task(engine.load_weights(tensors, 9))
        await asyncio.sleep(0)
        held_back = await engine.generate(question(tiny, 0), sampling(0))
        with pytest.raises(ValueError, match="no or not all new weights for 'language_model.*qkv_proj'"):
            await sync
        return held_back, await engine.generate(question(tiny, 0), sampling(0))

    held_back, later = loop.run(main())
    assert isinstance(held_back, EngineFailure) and held_back == later and "qkv_proj" in later.reason
    with pytest.raises(RuntimeError, match="qkv_proj"):
        loop.run(engine.load_weights(tiny.model.named_parameters(), 10))


def test_a_model_that_cannot_be_started_is_an_error_and_leaves_nothing_behind(tiny, engine, tmp_path):
    before = dict(os.environ), threading.active_count()
    with pytest.raises(Exception, match="config"):
        VllmProcessEngine(tmp_path)
    assert (dict(os.environ), threading.active_count()) == before


def test_closing_ends_the_child(tiny, engine, loop):
    pid = child(engine)
    loop.run(engine.close())
    assert not Path(f"/proc/{pid}").exists()
    assert loop.run(engine.generate(question(tiny, 0), sampling(0))) == EngineFailure("the engine is closed")
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(engine.load_weights(tiny.model.named_parameters(), 10))


# Requests that are kept running over a weight sync.


@pytest.fixture(scope="module")
def untied(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("untied"), tied=False)


@pytest.fixture(scope="module")
def keeping(untied, loop):
    engine = start(untied, keep_running=True)
    yield engine
    loop.run(engine.close())


def long_requests(tiny: Tiny) -> list:
    """Turns of 300 tokens, with and without images and stop strings."""
    prompts = [question(tiny, i, *(picture(i + j) for j in range(i % 3))) for i in range(8)]
    return [(prompt, sampling(i, 300, stop=("</never>",) * (i % 2))) for i, prompt in enumerate(prompts)]


def test_every_token_of_a_kept_turn_was_sampled_by_the_weights_it_names(untied, keeping, loop):
    requests = long_requests(untied)
    models = [copy.deepcopy(untied.model)]

    async def main():
        turns = [asyncio.create_task(keeping.generate(*request)) for request in requests]
        for version in (1, 2):
            await until_all_have_sampled(keeping, 1, 20 * version)
            perturb(untied.model, seed=version, scale=0.02)
            models.append(copy.deepcopy(untied.model))
            await keeping.load_weights(untied.model.named_parameters(), version)
        return await asyncio.gather(*turns)

    turns = loop.run(main())
    assert sum(len(turn.switches) == 2 for turn in turns) > 3
    for (prompt, _), turn in zip(requests, turns, strict=True):
        by_version = [Tiny(untied.folder, model, untied.tokenizer).logprobs(prompt, turn.token_ids) for model in models]
        start = 0
        for _, logprobs, version in turn.parts():
            end = start + len(logprobs)
            gaps = [(torch.tensor(logprobs) - expected[start:end]).abs() for expected in by_version]
            assert gaps.pop(version).max() < TOLERANCE
            assert all(gap.max() > 1e-2 for gap in gaps if len(gap) > 5)
            start = end


def test_a_sync_of_the_same_weights_changes_nothing_of_what_is_sampled(untied, keeping, loop):
    requests = long_requests(untied)

    async def main(sync: bool):
        turns = [asyncio.create_task(keeping.generate(*request)) for request in requests]
        if sync:
            await until_all_have_sampled(keeping, 1, 20)
            await keeping.load_weights(untied.model.named_parameters(), 3)
        return await asyncio.gather(*turns)

    calm, synced = loop.run(main(False)), loop.run(main(True))
    assert any(turn.switches for turn in synced)
    assert [turn.token_ids for turn in calm] == [turn.token_ids for turn in synced]


def test_a_child_that_is_killed_during_a_sync_fails_whatever_waits(untied, keeping, loop):
    def tensors():
        yield from list(untied.model.named_parameters())[:5]
        os.kill(child(keeping), signal.SIGKILL)
        yield from list(untied.model.named_parameters())[5:]

    async def main():
        paused = asyncio.create_task(keeping.generate(question(untied, 0), sampling(0, 400)))
        await until_all_have_sampled(keeping, 1, 1)
        sync = asyncio.create_task(keeping.load_weights(tensors(), 4))
        await asyncio.sleep(0)
        held_back = asyncio.create_task(keeping.generate(question(untied, 1, picture(1)), sampling(0)))
        with pytest.raises(RuntimeError, match="the engine process ended"):
            await sync
        return [await paused, await held_back, await keeping.generate(question(untied, 2), sampling(0))]

    assert loop.run(main()) == [EngineFailure("the engine process ended (exit code -9)")] * 3
    with pytest.raises(RuntimeError, match="the engine process ended"):
        loop.run(keeping.load_weights(untied.model.named_parameters(), 5))
