"""Mirrors of the data sets are recognised however their address is written."""

import pytest

from mmsr1.tools.blocklist import Blocklist

LIST = Blocklist(["HuggingFace.co", ".github.com", "*.kaggle.com", "b\u00fccher.example"])


@pytest.mark.parametrize(
    "url",
    [
        "https://huggingface.co/datasets/x",
        "http://HUGGINGFACE.CO",
        "https://huggingface.co.:443/x",
        "https://cdn-lfs.huggingface.co/x?y=1",
        "https://user:pass@github.com/x",
        "https://nice.example@github.com/x",
        "https://github.com\\@nice.example/x",
        "https:\\\\github.com\\x",
        " https://kaggle.com/x",
        "//kaggle.com/x",
        "https://www.kaggle.com#x",
        "https://\uff48\uff55\uff47\uff47\uff49\uff4e\uff47\uff46\uff41\uff43\uff45.co/x",
        "https://huggingface\u3002co/x",
        "https://xn--bcher-kva.example",
        "https://b\u00fccher.example/x",
        "https://hugg\ningface.co/x",
        "https://[::1/x",
    ],
)
def test_blocked(url: str) -> None:
    assert LIST.blocks(url)


@pytest.mark.parametrize(
    "url",
    ["", " ", "https://nothuggingface.co/x", "https://huggingface.co.example/x", "https://example.org/github.com", "x"]
    + ["https://github.co", "data:image/png;base64,AAAA", "https://[::1]/x", "https://caf\u00e9.example/"],
)
def test_let_through(url: str) -> None:
    assert not LIST.blocks(url)


def test_an_empty_list_blocks_nothing() -> None:
    assert not Blocklist().blocks("https://[::1/x") and Blocklist().hosts == ()


@pytest.mark.parametrize("entry", ["", "https://huggingface.co", "huggingface.co/datasets", "a b", ".", "..", "x..y"])
def test_what_is_no_host_name_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="^blocklist: "):
        Blocklist(["fine.example", entry])
