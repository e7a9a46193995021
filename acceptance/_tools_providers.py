"""Issue D, line 1: what every adapter makes of the answers and errors that its service documents."""

from __future__ import annotations

import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from acceptance.lines import OUTPUT, Check, command, holds

TESTS = "tests/tools/providers"
FAULT = r"test_a_fault_is_typed_and_never_kept\[.*-({})\]"
# What the issue names, and the cases that are about it.
NAMED = {
    "the documented answers": r"test_the_documented_answer",
    "quota": FAULT.format("payment_required") + r"|test_an_error_of_its_own.*-exhausted\]",
    "throughput 429": FAULT.format("throttled"),
    "exhausted 429": r"test_serpapi_s_account_tells",
    "no results, HTTP 200": r"test_finding_nothing",
    "CAPTCHA page": FAULT.format("captcha_page"),
    "5xx": FAULT.format("server_error|unavailable"),
    "slow drip": FAULT.format("slow_drip"),
    "truncated JSON": FAULT.format("truncated_json|cut_connection|empty_body"),
    "wrong types": r"test_hits_of_wrong_types|test_a_parser_returns_its_type|" + FAULT.format("list|null|other_object"),
    "gzip bomb": FAULT.format("gzip_bomb|not_gzip|unknown_compression"),
    "redirect to a private address": FAULT.format("redirect") + r"|test_the_local_reader_follows",
    "a service's own errors": r"test_an_error_of_its_own",
    "what is sent": r"test_provider_requests",
    "all cases": r".",
}


def contracts() -> list[Check]:
    """Each kind of answer through provider, guard and cache against a local server: typed, and nothing wrong kept."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    report = OUTPUT / "providers.xml"
    report.unlink(missing_ok=True)
    command(sys.executable, "-m", "pytest", "-q", TESTS, f"--junitxml={report}", check=False)
    cases = [
        (f"{case.get('classname')}::{case.get('name')}", case.find("failure") is None and case.find("error") is None)
        for case in ElementTree.parse(report).iter("testcase")
        if case.find("skipped") is None
    ]
    return [
        _check(what, [passed for name, passed in cases if re.search(cases_of, name)])
        for what, cases_of in NAMED.items()
    ]


def _check(what: str, passed: Sequence[bool]) -> Check:
    return holds("1", f"providers: {what}", bool(passed) and all(passed), f"{sum(passed)} of {len(passed)} cases")
