"""Requests to a fleet of servers: where they go, and what becomes of them when servers fail."""

import asyncio
import json
import logging
from dataclasses import replace
from functools import partial

import httpx
import pytest

from mmsr1.rollout.engines.base import Completion, EngineFailure, TokenPrompt
from mmsr1.rollout.engines.vllm_server import LOSSES
from mmsr1.rollout.engines.vllm_server_weights import STARTED
from mmsr1.types import Picture
from tests.rollout.engines.fake_server import all_live, ask, right, run, sampled
from tests.rollout.engines.talks import followed_by, picture, question, sampling, save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


def test_a_request_says_all_that_the_in_process_engine_asks_for(tiny, play):
    async def scenario(engine, fleet):
        prompt = question(tiny, 0, picture(1), picture(2))
        answer = await engine.generate(prompt, replace(sampling(7, 480, 0.7, stop=("</a>",)), top_p=0.9))
        assert isinstance(answer, Completion), answer
        return prompt, answer, fleet.servers[0].bodies[-1]

    prompt, answer, body = play(scenario, size=1)
    widened = [
        token for token in prompt.token_ids for _ in range(4 if token == tiny.model.config.image_token_id else 1)
    ]
    assert body["token_ids"] == widened
    assert [place["length"] for place in body["features"]["mm_placeholders"]["image"]] == [4, 4]
    assert body["features"]["mm_hashes"]["image"] == [image.digest for image in prompt.images]
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    assert body["sampling_params"] == {
        "temperature": 0.7,
        "top_p": 0.9,
        "max_tokens": min(480, 512 - len(widened)),
        "seed": 7,
        "stop": ["</a>"],
        "include_stop_str_in_output": True,
        "detokenize": True,
        "logprobs": 0,
        "logit_bias": {str(getattr(tiny.model.config, name)): -100.0 for name in names},
    }
    ids = tuple(sampled(widened, 7, STARTED))
    assert answer == Completion(ids, tuple(-token / 100 for token in ids), "stop", 0)


def test_requests_spread_evenly(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        for server in fleet.servers:
            server.hold = asyncio.Event()
        asking = asyncio.create_task(ask(engine, tiny, range(30)))
        while sum(server.running for server in fleet.servers) < 30:
            await asyncio.sleep(0.01)
        loads = [server.running for server in fleet.servers]
        for server in fleet.servers:
            server.hold.set()
        return loads, await asking

    loads, answers = play(scenario, size=3)
    assert max(loads) - min(loads) <= 5 and right(tiny, answers, range(30))


def test_the_turns_of_a_conversation_stay_with_the_server_that_has_their_prefix(tiny, play):
    async def converse(engine, number):
        prompt, answers = question(tiny, 10**300, picture(number)), []
        for turn in range(4):
            answers.append(await engine.generate(prompt, sampling(10 * number + turn)))
            prompt = followed_by(tiny, prompt, answers[-1], f"and {turn}?", picture(100 + number))
            await asyncio.sleep(0.001 * (number % 3))
        return answers

    async def scenario(engine, fleet):
        await all_live(engine)
        await asyncio.gather(*(converse(engine, number) for number in range(12)))
        return [{body["sampling_params"]["seed"] // 10 for body in server.bodies} for server in fleet.servers]

    first, second, third = play(scenario, size=3)
    assert first and second and third
    assert not first & second and not second & third and not first & third


def test_a_server_that_is_clearly_more_loaded_loses_its_conversations(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        prompt = question(tiny, 10**300)
        fleet.servers[0].hold = asyncio.Event()
        asking = asyncio.gather(*(engine.generate(prompt, sampling(seed)) for seed in range(16)))
        while len(fleet.servers[1].bodies) == 0:
            await asyncio.sleep(0.01)
        most = fleet.servers[0].running
        fleet.servers[0].hold.set()
        await asking
        return most

    assert 4 < play(scenario) < 16


def test_requests_of_a_server_that_dies_are_answered_once_by_the_others(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        doomed = fleet.servers[0]
        doomed.hold = asyncio.Event()
        asking = asyncio.create_task(ask(engine, tiny, range(20)))
        while doomed.running < 5:
            await asyncio.sleep(0.01)
        doomed.kill()
        return await asking, fleet

    answers, fleet = play(scenario, size=3)
    assert right(tiny, answers, range(20))
    assert set(fleet.seeds()) == set(range(20)) and max(fleet.seeds().values()) == 2


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_answers_with_errors_is_avoided(tiny, play, status):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].fail = {"/inference/v1/generate": status}
        return await ask(engine, tiny, range(6))

    assert right(tiny, play(scenario), range(6))


def test_a_server_that_hangs_is_given_up_after_the_time_allowed(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].hold = asyncio.Event()
        answers = await ask(engine, tiny, range(4))
        return answers, fleet.servers[0].freed

    answers, freed = play(scenario, request_timeout_s=0.3)
    assert right(tiny, answers, range(4)) and freed > 0


def test_a_request_that_fails_everywhere_is_taken_for_the_cause(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.fail = {"/inference/v1/generate": 500}
        return await ask(engine, tiny, [1]), fleet.requests

    (failure,), requests = play(scenario)
    assert isinstance(failure, EngineFailure) and "planned for /inference" in failure.reason
    assert sum(request.url.path == "/inference/v1/generate" for request in requests) == LOSSES


def test_a_request_waits_for_a_server_to_return(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].kill()
        asking = asyncio.create_task(ask(engine, tiny, range(3)))
        await asyncio.sleep(0.15)
        fleet.servers[0].restart()
        return await asking

    assert right(tiny, play(scenario, size=1), range(3))


def test_without_any_server_requests_fail_in_the_end(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.kill()
        return await ask(engine, tiny, range(3))

    failures = play(scenario, wait_s=0.2)
    assert all(isinstance(failure, EngineFailure) for failure in failures)
    assert "http://s0: cannot be reached" in failures[0].reason and "http://s1" in failures[0].reason


def malformed():
    """Edits of a right answer, by what is wrong with it."""
    return {
        "a log-prob too few": lambda choice: choice["logprobs"]["content"].pop(),
        "log-probs of other tokens": lambda choice: choice["logprobs"]["content"].reverse(),
        "no number": lambda choice: choice["logprobs"]["content"][0].update(logprob="-1"),
        "not a number": lambda choice: choice["logprobs"]["content"][0].update(logprob=None),
        "vLLM's mark for none": lambda choice: choice["logprobs"]["content"][0].update(logprob=-9999.0),
        "tokens that are text": lambda choice: choice.update(token_ids=["a", "b", "c"]),
        "tokens below zero": lambda choice: choice.update(token_ids=[-1, 2, 3]),
        "no tokens": lambda choice: choice.update(token_ids=[], logprobs={"content": []}, weight_versions=[]),
        "no log-probs": lambda choice: choice.update(logprobs=None),
        "no weights": lambda choice: choice.update(weight_versions=None),
        "weights of some tokens": lambda choice: choice["weight_versions"][0].update(end=1),
        "an unknown end": lambda choice: choice.update(finish_reason="tired"),
        "no choice": lambda choice: choice.clear(),
        "too long": lambda choice: choice.update(padding="x" * 3 * 2**20),
    }


@pytest.mark.parametrize("fault", malformed())
def test_a_malformed_answer_is_a_failure_of_its_request_alone(tiny, play, fault):
    def edit(answer):
        if answer["choices"][0]["token_ids"] == sampled(question(tiny, 1).token_ids, 1, "default"):
            malformed()[fault](answer["choices"][0])
        return json.loads(json.dumps(answer))

    async def scenario(engine, fleet):
        fleet.servers[0].edit = edit
        return await ask(engine, tiny, range(3))

    first, failure, last = play(scenario, size=1)
    assert isinstance(failure, EngineFailure) and "malformed answer of http://s0" in failure.reason
    assert right(tiny, [first, last], [0, 2])


def test_an_answer_that_is_no_json_is_a_failure(tiny, play):
    async def scenario(engine, fleet):
        async def nested(body):
            return httpx.Response(200, content=b"[" * 100_000)

        await all_live(engine)
        fleet.servers[0]._generate = nested
        return await ask(engine, tiny, [0])

    (failure,) = play(scenario, size=1)
    assert failure == EngineFailure("malformed answer of http://s0: no JSON")


def test_a_request_that_cannot_be_served_fails_alone_and_reaches_no_server(tiny, play):
    image = picture(2)
    bad = {
        "longer than the maximum model length": TokenPrompt(tiny.prompt("a" * 600).token_ids, ()),
        "cannot be decoded": question(tiny, 2, Picture(b"not an image")),
        "more than the 6 allowed": question(tiny, 3, *[image] * 7),
        "0 image placeholders for 1 images": TokenPrompt(question(tiny, 4).token_ids, (image,)),
    }

    async def scenario(engine, fleet):
        prompts = [question(tiny, 0), *bad.values()]
        answers = await asyncio.gather(*(engine.generate(prompt, sampling(0)) for prompt in prompts))
        return answers, fleet.seeds()

    (good, *failures), seeds = play(scenario)
    assert right(tiny, [good], [0]) and seeds == {0: 1}
    for failure, reason in zip(failures, bad, strict=True):
        assert isinstance(failure, EngineFailure) and reason in failure.reason


def test_a_request_that_the_server_refuses_fails_without_being_sent_to_another(tiny, play):
    async def scenario(engine, fleet):
        for server in fleet.servers:
            server.fail = {"/inference/v1/generate": 400}
        return await ask(engine, tiny, [3]), fleet.requests

    (failure,), requests = play(scenario)
    assert failure == EngineFailure("request refused: HTTP 400: planned for /inference/v1/generate")
    assert sum(request.url.path == "/inference/v1/generate" for request in requests) == 1


def test_cancelling_a_caller_frees_its_request_on_the_server(tiny, play):
    async def scenario(engine, fleet):
        server = fleet.servers[0]
        server.hold = asyncio.Event()
        asking = asyncio.create_task(engine.generate(question(tiny, 0), sampling(0)))
        await server.started.wait()
        asking.cancel()
        await asyncio.wait([asking])
        while not server.freed:
            await asyncio.sleep(0.01)
        server.hold.set()
        return asking.cancelled(), await ask(engine, tiny, [1])

    cancelled, answers = play(scenario, size=1)
    assert cancelled and right(tiny, answers, [1])


def test_closing_fails_what_is_in_flight_and_all_that_comes(tiny, play):
    async def scenario(engine, fleet):
        fleet.servers[0].hold = asyncio.Event()
        asking = asyncio.create_task(ask(engine, tiny, range(3)))
        await fleet.servers[0].started.wait()
        await engine.close()
        await engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            await engine.load_weights([], 1)
        return [*await asking, *await ask(engine, tiny, [9])]

    assert play(scenario, size=1) == [EngineFailure("the engine is closed")] * 4


def test_the_token_goes_with_every_call_and_into_no_log(tiny, play, monkeypatch, caplog):
    monkeypatch.setenv("MMSR1_ENGINE_TOKEN", "open-sesame")
    caplog.set_level(logging.DEBUG)

    async def scenario(engine, fleet):
        answers = await ask(engine, tiny, [0])
        fleet.servers[0].fail = dict.fromkeys(("/inference/v1/generate", "/weight_info"), 401)
        return answers + await ask(engine, tiny, [1]), fleet.requests

    (good, failure), requests = play(scenario, size=1)
    assert right(tiny, [good], [0]) and isinstance(failure, EngineFailure)
    assert {request.headers["Authorization"] for request in requests} == {"Bearer open-sesame"}
    assert "open-sesame" not in caplog.text + repr(failure)
    assert not any(record.name == "httpx" for record in caplog.records)  # a line for every request
