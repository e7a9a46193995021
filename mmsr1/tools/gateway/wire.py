"""What travels: the /retrieve protocol of Search-R1 and veRL, its counterpart for pictures, and how a failure looks.

    200   {"result": [[hit, ...] for each query], "costs": [{"cost_usd", "paid_usd", "cached"} for each query]}
    else  {"error": {"cause", "detail", "paid_usd"}}

`cause` is one of `tools.base.Cause`, `paid_usd` what a request that failed has cost all the same. Hits are in rank
order; a tool gives an order and no figure, so `score` is 1/rank. Texts are as they were found: whoever shows them to a
model neutralises them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, Field, model_validator
from starlette.responses import Response

from mmsr1.tools.base import AGAIN, Cause
from mmsr1.tools.providers.fields import encodable
from mmsr1.types import ToolItem, ToolResult

RETRY_S = 1  # after a failure that may pass
LONGEST_DETAIL = 300
_CAUSES = re.compile(rf"(?:^|: )({'|'.join(get_args(Cause))}): ")


class TextRequest(BaseModel):
    """`query` is what SkyRL sends for a single one. Without `topk`, or with 0, all that is configured comes back."""

    queries: list[str] | None = None
    query: str | None = None
    topk: int | None = Field(None, ge=0)
    return_scores: bool = False

    @model_validator(mode="after")
    def _one_of_both(self) -> TextRequest:
        if (self.queries is None) == (self.query is None):
            raise ValueError("give queries, a list of texts")
        return self

    @property
    def asked(self) -> list[str]:
        """The queries, without lone surrogates, which no back end could be sent."""
        return [encodable(query) for query in ([self.query or ""] if self.queries is None else self.queries)]


class ImageRequest(BaseModel):
    """`images` are the base64 of JPEG, PNG or WebP files."""

    images: list[str]
    topk: int | None = Field(None, ge=0)


class Refused(Exception):
    """A request that is answered with an error: `detail` is one line without queries and secrets."""

    def __init__(
        self,
        status: int,
        cause: Cause,
        detail: str,
        retry_s: int | None = None,
        paid_usd: float = 0.0,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.cause, self.detail = status, cause, detail
        self.retry_s, self.paid_usd, self.close = retry_s, paid_usd, close

    def response(self) -> Response:
        error: dict[str, Any] = {"cause": self.cause, "detail": self.detail[:LONGEST_DETAIL]}
        if self.paid_usd:
            error["paid_usd"] = self.paid_usd
        headers = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        headers |= {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}
        headers |= {"Connection": "close"} if self.close else {}
        return as_json({"error": error}, self.status, headers)


def as_json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """ASCII alone: a lone surrogate in a page must not become a failure."""
    body = json.dumps(content, separators=(",", ":")).encode("ascii")
    return Response(body, status, headers, "application/json")


def text_answer(results: Sequence[ToolResult], asked: TextRequest) -> Response:
    """Passages for each query, with scores or as bare documents. Raises Refused if one of them failed."""
    documents = [[_passage(item) for item in result.items[: asked.topk or None]] for result in _answers(results)]
    scored = [[{"document": d, "score": 1 / rank} for rank, d in enumerate(found, 1)] for found in documents]
    return as_json({"result": scored if asked.return_scores else documents, "costs": _costs(results)})


def image_answer(results: Sequence[ToolResult], asked: ImageRequest) -> Response:
    """Titled pictures for each query. Raises Refused if one of them failed."""
    found = [
        [_picture_hit(item, rank) for rank, item in enumerate(result.items[: asked.topk or None], 1)]
        for result in _answers(results)
    ]
    return as_json({"result": found, "costs": _costs(results)})


def refusal(result: ToolResult, place: str = "", paid_usd: float = 0.0) -> Refused | None:
    """What a failed search is answered with; None for one that found something, or nothing."""
    if result.status in ("ok", "empty"):
        return None
    detail = place + " ".join(result.detail.split())
    if result.status == "malformed_call":
        return Refused(400, "invalid", detail, paid_usd=paid_usd)
    if result.status == "over_budget":
        return Refused(402, "exhausted", detail, paid_usd=paid_usd)
    cause = cause_in(result.detail)
    return Refused(503, cause, detail, RETRY_S if cause in AGAIN else None, paid_usd)


def cause_in(detail: str) -> Cause:
    """The cause that the detail of a failure names (`serpapi_search: exhausted: ...`), transient if it names none."""
    named = _CAUSES.search(detail)
    return next((cause for cause in get_args(Cause) if named is not None and named[1] == cause), "transient")


def _answers(results: Sequence[ToolResult]) -> Sequence[ToolResult]:
    """The results, all of them answers: of a failure nothing must look as if nothing was found."""
    paid_usd = math.fsum(result.paid_usd for result in results)
    for number, result in enumerate(results, 1):
        place = f"query {number} of {len(results)}: " if len(results) > 1 else ""
        refused = refusal(result, place, paid_usd)
        if refused is not None:
            raise refused
    return results


def _costs(results: Sequence[ToolResult]) -> list[dict[str, Any]]:
    return [{"cost_usd": r.cost_usd, "paid_usd": r.paid_usd, "cached": r.cached} for r in results]


def _passage(item: ToolItem) -> dict[str, str]:
    """`contents` is what Search-R1 reads, its first line the title; `title` and `text` are the same without loss."""
    contents = f'"{" ".join(item.title.split())}"\n{item.text}'
    return {"id": _id(item, contents), "contents": contents, "title": item.title, "text": item.text, "url": item.url}


def _picture_hit(item: ToolItem, rank: int) -> dict[str, Any]:
    document = {"id": _id(item, item.title), "title": item.title, "url": item.url}
    shown = None if item.thumbnail is None else base64.b64encode(item.thumbnail.data).decode("ascii")
    return {"document": document, "thumbnail": shown, "score": 1 / rank}


def _id(item: ToolItem, contents: str) -> str:
    """The address, or a digest of what there is: tools name their hits no further."""
    return item.url or hashlib.sha256(contents.encode("utf-8", "ignore")).hexdigest()[:16]
