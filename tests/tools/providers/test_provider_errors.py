"""Errors that a service has for itself: quota against throughput, its own codes, warnings with HTTP 200."""

from typing import Any

import pytest
from adapters import ARTICLE, BY_NAME, CHAT, QUERY, SHOWN
from fake_api import FakeApi, Say
from stack import Shelf, ask

from mmsr1.tools.web_types import Page, SummaryQuery
from mmsr1.types import Picture

NOT_FOUND = {"error": "Google Lens hasn't returned any results for this query."}
BRAVE_SECOND = {"X-RateLimit-Limit": "1, 2000", "X-RateLimit-Remaining": "0, 1500"}
BRAVE_MONTH = {"X-RateLimit-Limit": "1, 2000", "X-RateLimit-Remaining": "0, 0"}
BRAVE_NO_MONTH = {"X-RateLimit-Limit": "50, 0", "X-RateLimit-Remaining": "0, 0"}


def page(content: str = ARTICLE, title: str = "The tower", **more: Any) -> dict[str, Any]:
    return {"code": 200, "status": 20000, "data": {"title": title, "content": content, **more}}


def jina(status: int) -> dict[str, Any]:
    return {"data": None, "code": status // 100, "status": status, "name": "Error", "message": "no"}


def invalid_field(*names: str) -> Say:
    """How Brave refuses values of parameters."""
    errors = [{"type": "enum", "loc": ["query", name], "msg": "Input should be another"} for name in names]
    about = {"code": "VALIDATION", "detail": "Unable to validate request parameter(s)", "meta": {"errors": errors}}
    return Say({"type": "ErrorResponse", "error": {"status": 422, **about}}, 422)


SEARCHES = ("serpapi_search", "serper_search", "serper_lens", "brave", "tavily", "searxng", "retrieve_text")
ERRORS = [
    ("serpapi_search", Say({"error": "Unsupported `xx` country."}, 400), "refused"),
    ("serpapi_search", Say({"error": "Missing query `q` parameter."}, 400), "invalid"),
    ("serpapi_search", Say(b"", 414), "invalid"),
    ("serpapi_search", Say({"error": "Your account has run out of searches."}), "exhausted"),
    ("serpapi_search", Say({"error": "Something else."}), "broken"),
    ("serpapi_search", Say({"search_metadata": {"status": "Processing"}}), "broken"),
    ("serpapi_search", Say({"error": ["hasn't returned any results"]}), "broken"),
    ("serpapi_lens", Say({"error": "Unsupported image."}, 400), "blocked"),
    ("serpapi_lens", Say({"error": "Unsupported `xx` country."}, 400), "refused"),
    ("serpapi_lens", Say({"error": "expired"}, 410), "broken"),
    ("serper_search", Say({"message": "Not enough credits", "statusCode": 400}, 400), "exhausted"),
    ("serper_search", Say({"message": "Missing query parameter"}, 400), "invalid"),
    ("serper_search", Say({"message": "Query not allowed on a free account"}, 400), "refused"),
    ("serper_lens", Say({"message": "Query not allowed on a free account"}, 400), "refused"),
    ("serper_lens", Say({"message": "Not enough credits"}, 400), "exhausted"),
    ("serper_lens", Say({"message": "Invalid image URL"}, 400), "blocked"),
    ("brave", Say({"error": {"code": "SUBSCRIPTION_TOKEN_INVALID", "status": 422}}, 422), "refused"),
    ("brave", Say({"error": {"code": "VALIDATION"}}, 422), "refused"),
    ("brave", invalid_field("q"), "invalid"),
    ("brave", invalid_field("country"), "refused"),
    ("brave", invalid_field("q", "country"), "refused"),
    ("brave", Say({"error": {"code": "RATE_LIMITED"}}, 429, BRAVE_SECOND), "throttled"),
    ("brave", Say({"error": {"code": "RATE_LIMITED"}}, 429, BRAVE_NO_MONTH), "throttled"),
    ("brave", Say({"error": {"code": "RATE_LIMITED"}}, 429, {"X-RateLimit-Remaining": "soon"}), "throttled"),
    ("brave", Say({"error": {"code": "RATE_LIMITED"}}, 429, BRAVE_MONTH), "exhausted"),
    ("tavily", Say({"detail": {"error": "plan limit"}}, 432), "exhausted"),
    ("tavily", Say({"detail": {"error": "pay-as-you-go limit"}}, 433), "exhausted"),
    ("tavily", Say({"detail": {"error": "query too long"}}, 400), "invalid"),
    ("tavily", Say({"detail": {"error": "Query is too long. Max query length is 400 characters."}}, 400), "invalid"),
    ("tavily", Say({"detail": {"error": "Invalid search depth. Must be 'basic' or 'advanced'."}}, 400), "refused"),
    ("tavily", Say({"detail": [{"loc": ["body", "search_depth"], "msg": "the query is too long"}]}, 422), "refused"),
    ("tavily", Say({"detail": [{"loc": []}, [7, None]]}, 422), "refused"),
    ("tavily", Say(b"[" * 100_000, 400), "refused"),
    *((name, Say("no", status), "refused") for name in SEARCHES for status in (400, 407, 409, 451)),
    ("jina_reader", Say("no", 407), "refused"),
    ("openai_summarizer", Say("no", 407), "refused"),
    ("searxng", Say("Forbidden", 403), "refused"),
    ("searxng", Say({"results": [], "unresponsive_engines": [["google", "CAPTCHA"]]}), "broken"),
    ("jina_reader", Say(jina(40203), 402), "exhausted"),
    ("jina_reader", Say(jina(42903), 429), "throttled"),
    ("jina_reader", Say(jina(45101), 451), "blocked"),
    ("jina_reader", Say(jina(45102), 451), "blocked"),
    ("jina_reader", Say(jina(50301), 503), "transient"),
    ("jina_reader", Say(jina(40203)), "exhausted"),
    ("jina_reader", Say(jina(45102)), "blocked"),
    ("jina_reader", Say(jina(40102), 401), "refused"),
    ("jina_reader", Say(jina(42206), 422), "blocked"),
    ("jina_reader", Say(page(warning="Target URL returned error 403: Forbidden")), "blocked"),
    ("jina_reader", Say(page(f"Warning: Target URL returned error 503: Busy\n\n{ARTICLE}")), "blocked"),
    ("jina_reader", Say(page(warning="This page maybe requiring CAPTCHA, please make sure ...")), "blocked"),
    ("jina_reader", Say(page("Checking your browser", "Just a moment...")), "blocked"),
    ("jina_reader", Say(page("  ")), "blocked"),
    ("openai_summarizer", Say({"error": {"code": "insufficient_quota"}}, 429), "exhausted"),
    ("openai_summarizer", Say({"message": "This model's maximum context length is 32768 tokens"}, 400), "blocked"),
    ("openai_summarizer", Say({"detail": "unknown field"}, 422), "refused"),
    ("openai_summarizer", Say({"choices": [{"message": {"content": None}}]}), "broken"),
    ("openai_summarizer", Say({"choices": [{"message": {"content": "<think>and so on"}}]}), "broken"),
    ("openai_summarizer", Say({"choices": []}), "broken"),
    ("retrieve_text", Say({"detail": "field required"}, 422), "refused"),
    ("retrieve_text", Say({"result": [[], []]}), "broken"),
    ("retrieve_text", Say({"result": []}), "broken"),
    ("retrieve_image", Say({"detail": "what is this"}, 400), "blocked"),
    ("retrieve_image", Say({"result": [[{**SHOWN, "thumbnail": "no base64!"}]]}), "broken"),
    ("retrieve_image", Say({"result": [[{**SHOWN, "thumbnail": SHOWN["thumbnail"][:40]}]]}), "broken"),
    ("retrieve_image", Say({"result": [[{**SHOWN, "thumbnail": 7}]]}), "broken"),
]


@pytest.mark.parametrize(("name", "said", "cause"), ERRORS)
def test_an_error_of_its_own_has_its_cause(name: str, said: Say, cause: str, api: FakeApi, shelf: Shelf) -> None:
    kept = shelf.rows
    api.reset(everything=said)
    if not (name == "serpapi_lens" and said.status == 400 and "image" in str(said.body)):  # its upload is refused
        api.says |= BY_NAME[name].also
    outcome = ask(BY_NAME[name], api, shelf)
    assert outcome.status == ("malformed_call" if cause == "invalid" else "infrastructure_error")
    assert outcome.detail.startswith(f"{cause}: "), outcome.detail
    assert outcome.value is None
    assert shelf.rows == kept


@pytest.mark.parametrize("name", ["serpapi_search", "serpapi_lens"])
@pytest.mark.parametrize(
    ("account", "cause"),
    [
        (Say({"total_searches_left": 0, "this_hour_searches": 3}), "exhausted"),
        (Say({"total_searches_left": 40, "this_hour_searches": 1000}), "throttled"),
        (Say({"total_searches_left": "0"}), "throttled"),
        (Say(b"", 500), "throttled"),
        (Say(b"{"), "throttled"),
    ],
)
def test_serpapi_s_account_tells_what_a_429_means(
    name: str, account: Say, cause: str, api: FakeApi, shelf: Shelf
) -> None:
    api.reset(everything=Say({"error": "limit"}, 429, {"Retry-After": "60"}))
    api.says |= {"/account.json": account, **BY_NAME[name].also}
    outcome = ask(BY_NAME[name], api, shelf, attempts=3)
    assert outcome.status == "infrastructure_error" and outcome.detail.startswith(f"{cause}: ")
    assert api.paths.count("/search.json") == 1  # an hour's limit is not waited for, a spent account not asked again


def test_an_upload_without_an_id_and_one_that_is_throttled_are_failures(api: FakeApi, shelf: Shelf) -> None:
    lens = BY_NAME["serpapi_lens"]
    for uploaded, cause in ((Say({}), "broken"), (Say({"image_id": 7}), "broken"), (Say(b"", 429), "throttled")):
        api.reset(everything=Say(lens.good))
        api.says |= {"/image": uploaded, "/account.json": Say({"total_searches_left": 9})}
        assert ask(lens, api, shelf).detail.startswith(f"{cause}: ")
        assert "/search.json" not in api.paths


def test_bytes_that_are_no_picture_are_not_uploaded(api: FakeApi, shelf: Shelf) -> None:
    outcome = ask(BY_NAME["serpapi_lens"], api, shelf, query=Picture(b"GIF89a"))
    assert (outcome.status, api.asked) == ("malformed_call", [])


@pytest.mark.parametrize("name", ["serpapi_search", "serper_search", "brave", "tavily", "searxng", "retrieve_text"])
def test_an_empty_query_is_the_fault_of_whoever_asks(name: str, api: FakeApi, shelf: Shelf) -> None:
    outcome = ask(BY_NAME[name], api, shelf, query=" \n\ud800 ")
    assert (outcome.status, api.asked) == ("malformed_call", [])


@pytest.mark.parametrize(
    "address", ["", "ftp://a.example/x", "javascript:alert(1)", "http://", "http://a b/", "a\ud800"]
)
@pytest.mark.parametrize("name", ["jina_reader", "local_reader"])
def test_what_is_no_web_address_is_not_read(name: str, address: str, api: FakeApi, shelf: Shelf) -> None:
    outcome = ask(BY_NAME[name], api, shelf, query=address)
    assert outcome.status == "infrastructure_error" and outcome.detail.startswith("blocked: ")
    assert api.asked == []


def test_a_page_that_is_gone_is_an_answer_and_is_paid_by_its_tokens(api: FakeApi, shelf: Shelf) -> None:
    gone = page("Not found", warning="Target URL returned error 404: Not Found", usage={"tokens": 1_000})
    api.reset(everything=Say(gone))
    outcome = ask(BY_NAME["jina_reader"], api, shelf)
    assert (outcome.status, outcome.value) == ("empty", None)
    assert outcome.cost_usd == pytest.approx(1_000 * 0.05 / 1e6)


def test_a_warning_that_says_nothing_of_a_failure_does_no_harm(api: FakeApi, shelf: Shelf) -> None:
    api.reset(everything=Say(page(warning="This page contains iframe that are currently hidden.")))
    assert ask(BY_NAME["jina_reader"], api, shelf).status == "ok"
    article = f"{ARTICLE}In 2003 the word captcha was coined: verify you are human.\n" * 10
    api.reset(everything=Say(page(article)))
    assert ask(BY_NAME["jina_reader"], api, shelf, query="https://a.example/captcha").value.text == article.strip()


def test_a_page_that_the_model_cannot_read_whole_is_halved(api: FakeApi, shelf: Shelf) -> None:
    too_long = Say({"message": "maximum context length"}, 400)
    api.reset(everything=[too_long, too_long, Say(CHAT)])
    query = SummaryQuery(QUERY, Page("https://a.example", "The tower", "\u5854" * 40_000))
    assert ask(BY_NAME["openai_summarizer"], api, shelf, query=query).status == "ok"
    sent = [asked.json["messages"][1]["content"].count("\u5854") for asked in api.asked]
    assert sent == [30_000, 15_000, 7_500]
