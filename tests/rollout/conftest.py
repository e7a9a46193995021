"""The two tokenizers every piece of a rollout has to work with."""

import pytest

from mmsr1.data.emblem.tokenizer import build_tokenizer
from mmsr1.data.emblem.warmup import warmup_sentences
from tests.qwen_tokenizer import qwen_tokenizer


@pytest.fixture(scope="session")
def tiny():
    """The emblem world's: tags are single tokens."""
    return build_tokenizer(warmup_sentences())


@pytest.fixture(scope="session")
def qwen():
    """Qwen2.5's own: tags are several tokens, and a closing bracket merges with what follows."""
    return qwen_tokenizer()


@pytest.fixture(params=["tiny", "qwen"])
def tokenizer(request):
    return request.getfixturevalue(request.param)
