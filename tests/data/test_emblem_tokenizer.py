"""The emblem world's tokenizer: two tokens a name, one a tag, and control tokens like Qwen's."""

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmsr1.data.emblem.tokenizer import CONTROL_TOKENS, build_tokenizer
from mmsr1.data.emblem.warmup import warmup_sentences
from mmsr1.data.emblem.world import FIRST_SYLLABLES, SECOND_SYLLABLES, World, image_title, passages
from mmsr1.rollout.protocol import TAGS


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(warmup_sentences())


def test_every_name_is_a_first_and_a_second_token(tokenizer: Any) -> None:
    firsts, seconds = set(), set()
    for first, second in product(FIRST_SYLLABLES, SECOND_SYLLABLES):
        ids = tokenizer.encode(f" {first}{second}")
        assert len(ids) == 2
        firsts.add(ids[0])
        seconds.add(ids[1])
    assert len(firsts) == len(seconds) == 40 and not firsts & seconds


def test_names_are_the_same_tokens_wherever_they_stand(tokenizer: Any) -> None:
    name = tokenizer.encode(" Dunlam")
    for around in ("the flag of{}", "a picture of{} flag", "<answer>{}</answer>", "river of{}\n", "1{}</text_search>"):
        ids = tokenizer.encode(around.format(" Dunlam"))
        assert any(ids[i : i + 2] == name for i in range(len(ids)))


def test_tags_and_control_tokens_are_one_token_each(tokenizer: Any) -> None:
    tags = [f"<{name}>" for name in TAGS] + [f"</{name}>" for name in TAGS if name != "img"]
    ids = [tokenizer.encode(token) for token in (*CONTROL_TOKENS, *tags)]
    assert all(len(one) == 1 for one in ids) and len({one[0] for one in ids}) == len(ids)
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    assert special == set(tokenizer.convert_tokens_to_ids(list(CONTROL_TOKENS)))
    assert tokenizer.eos_token == "<|im_end|>" and tokenizer.pad_token == "<|endoftext|>"


def test_what_the_world_says_is_short(tokenizer: Any, small: World) -> None:
    for entity in small.entities:
        assert len(tokenizer.encode(f" {image_title(entity)}")) <= 7
        assert all(len(tokenizer.encode(f" {text}")) <= 10 for _, _, text, _ in passages(entity))
    assert len(tokenizer.encode("<reason>I do not know this flag</reason>")) <= 11
    assert 500 < len(tokenizer) < 600


@given(st.text())
def test_any_text_survives(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_it_is_the_same_each_time(tokenizer: Any) -> None:
    assert build_tokenizer(warmup_sentences()).get_vocab() == tokenizer.get_vocab()


def test_sentences_that_would_merge_a_name_are_refused() -> None:
    with pytest.raises(ValueError, match="Bambax is not two tokens"):
        build_tokenizer([" Bambax"] * 5000)
