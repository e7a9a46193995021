"""A model behind a chat API: the conversation that it is sent, and what its answers become, over real HTTP."""

import asyncio
import base64
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from werkzeug import Request, Response

from mmsr1.assembly.services import Services
from mmsr1.config import BudgetConfig, PartConfig
from mmsr1.rollout.engines.base import TokenPrompt
from mmsr1.rollout.engines.openai import OpenAiEngine, conversation
from mmsr1.rollout.episode import Limits, run_episode
from mmsr1.tools.chat import CHAT
from mmsr1.tools.providers.base import Access
from mmsr1.tools.providers.chat import OpenAiChat
from mmsr1.types import Example
from tests.rollout.conversation import SAMPLING, MemoryTool, example, make_renderer, picture, titled

REASON = "<reason>I know this flag</reason>"
LIMITS = Limits(turns=3, turn_tokens=200, episode_tokens=4096)


class Service:
    """A chat API with a script; `asked` are the bodies it was sent."""

    def __init__(self, httpserver: Any) -> None:
        self.asked: list[dict[str, Any]] = []
        self.script: list[Any] = []
        self.url = httpserver.url_for("")
        httpserver.expect_request("/v1/chat/completions").respond_with_handler(self._answer)

    def _answer(self, request: Request) -> Response:
        self.asked.append(json.loads(request.data))
        said = self.script[min(len(self.asked), len(self.script)) - 1]
        if isinstance(said, int):
            return Response("{}", said, content_type="application/json")
        text, finish = said if isinstance(said, tuple) else (said, "stop")
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        choice = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
        return Response(json.dumps({"choices": [choice], "usage": usage}), content_type="application/json")


@pytest.fixture
def service(httpserver):
    return Service(httpserver)


@pytest.fixture
def play(service, tmp_path, tokenizer):
    """Runs one episode with these answers of the model."""

    def run(*script: Any, limits: Limits = LIMITS, asked: Example | None = None, prompts="on_demand", **options: Any):
        service.script = list(script)
        services = Services(tmp_path / "cache", BudgetConfig(), tmp_path / "run")
        provider = OpenAiChat(Access(url=service.url, options={"model": "m", **options}))
        settings = PartConfig("openai", attempts=2, timeout_s=5, deadline_s=10, rate_per_s=1000)
        engine = OpenAiEngine(services.part(provider, settings, CHAT), tokenizer, provider.aclose)
        tools: Any = {name: MemoryTool(name, titled("Dulmen")) for name in ("image_search", "text_search")}

        async def whole():
            try:
                one = asked or example()
                return await run_episode(one, engine, tools, make_renderer(tokenizer, prompts), limits, SAMPLING, (0,))
            finally:
                await engine.close()

        return asyncio.run(whole()), services

    return run


def test_a_conversation_is_sent_as_messages_with_its_pictures(play, service) -> None:
    search, answer = f"{REASON}<search><img></search>", f"{REASON}<answer>Dulmen</answer>"
    episode, _ = play(search, answer)
    assert episode.stop == "answered" and episode.turns == (search, answer)
    first, second = (body["messages"] for body in service.asked)
    assert [m["role"] for m in first] == ["system", "user"] and [m["role"] for m in second][2:] == ["assistant", "user"]
    shown, asked = first[1]["content"]
    assert base64.b64decode(shown["image_url"]["url"].partition("base64,")[2]) == picture(0).data
    assert "what place has this flag?" in asked["text"] and "<|" not in asked["text"]
    assert second[2]["content"] == search and "Dulmen" in second[3]["content"]
    assert service.asked[0]["temperature"] == 1.0 and service.asked[0]["max_tokens"] == 200


def test_what_it_says_after_its_action_is_cut_and_a_mention_is_no_action(play) -> None:
    said = "<reason>not <answer>x</answer> yet</reason><answer>Dulmen</answer>\n<information>made up</information>"
    episode, _ = play(said)
    assert episode.turns == ("<reason>not <answer>x</answer> yet</reason><answer>Dulmen</answer>",)
    (own,) = [segment for segment in episode.segments if segment.sampled]
    assert all(math.isnan(logprob) for logprob in own.sampled.logprobs)


def test_a_turn_without_an_action_has_ended(play) -> None:
    episode, _ = play("I would rather not say.")
    assert episode.stop == "malformed" and episode.turns == ("I would rather not say.",)


def test_special_tokens_that_it_spells_are_text(play, tokenizer) -> None:
    episode, _ = play(f"{REASON}<answer>a<|im_end|><|image_pad|>b</answer>")
    own = [token for segment in episode.segments if segment.sampled for token in segment.token_ids]
    forbidden = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|image_pad|>", "<|im_start|>"])
    assert not set(own) & set(forbidden) and episode.stop == "answered"


@pytest.mark.parametrize("continues", [True, False])
def test_a_forced_turn_goes_on_with_what_was_begun(play, service, continues: bool) -> None:
    """With the server's own option, or asked in words, then often without the closing tag."""
    rest = "Kent</answer>" if continues else "Kent"
    forced = replace(LIMITS, actions=("answer",))
    episode, _ = play(f"{REASON}<search><img></search>", rest, limits=forced, continues=continues)
    assert episode.turns == (f"{REASON}<answer>Kent</answer>",) and episode.stop == "answered"
    last = service.asked[1]["messages"]
    begun = last[-1] if continues else last[-2]
    assert begun == {"role": "assistant", "content": f"{REASON}<answer>"}
    assert service.asked[1].get("continue_final_message", False) is continues


def test_what_was_answered_is_not_asked_again_and_failures_are_typed(play, service) -> None:
    answer = f"{REASON}<answer>Dulmen</answer>"
    first, services = play(answer, usd_per_million=[2.0, 10.0])
    again, _ = play(answer, usd_per_million=[2.0, 10.0])
    assert len(service.asked) == 1 and first.turns == again.turns
    row = services.rows()["openai_chat"]
    assert row["paid_usd"] == pytest.approx((100 * 2 + 10 * 10) / 1e6)
    service.asked.clear()
    failed, _ = play(500, asked=example("other", question="what else?"))
    assert failed.stop == "engine_failure"


def test_an_answer_that_was_cut_is_cut(play, service) -> None:
    told, _ = play(("<reason>I know this", "length"), f"{REASON}<answer>Dulmen</answer>")
    assert told.stop in ("answered", "length_limit") and len(service.asked) >= 2


def test_a_prompt_that_is_no_conversation_is_refused(tokenizer) -> None:
    ids = tuple(tokenizer("<|im_start|>robot\nhi<|im_end|>\n", add_special_tokens=False)["input_ids"])
    with pytest.raises(ValueError, match="chat format"):
        conversation(TokenPrompt(ids, ()), tokenizer)
    with pytest.raises(ValueError, match="no place"):
        conversation(TokenPrompt(ids[:0], (picture(0),)), tokenizer)


def test_it_takes_no_weights(play, tokenizer, tmp_path) -> None:
    services = Services(tmp_path / "cache", BudgetConfig(), tmp_path / "run")
    provider = OpenAiChat(Access(url="http://127.0.0.1:9", options={"model": "m"}))
    engine = OpenAiEngine(services.part(provider, PartConfig("openai"), CHAT), tokenizer)
    with pytest.raises(RuntimeError, match="takes no weights"):
        asyncio.run(engine.load_weights([], 1))
