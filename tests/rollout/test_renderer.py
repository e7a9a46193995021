"""Segments of a conversation: the chat format to the letter, pictures in their places, nothing forged or edited."""

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr1.data.emblem.tokenizer import CONTROL_TOKENS
from mmsr1.rollout.prompts import load_prompts
from mmsr1.rollout.protocol import TAGS
from mmsr1.rollout.renderer import Renderer
from mmsr1.types import Sampled, Segment, ToolCall, ToolItem, ToolResult
from tests.qwen_tokenizer import ORDINARY, qwen_ranks, qwen_tokenizer
from tests.rollout.conversation import example, ids_of, image_tokens, make_renderer, picture, text_of, titled

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
ASK, REPLY = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
BY_IMAGE, BY_TEXT = ToolCall("image_search", "0" * 64), ToolCall("text_search", "capital of Dulmen")
NOTICES = {
    "empty": "no_results",
    "infrastructure_error": "tool_failed",
    "malformed_call": "bad_call",
    "over_budget": "over_budget",
}
HOSTILE = st.lists(
    st.sampled_from([*CONTROL_TOKENS, *ORDINARY, *(f"<{c}{t}>" for t in TAGS for c in ("", "/"))])
    | st.sampled_from(["<|", "|>", "<", "</", "im_end", "answer>", " ", "\n", "é", "\u200b", "＜", "<|im_\x00end|>"])
    | st.text(max_size=5),
    max_size=8,
).map("".join)


def heard(renderer: Renderer, result: ToolResult, call: ToolCall = BY_IMAGE, **more: Any) -> list[Segment]:
    return renderer.results(
        call, result, **({"question": "what place?", "room": 10**6, "turn_open": True, "last": False} | more)
    )


def sampled(tokenizer: Any, text: str) -> Segment:
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    return Segment("sampled", ids, trusted=False, sampled=Sampled(tuple(-1.0 for _ in ids), 0))


def check_pictures(tokenizer: Any, segments: list[Segment]) -> None:
    """Each picture stands where its placeholder is, and there is no placeholder without one."""
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    for segment in segments:
        assert segment.token_ids.count(pad) == len(segment.images) <= 1
        assert (segment.kind == "image") == bool(segment.images)


def test_the_rebuilt_tokenizer_is_qwens(qwen: Any) -> None:
    """Ids from Qwen2.5's published tokenizer; and tiktoken, which knows the ranks alone, agrees."""
    tiktoken = pytest.importorskip("tiktoken")
    known = {
        "Hello, world!": [9707, 11, 1879, 0],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n": (
            [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
        ),
        "<|im_start|>assistant\n": [151644, 77091, 198],
        "1234": [16, 17, 18, 19],
    }
    for text, ids in known.items():
        assert qwen(text)["input_ids"] == ids
    assert len(qwen) == 151665 and qwen.eos_token_id == 151645
    assert qwen.convert_tokens_to_ids([*CONTROL_TOKENS, *ORDINARY]) == list(range(151643, 151665))
    pattern = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"""
    other = tiktoken.Encoding("q", pat_str=pattern + r"|\s+(?!\S)|\s+", mergeable_ranks=qwen_ranks(), special_tokens={})
    text = "The Tower's <search><img></search>\n\nhöhe:  324 m — 塔の高さ, ¿cuál?\tdon't </answer>.\n" * 3
    assert qwen(text)["input_ids"] == other.encode(text) and qwen.decode(other.encode(text)) == text


def test_qwen_splits_tags_and_merges_their_ends(qwen: Any) -> None:
    """Why the tests below use it: no tag is a token, and a stop string can end inside one."""
    assert qwen.tokenize("</answer>\n") == ["</", "answer", ">Ċ"]
    assert qwen.tokenize("<img></search>") == ["<img", "></", "search", ">"]


@pytest.mark.parametrize("prompts", ["emblem", "on_demand"])
def test_the_first_message_is_the_chat_format_to_the_letter(tokenizer: Any, prompts: str) -> None:
    renderer = make_renderer(tokenizer, prompts)
    asked = example(images=[picture(1), picture(2, 84)], question="what place has\nthis flag?")
    segments = renderer.first(asked)
    filled = load_prompts(prompts).question.replace("{images}", IMAGE * 2).replace("{question}", asked.question)
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n" if prompts == "on_demand" else ""
    assert text_of(tokenizer, segments) == f"{system}{ASK}{filled}{REPLY}"
    assert [shown for segment in segments for shown in segment.images] == list(asked.images)
    check_pictures(tokenizer, segments)
    (question,) = (segment for segment in segments if segment.kind == "question")
    assert not question.trusted and renderer.decode(question.token_ids) == asked.question
    assert all(segment.trusted for segment in segments if segment.kind != "question")


def test_a_question_without_a_picture_has_no_placeholder(tokenizer: Any) -> None:
    segments = make_renderer(tokenizer).first(example(images=[]))
    assert text_of(tokenizer, segments) == f"{ASK}what place has this flag?{REPLY}"


def test_lengths_count_what_the_model_sees(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer)
    segments = renderer.first(example(images=[picture(1), picture(2, 84)]))
    assert renderer.length(segments) == len(ids_of(segments)) - 2 + 4 + 9


def test_image_results_carry_titles_and_thumbnails_in_order(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer)
    result = titled("flag of Dulmen", "a tower", "flag of Zanzol", thumbnails=2)
    segments = heard(renderer, result)
    assert text_of(tokenizer, segments) == (
        f"<|im_end|>\n{ASK}<information>1{IMAGE} flag of Dulmen\n2{IMAGE} a tower\n3 flag of Zanzol\n</information>"
        f"{REPLY}"
    )
    shown = [picture for segment in segments for picture in segment.images]
    assert shown == [item.thumbnail for item in result.items[:2]]
    check_pictures(tokenizer, segments)
    titles = [segment for segment in segments if segment.kind == "tool_result"]
    assert [renderer.decode(segment.token_ids) for segment in titles] == [item.title for item in result.items]
    assert not any(segment.trusted for segment in titles)


def test_text_results_carry_what_the_prompts_ask_for(tokenizer: Any) -> None:
    result = titled("Dulmen", "Zanzol")
    brief = text_of(tokenizer, heard(make_renderer(tokenizer), result, BY_TEXT))
    assert "<information>1 text of Dulmen\n2 text of Zanzol\n</information>" in brief
    full = text_of(tokenizer, heard(make_renderer(tokenizer, "on_demand"), result, BY_TEXT, question="what place?"))
    assert "1. Dulmen (https://0.example)\ntext of Dulmen\n2. Zanzol" in full and "Question: what place?\n" in full


@pytest.mark.parametrize(("status", "notice"), NOTICES.items())
def test_each_other_status_has_its_notice(tokenizer: Any, status: Any, notice: str) -> None:
    renderer = make_renderer(tokenizer, "on_demand")
    segments = heard(renderer, ToolResult(status, detail="never shown <|im_end|>"))
    assert text_of(tokenizer, segments) == f"<|im_end|>\n{ASK}{getattr(renderer.prompts, notice)}{REPLY}"


def test_the_last_turn_is_announced(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer, "on_demand")
    for result in (titled("Dulmen"), ToolResult("empty")):
        plain, announced = (text_of(tokenizer, heard(renderer, result, last=last)) for last in (False, True))
        assert announced == plain.removesuffix(REPLY) + renderer.prompts.last_turn + REPLY
    cut = text_of(tokenizer, renderer.cut_notice(turn_open=True))
    assert cut == f"<|im_end|>\n{ASK}{renderer.prompts.turn_cut}{renderer.prompts.last_turn}{REPLY}"


def test_the_newline_after_each_turn_is_kept_whoever_ended_it(tokenizer: Any) -> None:
    """Reference defect 7: it was lost. A stop string leaves the turn open, the model's own end token does not."""
    renderer = make_renderer(tokenizer)
    turn = "<reason>I do not know this flag</reason><search><img></search>"
    for follow in (
        lambda open_: heard(renderer, titled("Dulmen"), turn_open=open_),
        lambda open_: renderer.cut_notice(open_),
    ):
        stopped = [*renderer.first(example()), sampled(tokenizer, turn), *follow(True)]
        ended = [*renderer.first(example()), sampled(tokenizer, f"{turn}<|im_end|>"), *follow(False)]
        assert ids_of(stopped) == ids_of(ended)
        text = text_of(tokenizer, stopped)
        assert f"{REPLY}{turn}<|im_end|>\n{ASK}" in text
        assert text.count("<|im_end|>") == text.count("<|im_end|>\n") == 3


def test_an_open_turn_and_the_next_message_meet_between_tokens(qwen: Any) -> None:
    """The model's last token stays its own even where the tokenizer would merge it with the newline that follows."""
    said = sampled(qwen, "<answer>Dulmen</answer>\n")
    talk = [*make_renderer(qwen).first(example()), said, *make_renderer(qwen).cut_notice(True)]
    ids = ids_of(talk)
    start = next(i for i in range(len(ids)) if ids[i : i + len(said.token_ids)] == list(said.token_ids))
    assert qwen.convert_ids_to_tokens(ids[start:])[len(said.token_ids) - 1 :][:3] == [">Ċ", "<|im_end|>", "Ċ"]


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(HOSTILE, min_size=7, max_size=7), which=st.sampled_from(["tiny", "qwen"]))
def test_untrusted_text_forges_nothing(request: pytest.FixtureRequest, texts: list[str], which: str) -> None:
    tokenizer: Any = request.getfixturevalue(which)
    renderer = make_renderer(tokenizer, "on_demand")
    question, *rest = texts
    items = (ToolItem(rest[0], rest[1], rest[2], picture(1, 28)), ToolItem(rest[3], rest[4], rest[5]))
    bare = [ToolItem("", "", "", item.thumbnail) for item in items]
    control = set(tokenizer.added_tokens_decoder)
    for call in (BY_IMAGE, BY_TEXT):
        plain = [
            *renderer.first(example(question="")),
            *heard(renderer, ToolResult("ok", tuple(bare)), call, question=""),
        ]
        hostile = [
            *renderer.first(example(question=question)),
            *heard(renderer, ToolResult("ok", items), call, question=question),
        ]
        check_pictures(tokenizer, hostile)
        assert not any(control & set(segment.token_ids) for segment in hostile if not segment.trusted)
        assert [i for i in ids_of(hostile) if i in control] == [i for i in ids_of(plain) if i in control]
        tags = re.compile(rf"</?(?:{'|'.join(TAGS)})>|<\|[^<>|]*\|>")
        assert tags.findall(text_of(tokenizer, hostile)) == tags.findall(text_of(tokenizer, plain))


def test_no_control_token_gets_through_even_if_the_sanitiser_fails(
    tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Special tokens are tokenised as text; added ones that are not special cannot be, and are refused."""
    monkeypatch.setattr("mmsr1.rollout.renderer.neutralise", lambda text: text)
    renderer = make_renderer(tokenizer)
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            segments = renderer.first(example(question=f"a {token.content} b"))
            (question,) = (segment for segment in segments if segment.kind == "question")
            assert not renderer.control_ids & set(question.token_ids)
        else:
            with pytest.raises(AssertionError, match="survived"):
                renderer.first(example(question=f"a {token.content} b"))


@pytest.mark.parametrize("call", [BY_IMAGE, BY_TEXT])
def test_results_are_cut_by_whole_items_with_their_thumbnails(tokenizer: Any, call: ToolCall) -> None:
    renderer = make_renderer(tokenizer, "on_demand")
    result = titled("flag of Dulmen", "a rather long title of a page", "flag", "tower of Zanzol", "sea", thumbnails=4)
    whole = [heard(renderer, replace(result, items=result.items[:n]), call) for n in range(6)]
    lengths = [renderer.length(segments) for segments in whole]
    assert lengths == sorted(set(lengths))
    for room in range(lengths[0] - 3, lengths[-1] + 2):
        fitting = max((n for n in range(6) if lengths[n] <= room), default=0)
        segments = heard(renderer, result, call, room=room)
        assert ids_of(segments) == ids_of(whole[fitting])
        assert [s.images for s in segments] == [s.images for s in whole[fitting]]
        check_pictures(tokenizer, segments)


def test_the_notice_of_the_last_turn_counts_against_the_room(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer, "on_demand")
    result = titled(*(f"flag of Dulmen {n}" for n in range(20)))
    room = renderer.length(heard(renderer, result))
    announced = heard(renderer, result, room=room, last=True)
    assert renderer.length(announced) <= room
    assert renderer.prompts.last_turn in text_of(tokenizer, announced)
    assert "Dulmen 19" not in text_of(tokenizer, announced)


def test_decoding_leaves_out_only_the_end_of_turn_token(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer)
    for text in (
        " <reason> x</reason>\n<answer> a , b .</answer>\n\n",
        "<|im_start|>user\n<|endoftext|>",
        "höhe <|image_pad|>",
    ):
        ids = sampled(tokenizer, text).token_ids
        assert renderer.decode(ids) == renderer.decode([*ids, tokenizer.eos_token_id]) == text


def test_demonstrated_turns_have_the_ids_a_model_would_sample(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer)
    turn = renderer.policy_turn("<answer> Dulmen</answer>")
    assert turn.token_ids == sampled(tokenizer, "<answer> Dulmen</answer>").token_ids and turn.sampled is None


def test_a_brace_in_a_users_prompt_is_no_slot(tokenizer: Any) -> None:
    prompts = replace(load_prompts("emblem"), text_item="{url) {text}{", question="{images}{}{question}")
    renderer = Renderer(tokenizer, prompts, image_tokens)
    assert "{url) text of Dulmen{" in text_of(tokenizer, heard(renderer, titled("Dulmen"), BY_TEXT))
    assert f"{IMAGE}{{}}what" in text_of(tokenizer, renderer.first(example()))


def test_the_fixture_is_built_once(qwen: Any) -> None:
    assert qwen is qwen_tokenizer()
