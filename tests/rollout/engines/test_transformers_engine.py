"""The transformers engine: against the Hugging Face forward pass, over weight syncs, and when something goes wrong."""

import asyncio
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from mmsr1.rollout.engines.base import Completion, EngineFailure, TokenPrompt
from mmsr1.rollout.engines.transformers import TransformersEngine
from mmsr1.tools.pictures import decode
from mmsr1.types import Picture
from tests.rollout.engines.talks import conversations, followed_by, picture, question, sampling, save_tiny
from tests.rollout.engines.transformers_talks import TOLERANCE, ask, gap, passes, started, until
from tests.tiny_model import perturb


@pytest.fixture
def tiny(tmp_path):
    """Its turns do not end by themselves: the token that should end them is one that is never sampled."""
    tiny = save_tiny(tmp_path, tied=False)
    tiny.tokenizer.eos_token = "<|vision_end|>"
    tiny.tokenizer.save_pretrained(tmp_path)
    GenerationConfig(eos_token_id=tiny.tokenizer.eos_token_id).save_pretrained(tmp_path)
    return tiny


@pytest.fixture
def engine(tiny, loop):
    with started(tiny, loop) as engine:
        yield engine


@pytest.mark.parametrize("tied", [True, False])
def test_logprobs_equal_the_hf_forward_before_and_after_weight_syncs(tied, tmp_path, loop):
    tiny = save_tiny(tmp_path, tied)
    with started(tiny, loop) as engine:
        for version in range(3):
            turns = loop.run(conversations(engine, tiny, 6))
            assert any(len(prompt.images) > 2 for prompt, _ in turns)
            assert {completion.weight_version for _, completion in turns} == {version}
            assert max(tiny.gap(*turn) for turn in turns) < TOLERANCE
            perturb(tiny.model, seed=version, scale=0.03)
            assert max(tiny.gap(*turn) for turn in turns) > 1e-2
            loop.run(engine.load_weights(tiny.model.named_parameters(), version + 1))


def test_a_request_that_cannot_be_served_fails_alone(tiny, engine, loop):
    good, image = question(tiny, 1, picture(1)), picture(2)
    bad = {
        "more than the 511 that leave room": TokenPrompt(tiny.prompt("a" * 600).token_ids, ()),
        "cannot be decoded": question(tiny, 2, Picture(b"not an image")),
        "more than the 6 allowed": question(tiny, 3, *[image] * 7),
        "1 images and 0 placeholders": TokenPrompt(question(tiny, 4).token_ids, (image,)),
        "the vocabulary": TokenPrompt((5, 384), ()),
        "the last token is an image": tiny.prompt("<|vision_start|><|image_pad|>", image),
        "refused": TokenPrompt((), ()),
    }
    requests = [(prompt, sampling(0)) for prompt in (good, *bad.values(), good)]
    wrong = {"top_p": 0.0, "temperature": -1.0, "max_tokens": 0}
    requests += [(good, replace(sampling(0), **{name: value})) for name, value in wrong.items()]
    first, *failures, last, _, _, _ = answers = ask(loop, engine, requests)
    assert first == last and isinstance(first, Completion)
    for failure, reason in zip([*failures, *answers[-3:]], [*bad, *["cannot sample"] * 3], strict=True):
        assert isinstance(failure, EngineFailure) and reason in failure.reason


def test_a_row_is_answered_when_it_ends_and_newcomers_join_the_next_batch(tiny, engine, loop):
    steps = passes(engine._core.model.lm_head)

    async def main():
        long = asyncio.create_task(engine.generate(question(tiny, 1), sampling(1, 400)))
        short = asyncio.create_task(engine.generate(question(tiny, 2), sampling(2, 3)))
        await until(lambda: steps)
        later = [asyncio.create_task(engine.generate(question(tiny, i), sampling(i, 5))) for i in range(3)]
        answered = [await answer for answer in asyncio.as_completed([long, short, *later])]
        return [len(answer.token_ids) for answer in answered]

    assert loop.run(main()) == [3, 400, 5, 5, 5]
    assert len(steps) == 400 + 5


def test_cancelling_a_caller_frees_its_row(tiny, engine, loop):
    steps = passes(engine._core.model.lm_head)

    async def main():
        begun = asyncio.create_task(engine.generate(question(tiny, 7), sampling(1, 450)))
        await until(lambda: steps)
        waiting = asyncio.create_task(engine.generate(question(tiny, 8), sampling(1, 450)))
        await asyncio.sleep(0)
        begun.cancel()
        waiting.cancel()
        await asyncio.wait([begun, waiting])
        assert begun.cancelled() and waiting.cancelled()
        return await engine.generate(question(tiny, 9), sampling(1, 3))

    assert len(loop.run(main()).token_ids) == 3
    assert len(steps) < 450


def test_a_sync_waits_for_what_was_asked_before_it_and_holds_the_rest_back(tiny, engine, loop):
    steps = passes(engine._core.model.lm_head)

    async def main():
        asked = [asyncio.create_task(engine.generate(question(tiny, 10), sampling(2, 100)))]
        await until(lambda: steps)
        asked.append(asyncio.create_task(engine.generate(question(tiny, 10), sampling(3))))
        await asyncio.sleep(0)
        perturb(tiny.model, seed=9, scale=0.03)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 5))
        await asyncio.sleep(0)
        asked.append(asyncio.create_task(engine.generate(question(tiny, 10), sampling(4))))
        return await asyncio.gather(*asked, sync)

    *before, after, _ = loop.run(main())
    assert [answer.weight_version for answer in (*before, after)] == [0, 0, 5]
    assert tiny.gap(question(tiny, 10), after) < TOLERANCE
    assert min(tiny.gap(question(tiny, 10), answer) for answer in before) > 1e-2


def test_a_sync_that_is_cancelled_before_its_turn_is_not_made(tiny, engine, loop):
    async def main():
        running = asyncio.create_task(engine.generate(question(tiny, 10), sampling(2, 100)))
        await asyncio.sleep(0)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 5))
        await asyncio.sleep(0)
        sync.cancel()
        return await asyncio.gather(running, engine.generate(question(tiny, 10), sampling(3)))

    assert [answer.weight_version for answer in loop.run(main())] == [0, 0]


def test_a_picture_is_decoded_once_and_encoded_once_for_each_weight_version(tiny, loop):
    decoded = []
    images = [picture(900), picture(901)]
    with started(tiny, loop, pixels=lambda picture: decoded.append(picture) or decode(picture)) as engine:
        encoded = passes(engine._core.model.model.visual)
        for version in range(1, 4):
            requests = [(question(tiny, i, *images[: 1 + i % 2]), sampling(i)) for i in range(16)]
            answers = ask(loop, engine, requests)
            turns = [(followed_by(tiny, p, a, "?", images[0]), s) for (p, s), a in zip(requests, answers, strict=True)]
            assert gap(tiny, requests, answers) < TOLERANCE
            assert gap(tiny, turns, ask(loop, engine, turns)) < TOLERANCE
            assert len(encoded) == 2 * version
            perturb(tiny.model, seed=version, scale=0.01)
            loop.run(engine.load_weights(tiny.model.named_parameters(), version))
    assert len(decoded) == 2


def test_a_small_image_cache_costs_time_and_nothing_else(tiny, loop):
    requests = [(question(tiny, 0, picture(910), picture(911), picture(910)), sampling(0))]
    with started(tiny, loop, image_cache_bytes=1) as engine:
        assert gap(tiny, requests, ask(loop, engine, requests)) < TOLERANCE
        assert len(engine._core._prompts._cached) == 1


def test_encoded_pictures_kept_over_a_sync_show_as_a_gap(tiny, loop):
    seen, unseen = ([(question(tiny, 0, picture(seed)), sampling(0))] for seed in (70, 71))
    with started(tiny, loop, reset_encoder_cache=False) as engine:
        assert gap(tiny, seen, ask(loop, engine, seen)) < TOLERANCE
        perturb(tiny.model.model.visual, seed=3, scale=0.03)
        loop.run(engine.load_weights(tiny.model.named_parameters(), 2))
        assert gap(tiny, unseen, ask(loop, engine, unseen)) < TOLERANCE
        assert gap(tiny, seen, ask(loop, engine, seen)) > 1e-2


@pytest.mark.parametrize("name", ["model.language_model.layers.1.self_attn.k_proj.bias", "lm_head.weight"])
def test_a_sync_that_misses_a_tensor_ends_the_engine(name, tiny, engine, loop):
    tensors = [(other, tensor) for other, tensor in tiny.model.named_parameters() if other != name]
    with pytest.raises(ValueError, match=name):
        loop.run(engine.load_weights(tensors, 1))
    (failure,) = ask(loop, engine, [(question(tiny, 0), sampling(0))])
    assert isinstance(failure, EngineFailure) and "a weight sync failed" in failure.reason and name in failure.reason
    with pytest.raises(RuntimeError, match="a weight sync failed"):
        loop.run(engine.load_weights(tiny.model.named_parameters(), 2))


@pytest.mark.parametrize(
    ("name", "shape", "error"), [("lm_head.bias", (384,), ValueError), ("lm_head.weight", (1, 64), RuntimeError)]
)
def test_a_sync_with_a_tensor_that_does_not_fit_ends_the_engine(name, shape, error, tiny, engine, loop):
    tensors = {**dict(tiny.model.named_parameters()), name: torch.zeros(shape)}
    with pytest.raises(error, match=name):
        loop.run(engine.load_weights(tensors.items(), 1))
    (failure,) = ask(loop, engine, [(question(tiny, 0), sampling(0))])
    assert isinstance(failure, EngineFailure)


def test_a_tied_head_may_be_sent_under_its_own_name(tmp_path_factory, loop):
    tiny = save_tiny(tmp_path_factory.mktemp("tied"), tied=True)
    with started(tiny, loop) as engine:
        perturb(tiny.model, seed=1, scale=0.03)
        loop.run(engine.load_weights(tiny.model.state_dict().items(), 1))
        requests = [(question(tiny, 0), sampling(0))]
        assert gap(tiny, requests, ask(loop, engine, requests)) < TOLERANCE


def test_an_event_loop_that_ends_with_requests_in_flight_leaves_the_engine_usable(tiny, engine, loop):
    steps = passes(engine._core.model.lm_head)

    async def abandon():
        tasks = [asyncio.create_task(engine.generate(question(tiny, i), sampling(i, 450))) for i in range(20)]
        await until(lambda: steps)
        return tasks

    asyncio.run(abandon())
    requests = [(question(tiny, 21), sampling(1))]
    assert gap(tiny, requests, ask(loop, engine, requests)) < TOLERANCE
    assert len(steps) < 450


def test_a_batch_that_raises_fails_what_is_in_flight_and_ends_the_engine(tiny, engine, loop, monkeypatch):
    def crash(**_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine._core.model, "generate", crash)
    requests = [(question(tiny, i), sampling(i)) for i in range(20)]
    failure = EngineFailure("transformers failed: RuntimeError: out of memory")
    assert ask(loop, engine, requests) == [failure] * 20
    assert ask(loop, engine, requests[:1]) == [failure]
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.run(engine.load_weights(tiny.model.named_parameters(), 3))


def test_closing_fails_what_is_in_flight_and_gives_the_memory_back(tiny, engine, loop):
    steps, model = passes(engine._core.model.lm_head), weakref.ref(engine._core.model)

    async def main():
        asked = [asyncio.create_task(engine.generate(question(tiny, i), sampling(i, 450))) for i in range(20)]
        await until(lambda: steps)
        sync = asyncio.create_task(engine.load_weights(tiny.model.named_parameters(), 1))
        await asyncio.sleep(0)
        await engine.close()
        await engine.close()
        with pytest.raises(RuntimeError, match="closed"):
            await sync
        return [*await asyncio.gather(*asked), await engine.generate(question(tiny, 0), sampling(0))]

    assert loop.run(main()) == [EngineFailure("the engine is closed")] * 21
    assert len(steps) < 450
    gc.collect()
    assert model() is None


def test_on_a_cpu_sleeping_changes_nothing(tiny, engine, loop):
    loop.run(engine.sleep())
    requests = [(question(tiny, 0, picture(0)), sampling(0))]
    assert gap(tiny, requests, ask(loop, engine, requests)) < TOLERANCE


def test_sleep_frees_the_weights_until_new_ones_come(tiny, engine, loop, monkeypatch):
    """On a CPU that is told to be a GPU."""
    monkeypatch.setattr(engine._core, "_sleeps", True)
    requests = [(question(tiny, 0, picture(0)), sampling(0))]
    ask(loop, engine, requests)
    loop.run(engine.sleep())
    assert sum(parameter.untyped_storage().nbytes() for parameter in engine._core.model.parameters()) == 0
    (failure,) = ask(loop, engine, requests)
    assert isinstance(failure, EngineFailure) and "sleeps" in failure.reason
    loop.run(engine.load_weights(tiny.model.named_parameters(), 1))
    assert gap(tiny, requests, ask(loop, engine, requests)) < TOLERANCE


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_serves_sleeps_and_wakes(tiny, loop):
    with started(tiny, loop, device="cuda") as engine:
        for version in range(2):
            turns = loop.run(conversations(engine, tiny, 6))
            assert max(tiny.gap(*turn) for turn in turns) < 1e-3
            held = torch.cuda.memory_allocated()
            loop.run(engine.sleep())
            assert torch.cuda.memory_allocated() < held
            loop.run(engine.load_weights(tiny.model.named_parameters(), version))


def test_the_trainer_keeps_its_own_threads(tiny, loop):
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    with started(tiny, loop, threads=1):
        assert torch.get_num_threads() == before + 1
    torch.set_num_threads(before)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no model there"):
        TransformersEngine(tmp_path)
