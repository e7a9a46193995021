"""Qdrant: the query's vector is made as those of the index were, and close candidates are looked at again."""

import asyncio
import base64

import numpy as np
import pytest
from adapters import BY_NAME, CANARY, PHOTO, POINT, network, photo
from fake_api import FakeApi, Say
from stack import Shelf, ask

from mmsr1.tools.base import CallFailed
from mmsr1.tools.image_search import fine
from mmsr1.tools.image_search.descriptor import describe
from mmsr1.tools.pictures import decode
from mmsr1.tools.providers import image_provider, text_provider
from mmsr1.types import Picture, ToolItem

FOUND = BY_NAME["qdrant_image"]
TEXT = {"result": {"points": [{"id": 1, "score": 1.0, "payload": {"id": "a", "title": "T", "text": "x", "url": ""}}]}}


def test_the_vector_is_the_descriptors(api: FakeApi, shelf: Shelf, monkeypatch) -> None:
    monkeypatch.setenv("QDRANT_KEY", CANARY)
    api.reset(everything=Say(FOUND.good))
    assert ask(FOUND, api, shelf, key_env="QDRANT_KEY", options={"collection": "flags"}).status == "ok"
    (asked,) = api.asked
    assert (asked.method, asked.path) == ("POST", "/collections/flags/points/query")
    assert asked.headers["api-key"] == CANARY
    assert asked.json["limit"] == fine.CANDIDATES and asked.json["with_payload"] is True
    np.testing.assert_allclose(asked.json["query"], describe(np.asarray(decode(PHOTO))), atol=1e-6)


def test_candidates_are_looked_at_more_closely(api: FakeApi, shelf: Shelf) -> None:
    def point(name: str, picture: Picture) -> dict:
        packed = base64.b64encode(fine.shrink(decode(picture)).tobytes()).decode()
        return {"id": 1, "score": 0.5, "payload": {"id": name, "title": name, "url": "", "fine": packed}}

    points = [point("noise", photo(noise=True)), point("same", PHOTO)]
    api.reset(everything=Say({"result": {"points": points}}))
    assert ask(FOUND, api, shelf, results=1).value == (ToolItem("same"),)
    points[0]["payload"]["fine"] = "not base64!"  # one that lacks it: the server's order stands
    api.reset(everything=Say({"result": {"points": points}}))
    assert [item.title for item in ask(FOUND, api, shelf, results=2, query=photo(65)).value or ()] == ["noise", "same"]


@pytest.mark.parametrize(
    ("said", "detail"),
    [
        (
            Say({"status": {"error": "Wrong input: Vector dimension error: expected dim: 16, got 360"}}, 400),
            "refused: ",
        ),
        (Say({"status": {"error": "Not found: Collection `mmsr1` doesn't exist!"}}, 404), "refused: "),
        (Say({"result": None, "status": "ok"}), "broken: "),
        (Say({"result": {"points": [{**POINT, "payload": None}]}}), "broken: "),
    ],
)
def test_errors_are_typed(api: FakeApi, shelf: Shelf, said: Say, detail: str) -> None:
    api.reset(everything=said)
    outcome = ask(FOUND, api, shelf)
    assert outcome.status == "infrastructure_error" and outcome.detail.startswith(detail)


def test_a_picture_that_is_none_is_not_sent(api: FakeApi, shelf: Shelf) -> None:
    api.reset(everything=Say(FOUND.good))
    outcome = ask(FOUND, api, shelf, query=Picture(b"GIF89a"))
    assert outcome.status == "infrastructure_error" and outcome.detail.startswith("blocked: the picture")
    assert api.asked == []


def test_passages_need_the_model_of_their_index(api: FakeApi, monkeypatch) -> None:
    class Stub:
        def __init__(self, encoder) -> None:
            self.encoder = encoder

        def __call__(self, texts, query):
            assert query and self.encoder.query_prefix == "q: "
            return np.array([[len(texts[0]), 0.5]])

    monkeypatch.setattr("mmsr1.tools.providers.qdrant.TextEncoder", Stub)
    api.reset(everything=Say(TEXT))

    async def asked(options: dict):
        provider = text_provider("qdrant", url=api.url, results=4, options=options, **network())
        try:
            answer = await provider.fetch(" a\ntower ")
            return provider.parse(answer.value or "", "a tower")
        finally:
            await provider.aclose()

    assert asyncio.run(asked({"model": "some/model", "query_prefix": "q: "})) == (ToolItem("T", "x"),)
    assert (api.asked[0].json["query"], api.asked[0].json["limit"]) == ([7.0, 0.5], 4)
    with pytest.raises(CallFailed, match=r"refused: options\.model is not set"):
        asyncio.run(asked({}))


@pytest.mark.parametrize("make", [text_provider, image_provider])
def test_a_model_that_cannot_be_loaded_is_told_before_any_search(make, tmp_path) -> None:
    with pytest.raises(ValueError, match="no encoder with safetensors weights") as told:
        make("qdrant", url="http://localhost:1", options={"model": str(tmp_path)})
    assert "\n" not in str(told.value)
