"""The in-process vLLM engine against the Hugging Face model, on a tiny random Qwen2.5-VL with tied embeddings."""

import asyncio
import os
import random

import pytest
import torch

from mmsr1.rollout.engines.base import Completion, EngineFailure, TokenPrompt
from mmsr1.rollout.engines.lockstep import Lockstep
from mmsr1.rollout.engines.vllm_core import environment
from mmsr1.types import Picture
from tests.rollout.engines.talks import (
    conversations,
    followed_by,
    picture,
    question,
    sampling,
    save_tiny,
    start_engine,
)
from tests.tiny_model import perturb

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def engine(tiny, loop):
    engine = start_engine(tiny)
    yield engine
    loop.run(engine.close())


def together(loop, *calls):
    async def main():
        return await asyncio.gather(*calls)

    return loop.run(main())


def test_logprobs_equal_the_hf_forward_before_and_after_weight_syncs(tiny, engine, loop):
    for version in (1, 2):
        turns = loop.run(conversations(engine, tiny, 6))
        assert max(tiny.gap(*turn) for turn in turns) < TOLERANCE
        assert any(len(prompt.images) > 2 for prompt, _ in turns)
        perturb(tiny.model, seed=version, scale=0.03)
        stale = max(tiny.gap(*turn) for turn in turns)
        loop.run(engine.load_weights(tiny.model.named_parameters(), version))
        turns = loop.run(conversations(engine, tiny, 6))
        assert max(tiny.gap(*turn) for turn in turns) < TOLERANCE < 1e-2 < stale
        assert {completion.weight_version for _, completion in turns} == {version}


def test_equal_text_with_different_images_is_a_different_prompt(tiny, engine, loop):
    prompts = [question(tiny, 0, picture(seed)) for seed in (50, 51)]
    answers = together(loop, *(engine.generate(prompt, sampling(3)) for prompt in prompts))
    assert max(tiny.gap(*turn) for turn in zip(prompts, answers, strict=True)) < TOLERANCE
    assert answers[0].logprobs != answers[1].logprobs


def test_a_seed_draws_the_same_tokens_in_any_order_of_admission(tiny, engine, loop):
    requests = [(question(tiny, i % 7, picture(i % 5)), sampling(i)) for i in range(40)]
    order = random.Random(0).sample(range(40), 40)

    async def scattered(number: int):
        await asyncio.sleep(0.001 * order.index(number))
        return await engine.generate(*requests[number])

    first = together(loop, *(engine.generate(*request) for request in requests))
    second = together(loop, *(scattered(number) for number in range(40)))
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


def test_vision_control_tokens_are_never_sampled(tiny, engine, loop):
    """Each of them is made by far the likeliest token wherever the hidden state leans its way."""
    config = tiny.model.config
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    banned = [getattr(config, name) for name in names]
    weights = {name: tensor.detach().clone() for name, tensor in tiny.model.named_parameters()}
    weights["model.language_model.embed_tokens.weight"][banned] *= 8
    loop.run(engine.load_weights(weights.items(), 3))
    answers = together(loop, *(engine.generate(question(tiny, i), sampling(i, 20)) for i in range(32)))
    loop.run(engine.load_weights(tiny.model.named_parameters(), 4))
    assert not any(set(answer.token_ids) & set(banned) for answer in answers)
    unlikely = sum(logprob < -12 for answer in answers for logprob in answer.logprobs)
    assert unlikely > 50  # the log-probs are the model's own: most of its mass was on the banned tokens


def said(tiny, completion, where: int) -> str:
    """The text up to and with the first of the two tokens."""
    return tiny.text(completion.token_ids[: where + 1])


def test_a_stop_string_ends_the_turn_and_the_ids_stay_as_sampled(tiny, engine, loop):
    prompt = question(tiny, 5, picture(5))
    # A random model says anything: take the first sample with two readable tokens in a row that were not said before.
    for seed in range(8, 60):
        (free,) = together(loop, engine.generate(prompt, sampling(seed, 20)))
        pairs = ((i, tiny.text(free.token_ids[i : i + 2])[:-1]) for i in range(5, 19))  # [:-1]: ends within a token
        fresh = ((i, s) for i, s in pairs if s in said(tiny, free, i + 1) and s not in said(tiny, free, i))
        control = tiny.tokenizer.added_tokens_decoder.keys()
        spoken = ((i, s) for i, s in fresh if control.isdisjoint(free.token_ids[i : i + 2]))
        found = next(((i, s) for i, s in spoken if len(s) > 1 and s.isascii()), None)
        if found is not None:
            break
    else:
        pytest.fail("no sample has two readable tokens in a row")
    where, stop = found
    (stopped,) = together(loop, engine.generate(prompt, sampling(seed, 20, stop=("</never>", stop))))
    assert stopped.finish == "stop" and free.finish == "length"
    assert stopped.token_ids == free.token_ids[: where + 2]
    assert stopped.logprobs == pytest.approx(free.logprobs[: where + 2], abs=TOLERANCE)
    assert not tiny.text(stopped.token_ids).endswith(stop)


def test_the_token_that_ends_the_turn_is_returned_with_its_logprob(tiny, engine, loop):
    answers = together(loop, *(engine.generate(question(tiny, 6), sampling(i, 60)) for i in range(64)))
    ended = [answer for answer in answers if answer.finish == "stop"]
    assert ended and all(len(answer.token_ids) == 60 for answer in answers if answer.finish == "length")
    for answer in ended:
        assert answer.token_ids.index(tiny.tokenizer.eos_token_id) == len(answer.token_ids) - 1
        assert tiny.gap(question(tiny, 6), answer) < TOLERANCE


def test_cancelling_a_caller_frees_its_request(tiny, engine, loop):
    vllm = engine._core.engine

    async def main():
        long = asyncio.create_task(engine.generate(question(tiny, 7), sampling(1, 450)))
        while not vllm.has_unfinished_requests():
            await asyncio.sleep(0.001)
        unsent = asyncio.create_task(engine.generate(question(tiny, 8), sampling(1, 450)))
        await asyncio.sleep(0)
        long.cancel()
        unsent.cancel()
        await asyncio.wait([long, unsent])
        assert long.cancelled() and unsent.cancelled()
        return await engine.generate(question(tiny, 9), sampling(1, 3))

    assert len(loop.run(main()).token_ids) == 3
    assert not vllm.has_unfinished_requests()
    assert vllm.engine_core.engine_core.scheduler.get_num_unfinished_requests() == 0


def test_a_sync_waits_for_running_requests_and_holds_later_ones_back(tiny, engine, loop):
    async def main():
        running = asyncio.create_task(engine.generate(question(tiny, 10), sampling(2, 100)))
        while not engine._core.engine.has_unfinished_requests():
            await asyncio.sleep(0.001)
        perturb(tiny.model, seed=9, scale=0.03)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 5))
        await asyncio.sleep(0)
        later = asyncio.create_task(engine.generate(question(tiny, 11), sampling(2)))
        return await asyncio.gather(running, later, sync)

    running, later, _ = loop.run(main())
    assert (running.weight_version, later.weight_version) == (4, 5)
    assert tiny.gap(question(tiny, 11), later) < TOLERANCE < 1e-2 < tiny.gap(question(tiny, 10), running)


def test_an_image_is_processed_once_for_all_rollouts_turns_and_weights(tiny, engine, loop, monkeypatch):
    renderer, rendered = engine._core.engine.renderer, []
    render = renderer.render_cmpl
    monkeypatch.setattr(renderer, "render_cmpl", lambda prompts: rendered.extend(prompts) or render(prompts))
    images = [picture(900), picture(901)]
    for version in (6, 7):
        prompts = [question(tiny, i, *images[: 1 + i % 2]) for i in range(16)]
        answers = together(loop, *(engine.generate(prompt, sampling(i)) for i, prompt in enumerate(prompts)))
        assert max(tiny.gap(*turn) for turn in zip(prompts, answers, strict=True)) < TOLERANCE
        loop.run(engine.load_weights(tiny.model.named_parameters(), version))
    assert len(rendered) == 2


def test_a_small_image_cache_costs_time_and_nothing_else(tiny, engine, loop, monkeypatch):
    monkeypatch.setattr(engine._core._prompts, "_cache_bytes", 1)
    prompt = question(tiny, 0, picture(910), picture(911), picture(910))
    (answer,) = together(loop, engine.generate(prompt, sampling(0)))
    assert tiny.gap(prompt, answer) < TOLERANCE
    assert len(engine._core._prompts._cached) == 1


def test_lockstep_makes_logprobs_equal_to_the_last_bit_under_any_delays(tiny, engine, loop):
    def run(seed: int) -> list[tuple[Completion, Completion]]:
        delays = random.Random(seed)

        async def episode(handle):
            prompt = question(tiny, handle.rank % 3, picture(60 + handle.rank % 3))
            with handle:
                await asyncio.sleep(delays.uniform(0, 0.02))
                first = await handle.generate(prompt, sampling(handle.rank))
                await asyncio.sleep(delays.uniform(0, 0.02))
                more = followed_by(tiny, prompt, first, "more?", picture(80 + handle.rank))
                return first, await handle.generate(more, sampling(50 + handle.rank))

        gate = Lockstep(engine)
        loop.run(gate.load_weights(tiny.model.named_parameters(), 6))  # both runs start with empty caches
        return together(loop, *(episode(handle) for handle in gate.open(12)))

    assert run(1) == run(2)


def test_an_event_loop_that_ends_with_requests_in_flight_leaves_the_engine_usable(tiny, engine, loop):
    async def abandon():
        asyncio.create_task(engine.generate(question(tiny, 20), sampling(1, 400)))
        while not engine._core.engine.has_unfinished_requests():
            await asyncio.sleep(0.001)

    asyncio.run(abandon())
    (answer,) = together(loop, engine.generate(question(tiny, 21), sampling(1)))
    assert isinstance(answer, Completion)
    assert not engine._core.engine.has_unfinished_requests()


def test_the_trainer_keeps_its_own_threads(engine):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def test_an_environment_that_asks_for_a_child_process_is_refused(monkeypatch):
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    with pytest.raises(ValueError, match="in-process"), environment(1, eager=True):
        pass


def test_the_environment_keeps_what_the_user_set(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("TORCHDYNAMO_DISABLE", raising=False)
    with environment(1, eager=True):
        assert os.environ["OMP_NUM_THREADS"] == "3" and os.environ["TORCHDYNAMO_DISABLE"] == "1"
    assert "TORCHDYNAMO_DISABLE" not in os.environ
