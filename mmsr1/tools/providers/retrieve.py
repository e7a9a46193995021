"""Servers that speak the /retrieve protocol of Search-R1 and veRL, and its counterpart for pictures, which is ours.

    POST /retrieve         {"queries": [str], "topk": n, "return_scores": true}
        -> {"result": [[{"document": {"id", "contents": "\\"Title\\"\\ntext", "url"}, "score"}, ...]]}
    POST /retrieve_image   {"images": [base64], "topk": n}
        -> {"result": [[{"document": {"id", "title", "url"}, "thumbnail": base64 or null, "score"}, ...]]}

`result` has one list for each query, best first; fewer than `topk`, or none, where nothing else fits. `id`, `url` and
`score` are optional, and without scores a text server may send the bare documents. A picture travels as the base64 of
its JPEG, PNG or WebP file, a thumbnail likewise. Errors are HTTP statuses: 400 of /retrieve_image for a picture that
cannot be searched for; 408, 425, 429, 5xx for what is worth another try; others for what no other query would change.

Our gateway (`mmsr1.tools.gateway`) says more, and is believed: beside `result` what each query costs and what was paid,
{"costs": [{"cost_usd", "paid_usd", "cached"}, ...]}, and of an error its cause, {"error": {"cause", "detail"}}.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, get_args

from PIL import Image

from mmsr1.tools.base import Answer, CallFailed, Cause
from mmsr1.tools.http import Reply, retry_after
from mmsr1.tools.pictures import BadPicture, decode, encode_png
from mmsr1.tools.providers.base import Access, Q, V, WebProvider
from mmsr1.tools.providers.fields import TITLE_CHARACTERS, document, encodable, entries, text, web_url
from mmsr1.tools.providers.pictures import about_picture
from mmsr1.tools.providers.threads import in_parser
from mmsr1.types import Picture, ToolItem

THUMBNAIL_BYTES = 2 * 2**20
THUMBNAIL_PIXELS = 4_000_000
DETAIL_CHARACTERS = 200


class _Retrieve(WebProvider[Q, V]):
    """What both searches share; `results` is the `topk` of the protocol."""

    path: ClassVar[str]
    causes: ClassVar[Mapping[int, Cause]] = {}

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "topk": self.results}

    async def _ask(self, body: Mapping[str, Any]) -> Answer[str]:
        url = self._url if self._url.endswith(self.path) else f"{self._url}{self.path}"
        reply = await self._http.request("POST", url, headers=self._bearer(), json={**body, "topk": self.results})
        _raise_told(reply)
        # A server that does not understand the request speaks another protocol, which no other query would change.
        answer = self._answer(reply, {422: "refused", **self.causes})
        told = answer.value or ""
        costs = await in_parser(lambda: _costs(told)) if self.slow else _costs(told)
        return answer if costs is None else replace(answer, cost_usd=costs[0], paid_usd=costs[1])

    def _only_list(self, raw: str) -> object:
        """The hits of the one query that was asked."""
        result = document(raw).get("result")
        if not isinstance(result, list) or len(result) != 1:
            raise CallFailed("broken", "the answer has not one list of hits for one query")
        return result[0]


class RetrieveText(_Retrieve[str, tuple[ToolItem, ...]]):
    """Passages for a query."""

    name: ClassVar[str] = "retrieve_text"
    version: ClassVar[int] = 2
    path: ClassVar[str] = "/retrieve"

    async def fetch(self, query: str) -> Answer[str]:
        line = " ".join(encodable(query).split())
        if not line:
            raise CallFailed("invalid", "the query is empty")
        return await self._ask({"queries": [line], "return_scores": True})

    def parse(self, raw: str, query: str) -> tuple[ToolItem, ...]:
        return entries(self._only_list(raw), "result", _passage)[: self.results]


class RetrieveImage(_Retrieve[Picture, tuple[ToolItem, ...]]):
    """Titled pictures like the one that is asked about; longer edges of thumbnails are cut to `thumbnail_edge`."""

    name: ClassVar[str] = "retrieve_image"
    path: ClassVar[str] = "/retrieve_image"
    causes: ClassVar[Mapping[int, Cause]] = {400: "invalid"}  # this picture cannot be searched for
    slow: ClassVar[bool] = True
    max_bytes: ClassVar[int] = 32 * 2**20

    def __init__(self, access: Access, thumbnail_edge: int = 280) -> None:
        super().__init__(access)
        self._edge = thumbnail_edge

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**super().settings, "thumbnail_edge": self._edge}

    async def fetch(self, query: Picture) -> Answer[str]:
        try:
            return await self._ask({"images": [base64.b64encode(query.data).decode("ascii")]})
        except CallFailed as error:
            raise about_picture(error) from None

    def parse(self, raw: str, query: Picture) -> tuple[ToolItem, ...]:
        return entries(self._only_list(raw), "result", self._hit)[: self.results]

    def _hit(self, entry: Mapping[str, Any]) -> ToolItem | None:
        about = _document(entry)
        if about is None:
            return None
        shown = entry.get("thumbnail")
        thumbnail = None if shown is None else self._thumbnail(shown)
        return ToolItem(text(about.get("title"), TITLE_CHARACTERS), "", web_url(about.get("url")), thumbnail)

    def _thumbnail(self, encoded: object) -> Picture:
        """Decoded, bounded, resized. Raises CallFailed("broken"): a server that sends half a picture sends nothing."""
        try:
            if not isinstance(encoded, str) or len(encoded) > 2 * THUMBNAIL_BYTES:
                raise BadPicture("is no base64 of a small file")
            image = decode(Picture(base64.b64decode(encoded, validate=True)), THUMBNAIL_PIXELS, THUMBNAIL_BYTES)
        except (BadPicture, binascii.Error, ValueError) as error:
            raise CallFailed("broken", f"a thumbnail {error}") from None
        image.thumbnail((self._edge, self._edge), Image.Resampling.BOX)
        return encode_png(image)


def _document(entry: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The document of a hit, which is the entry itself where no scores were sent."""
    found = entry.get("document", entry)
    return found if isinstance(found, dict) else None


def _passage(entry: Mapping[str, Any]) -> ToolItem | None:
    """`contents` begin with a line that is the title, mostly in quotes; `title` and `text` say it without loss."""
    about = _document(entry)
    if about is not None and isinstance(about.get("title"), str) and isinstance(about.get("text"), str):
        title, body = text(about["title"], TITLE_CHARACTERS), text(about["text"])
        return ToolItem(title, body, web_url(about.get("url"))) if title or body else None
    contents = None if about is None else text(about.get("contents", about.get("text")))
    if about is None or not contents:
        return None
    named = text(about.get("title"), TITLE_CHARACTERS)
    first, _, rest = contents.partition("\n")
    title, body = (named, contents) if named or not rest.strip() else (first.strip().strip('"'), rest.strip())
    return ToolItem(title[:TITLE_CHARACTERS], body, web_url(about.get("url")))


def _raise_told(reply: Reply) -> None:
    """Raises CallFailed with the cause that an error names, if it names one that is known."""
    if 200 <= reply.status < 300 or len(reply.body) > 2**16:
        return
    try:
        error = json.loads(reply.text)["error"]
        cause, detail, paid_usd = error["cause"], error.get("detail"), error.get("paid_usd")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    for known in get_args(Cause):
        if cause == known:
            said = " ".join(encodable(detail).split())[:DETAIL_CHARACTERS] if isinstance(detail, str) else ""
            told = f"HTTP {reply.status}" + (f": {said}" if said else "")
            raise CallFailed(known, told, retry_after(reply), _usd(paid_usd) or 0.0)


def _costs(raw: str) -> tuple[float, float] | None:
    """What the query costs and what was paid for it, if the server says so; None if it does not, or not readably."""
    try:
        costs = json.loads(raw)["costs"]
        cost_usd, paid_usd = (_usd(costs[0][name]) for name in ("cost_usd", "paid_usd"))
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return None
    return None if cost_usd is None or paid_usd is None or len(costs) != 1 else (cost_usd, paid_usd)


def _usd(value: object) -> float | None:
    """An amount of money; None for what is none."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
