"""What the transformers engine samples: from which distribution, with which log-probs, and where a turn ends."""

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from mmsr1.rollout.engines.base import TokenPrompt
from mmsr1.rollout.engines.lockstep import Lockstep
from tests.rollout.engines.talks import followed_by, picture, question, sampling, save_tiny
from tests.rollout.engines.transformers_talks import TOLERANCE, ask, gap, started


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("tied"), tied=True)


@pytest.fixture(scope="module")
def engine(tiny, loop):
    with started(tiny, loop) as engine:
        yield engine


@pytest.fixture
def untied(tmp_path):
    """One that a test may change."""
    return save_tiny(tmp_path, tied=False)


def test_a_seed_draws_the_same_tokens_whatever_shares_its_batch(tiny, engine, loop):
    requests = [(question(tiny, i % 7, *[picture(i % 5)] * (i % 3)), sampling(i, 1 + i % 12)) for i in range(40)]
    order = random.Random(0).sample(range(40), 40)

    async def scattered(number):
        await asyncio.sleep(0.001 * order.index(number))
        return await engine.generate(*requests[number])

    async def main():
        return await asyncio.gather(*map(scattered, range(40)))

    first, second = ask(loop, engine, requests), loop.run(main())
    with started(tiny, loop, max_batch=1) as alone:
        third = ask(loop, alone, requests)
    for answers in (first, second, third):
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in first]
        assert gap(tiny, requests, answers) < TOLERANCE
    assert len({answer.token_ids for answer in first}) > 30
    assert [len(answer.token_ids) for answer in first if answer.finish == "length"] == [
        draw.max_tokens for (_, draw), answer in zip(requests, first, strict=True) if answer.finish == "length"
    ]


def test_equal_text_with_different_images_is_a_different_prompt(tiny, engine, loop):
    requests = [(question(tiny, 0, picture(seed)), sampling(3)) for seed in (50, 51)]
    answers = ask(loop, engine, requests)
    assert gap(tiny, requests, answers) < TOLERANCE
    assert answers[0].logprobs != answers[1].logprobs


def test_lockstep_makes_logprobs_equal_to_the_last_bit_under_any_delays(tiny, engine, loop):
    def run(seed):
        delays = random.Random(seed)

        async def episode(handle):
            prompt = question(tiny, handle.rank % 3, picture(60 + handle.rank % 3))
            with handle:
                await asyncio.sleep(delays.uniform(0, 0.02))
                first = await handle.generate(prompt, sampling(handle.rank))
                await asyncio.sleep(delays.uniform(0, 0.02))
                more = followed_by(tiny, prompt, first, "more?", picture(80 + handle.rank))
                return first, await handle.generate(more, sampling(50 + handle.rank))

        async def main():
            return await asyncio.gather(*map(episode, Lockstep(engine).open(20)))

        return loop.run(main())

    assert run(1) == run(2)


def next_token(tiny, prompt, temperature=1.0):
    """Probabilities of the first token of an answer to a text, vision tokens left out."""
    config = tiny.model.config
    with torch.no_grad():
        logits = tiny.model(torch.tensor([prompt.token_ids])).logits[0, -1].double()
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    logits[[getattr(config, name) for name in names]] = -torch.inf
    return (logits / temperature).softmax(-1)


def first_tokens(loop, engine, prompt, draws, **settings):
    answers = ask(loop, engine, [(prompt, replace(sampling(i, 1), **settings)) for i in range(draws)])
    return Counter(answer.token_ids[0] for answer in answers)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (2.0, 1.0), (2.0, 0.6)])
def test_first_tokens_come_as_often_as_the_distribution_says(temperature, top_p, tiny, loop):
    prompt, draws = question(tiny, 3), 2000
    probs = next_token(tiny, prompt, temperature)
    likeliest = probs.argsort(descending=True)
    inside = likeliest[: int((probs[likeliest].cumsum(0) < top_p).sum()) + 1]
    with started(tiny, loop, max_batch=200) as engine:
        found = first_tokens(loop, engine, prompt, draws, temperature=temperature, top_p=top_p)
    assert top_p == 1 or (found.keys() == set(inside.tolist()) and len(inside) > 10)
    expected = {token: draws * probs[token].item() / probs[inside].sum().item() for token in inside.tolist()}
    common = [token for token in expected if expected[token] >= 5]
    rest = draws - sum(expected[token] for token in common), draws - sum(found[token] for token in common)
    cells = [(expected[token], found[token]) for token in common] + [rest] * (rest[0] >= 5)
    chi2, freedom = sum((seen - mean) ** 2 / mean for mean, seen in cells), len(cells) - 1
    assert freedom > 10
    assert abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def test_a_batch_mixes_greedy_and_sampled_rows(tiny, engine, loop):
    requests = [(question(tiny, 4), replace(sampling(i), temperature=float(i % 2))) for i in range(16)]
    answers = ask(loop, engine, requests)
    assert len({answer.token_ids for answer in answers[::2]}) == 1 < len({answer.token_ids for answer in answers[1::2]})
    ids = question(tiny, 4).token_ids
    for token in answers[0].token_ids:
        assert token == next_token(tiny, TokenPrompt(ids, ())).argmax()
        ids = (*ids, token)
    assert gap(tiny, requests, answers) < TOLERANCE


def test_vision_control_tokens_are_never_sampled(untied, loop):
    """Each of them is made by far the likeliest token wherever the hidden state leans its way."""
    config = untied.model.config
    banned = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    with torch.no_grad():
        untied.model.lm_head.weight[banned] *= 8
    requests = [(question(untied, i), sampling(i, 20)) for i in range(32)]
    with started(untied, loop) as engine:
        loop.run(engine.load_weights(untied.model.named_parameters(), 1))
        answers = ask(loop, engine, requests)
    assert not any(set(answer.token_ids) & set(banned) for answer in answers)
    assert sum(logprob < -12 for answer in answers for logprob in answer.logprobs) > 50  # the mass was on those
    assert gap(untied, requests, answers) < TOLERANCE


def test_a_stop_string_ends_the_turn_and_the_ids_stay_as_sampled(tiny, engine, loop):
    """The string is a sampled text from the middle of one token to the middle of a later one."""
    requests = [(question(tiny, 5, picture(5)), sampling(seed, 30)) for seed in range(16)]
    cut = 0
    for (prompt, draw), free in zip(requests, ask(loop, engine, requests), strict=True):
        texts = [tiny.tokenizer.decode(free.token_ids[:end], skip_special_tokens=True) for end in range(31)]
        for end in range(6, len(free.token_ids)):
            stop = texts[end][len(texts[end - 3]) + 1 : -1]
            if len(stop) > 2 and stop.isascii() and stop not in texts[end - 1]:
                (stopped,) = ask(loop, engine, [(prompt, replace(draw, stop=("</never>", stop)))])
                assert stopped.finish == "stop" and stopped.token_ids == free.token_ids[:end]
                assert stopped.logprobs == pytest.approx(free.logprobs[:end], abs=TOLERANCE)
                cut += 1
                break
    assert cut > 3


def test_the_token_that_ends_the_turn_is_returned_with_its_logprob(tiny, engine, loop):
    requests = [(question(tiny, 6), sampling(i, 60)) for i in range(64)]
    answers = ask(loop, engine, requests)
    ended = [answer for answer in answers if answer.finish == "stop"]
    assert ended and all(len(answer.token_ids) == 60 for answer in answers if answer.finish == "length")
    assert all(answer.token_ids.index(tiny.tokenizer.eos_token_id) == len(answer.token_ids) - 1 for answer in ended)
    assert gap(tiny, requests, answers) < TOLERANCE


def test_an_answer_ends_where_the_context_is_full(tiny, engine, loop):
    prompt = TokenPrompt(tiny.prompt("a" * 500).token_ids, ())
    (answer,) = ask(loop, engine, [(prompt, sampling(1, 450))])
    assert answer.finish == "length" and len(prompt.token_ids) + len(answer.token_ids) == 512


def test_the_folders_sampling_settings_end_turns_and_do_nothing_else(untied, loop):
    """Qwen's folders come with a repetition penalty and a temperature, and name two tokens that end a turn."""
    ends = [untied.tokenizer.eos_token_id, untied.tokenizer.pad_token_id]
    settings = {"repetition_penalty": 1.5, "top_k": 1, "do_sample": True, "max_new_tokens": 4, "temperature": 0.1}
    GenerationConfig(eos_token_id=ends, **settings).save_pretrained(untied.folder)
    requests = [(question(untied, 7), sampling(i, 60)) for i in range(64)]
    with started(untied, loop) as engine:
        answers = ask(loop, engine, requests)
    assert gap(untied, requests, answers) < TOLERANCE
    assert {answer.token_ids[-1] for answer in answers if answer.finish == "stop"} == set(ends)
    assert max(len(answer.token_ids) for answer in answers) == 60


def test_half_precision_stays_close(tiny, loop):
    with started(tiny, loop, dtype="bfloat16") as engine:
        loop.run(engine.load_weights(tiny.model.named_parameters(), 1))  # in float32
        requests = [(question(tiny, i, picture(i)), sampling(i)) for i in range(8)]
        assert TOLERANCE < gap(tiny, requests, ask(loop, engine, requests)) < 1
