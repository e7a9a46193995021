"""Pictures on their way to a fleet of servers: each is sent to a server once, and again if it was dropped there."""

import asyncio
from functools import partial

import httpx
import pytest

from mmsr1.rollout.engines.base import Completion, EngineFailure
from tests.rollout.engines.fake_server import all_live, run
from tests.rollout.engines.talks import followed_by, picture, question, sampling, save_tiny


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("fleet"), tied=True)


@pytest.fixture
def play(tiny):
    return partial(run, tiny)


def sent_images(fleet):
    """For each server and request, which images came with their data."""
    features = [[body["features"]["kwargs_data"]["image"] for body in server.bodies] for server in fleet.servers]
    return [[[item is not None for item in items] for items in requests] for requests in features]


def test_an_image_is_sent_to_a_server_once_and_again_if_it_was_dropped(tiny, play):
    async def scenario(engine, fleet):
        prompt = question(tiny, 0, picture(1))
        first = await engine.generate(prompt, sampling(0))
        prompt = followed_by(tiny, prompt, first, "more?", picture(2))
        await engine.generate(prompt, sampling(1))
        await engine.generate(prompt, sampling(2))
        fleet.servers[0].images.clear()
        last = await engine.generate(prompt, sampling(3))
        return last, sent_images(fleet)

    last, (sent,) = play(scenario, size=1)
    assert isinstance(last, Completion)
    first, second = [[True], [False]], [[False, True], [False, False]]  # each goes ahead of the request that needs it
    assert sent == [*first, *second, [False, False], [False, False], [True, True]]


def test_requests_that_need_an_image_at_the_same_time_share_its_upload(tiny, play):
    async def scenario(engine, fleet):
        prompts = [question(tiny, n % 2, picture(1)) for n in range(8)]
        answers = await asyncio.gather(*(engine.generate(prompt, sampling(n)) for n, prompt in enumerate(prompts)))
        return answers, fleet.servers[0].bodies, sent_images(fleet)

    answers, bodies, (sent,) = play(scenario, size=1)
    assert all(isinstance(answer, Completion) for answer in answers)
    assert sent == [[True], *[[False]] * 8]
    assert [body["sampling_params"]["max_tokens"] for body in bodies] == [1, *[12] * 8]


def test_an_upload_that_fails_sends_all_who_wait_for_it_elsewhere(tiny, play):
    async def scenario(engine, fleet):
        await all_live(engine)
        fleet.servers[0].fail = {"/inference/v1/generate": "die"}
        prompt = question(tiny, 0, picture(1))
        answers = await asyncio.gather(*(engine.generate(prompt, sampling(n)) for n in range(6)))
        return answers, sent_images(fleet)

    answers, (_, sent) = play(scenario)
    assert all(isinstance(answer, Completion) for answer in answers) and sent == [[True], *[[False]] * 6]


def test_what_is_wrong_with_the_request_of_an_upload_is_not_the_others_fault(tiny, play):
    prompts = [question(tiny, n, picture(1)) for n in range(4)]

    async def scenario(engine, fleet):
        (server,) = fleet.servers
        generate = server._generate

        async def refuse_the_first(body):
            if body["sampling_params"]["seed"] == 0:
                return httpx.Response(400, json={"error": "not this one"})
            return await generate(body)

        server._generate = refuse_the_first
        answers = await asyncio.gather(*(engine.generate(prompt, sampling(n)) for n, prompt in enumerate(prompts)))
        return answers, sent_images(fleet)

    (failure, *answers), (sent,) = play(scenario, size=1)
    assert failure == EngineFailure("request refused: HTTP 400: not this one")
    assert all(isinstance(answer, Completion) for answer in answers) and sent == [[True], *[[False]] * 3]


def test_a_caller_that_gives_up_leaves_its_upload_to_the_others(tiny, play):
    async def scenario(engine, fleet):
        (server,) = fleet.servers
        server.hold = asyncio.Event()
        prompt = question(tiny, 0, picture(1))
        first = asyncio.create_task(engine.generate(prompt, sampling(0)))
        await server.started.wait()
        second = asyncio.create_task(engine.generate(prompt, sampling(1)))
        await asyncio.sleep(0.05)
        first.cancel()
        server.hold.set()
        return await second, sent_images(fleet)

    answer, (sent,) = play(scenario, size=1)
    assert isinstance(answer, Completion) and sent == [[True], [False]]


def test_a_server_whose_cache_could_not_say_what_it_misses_gets_every_image(tiny, play):
    def shared_between_processes(fleet):
        fleet.servers[0].setup["parallel_config"]["_api_process_count"] = 2

    async def scenario(engine, fleet):
        for seed in range(2):
            await engine.generate(question(tiny, 0, picture(1)), sampling(seed))
        return sent_images(fleet)

    assert play(scenario, size=1, prepare=shared_between_processes) == [[[True], [True]]]
