"""Where a request goes, from loads and prefixes alone."""

import pytest

from mmsr1.rollout.engines import routing
from mmsr1.rollout.engines.routing import BLOCK, HEAD_START, Prefixes, block_hashes, choose


def test_without_prefixes_the_least_loaded_is_chosen_and_ties_go_to_the_first():
    assert choose([3, 1, 2], [0, 0, 0]) == 1
    assert choose([2, 2, 2], [0, 0, 0]) == 0


@pytest.mark.parametrize("least", [0, 40, 400])
def test_a_whole_prefix_is_worth_a_few_requests_and_a_quarter(least):
    worth = HEAD_START + least // 4
    assert choose([least, least + worth - 1], [0.0, 1.0]) == 1
    assert choose([least, least + worth + 1], [0.0, 1.0]) == 0
    assert choose([least, least + worth - 1], [0.0, 0.5]) == 0


def test_a_prefix_is_known_as_far_as_tokens_and_images_agree():
    prompt = list(range(20 * BLOCK))
    hashes = block_hashes(prompt, {5: "a", 10 * BLOCK: "b"})
    seen = Prefixes()
    seen.add(hashes)
    assert seen.share(hashes) == 1
    assert seen.share(block_hashes(prompt * 2, {5: "a", 10 * BLOCK: "b"})) == 0.5
    assert seen.share(block_hashes(prompt, {5: "a", 10 * BLOCK: "other"})) == 0.5
    assert seen.share(block_hashes(prompt, {5: "other", 10 * BLOCK: "b"})) == 0
    assert seen.share(block_hashes([*prompt[:BLOCK], 7, *prompt[BLOCK + 1 :]], {5: "a"})) == 1 / 20
    seen.clear()
    assert seen.share(hashes) == 0


def test_a_short_prompt_counts_little():
    hashes = block_hashes(range(BLOCK), {})
    seen = Prefixes()
    seen.add(hashes)
    assert len(hashes) == 1 and seen.share(hashes) == 1 / routing.SHORT
    assert seen.share(block_hashes(range(BLOCK - 1), {})) == 0


def test_what_was_used_last_is_remembered(monkeypatch):
    monkeypatch.setattr(routing, "REMEMBERED", 2)
    first, second, third = (block_hashes([i] * BLOCK, {}) for i in range(3))
    seen = Prefixes()
    for hashes in (first, second, first, third):
        seen.add(hashes)
    assert [seen.share(hashes) > 0 for hashes in (first, second, third)] == [True, False, True]
