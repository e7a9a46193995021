"""Issue D, line 4: text from the web stays text, for the tiny tokenizer and for Qwen's own."""

from __future__ import annotations

import sys

from acceptance.lines import Check, at_least, at_most, command, holds
from mmsr1.data.emblem.tokenizer import build_tokenizer
from mmsr1.data.emblem.warmup import warmup_sentences
from tests.hostile_text import HOSTILE, Attack, changed
from tests.qwen_tokenizer import qwen_tokenizer

SUITES = ("tests/rollout/test_hostile_text.py", "tests/tools/test_sanitize.py")


def hostile_text() -> list[Check]:
    """Every hostile text in every untrusted place, whole and split across fields; then the property tests."""
    checks = [
        at_least("4", "hostile texts", len(HOSTILE), 400),
        at_most("4", "hostile texts that the sanitiser leaves as they are", sum(not changed(t) for t in HOSTILE), 0),
    ]
    for name, tokenizer in (("tiny", build_tokenizer(warmup_sentences())), ("Qwen2.5", qwen_tokenizer())):
        for cut in (0.25, 0.5, 0.75):
            attack = Attack(tokenizer, cut)
            forged = sum(bool(attack.findings(text)) for text in HOSTILE)
            checks.append(at_most("4", f"{name}, split at {cut:g}: texts that forge or move anything", forged, 0))
    tests, _ = command(sys.executable, "-m", "pytest", "-q", *SUITES, check=False)
    passed = not tests.returncode and " passed" in tests.stdout
    return [*checks, holds("4", "property tests (hypothesis)", passed)]
