"""A key is looked up when it is used and shows nowhere else."""

import copy
import pickle

import pytest

from mmsr1.tools.base import CallFailed
from mmsr1.tools.secrets import Secret, redact

CANARY = 'canary/5ecret+"key"'


@pytest.fixture
def secret(monkeypatch):
    monkeypatch.setenv("TEST_KEY", f"  {CANARY}\n")
    return Secret("TEST_KEY")


def test_the_value_is_read_at_use_and_shown_nowhere(secret, monkeypatch):
    assert secret.value == CANARY and not secret.missing
    shown = f"{secret} {secret!r} {vars(secret)} {pickle.dumps(secret)!r} {copy.deepcopy(secret)}"
    assert "TEST_KEY" in shown and "canary" not in shown
    monkeypatch.setenv("TEST_KEY", "another-key")
    assert secret.value == "another-key"


@pytest.mark.parametrize("value", [None, "", "  \n"])
def test_a_missing_key_is_a_refusal_that_names_the_variable(monkeypatch, value):
    monkeypatch.delenv("TEST_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("TEST_KEY", value)
    assert Secret("TEST_KEY").missing
    with pytest.raises(CallFailed, match="TEST_KEY is not set") as caught:
        _ = Secret("TEST_KEY").value
    assert caught.value.cause == "refused"


@pytest.mark.parametrize("value", ["canary key", "canary\tkey", "canäry-key"])
def test_a_key_that_no_header_can_carry_is_a_refusal_without_the_key(monkeypatch, value):
    monkeypatch.setenv("TEST_KEY", value)
    with pytest.raises(CallFailed, match="TEST_KEY") as caught:
        _ = Secret("TEST_KEY").value
    assert caught.value.cause == "refused" and "can" not in caught.value.detail.replace("cannot", "")


@pytest.mark.parametrize(
    "spelling",
    [
        CANARY,
        "canary%2F5ecret%2B%22key%22",
        "canary/5ecret%2B%22key%22",
        'canary/5ecret+\\"key\\"',
        'canary\\/5ecret+\\"key\\"',
    ],
)
def test_redaction_knows_all_spellings_in_text_and_bytes(secret, spelling):
    assert redact(f"<{spelling}>", [secret]) == "<***>"
    assert redact(f"<{spelling}>".encode(), [secret]) == b"<***>"


def test_short_and_missing_keys_redact_nothing(monkeypatch):
    monkeypatch.setenv("TEST_KEY", "EMPTY")
    monkeypatch.delenv("OTHER_KEY", raising=False)
    assert redact("EMPTY page", [Secret("TEST_KEY"), Secret("OTHER_KEY")]) == "EMPTY page"
