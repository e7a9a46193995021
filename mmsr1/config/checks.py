"""What a value of the configuration must be; a mistake is told in one line: key, value received, remedy."""

from __future__ import annotations

HUB_ID = r"[\w-][\w.-]*/[\w.-]+"  # of a model on the Hugging Face hub


class ConfigError(ValueError):
    """A user's mistake, in one line: key, value received, remedy."""


def check(condition: bool, key: str, value: object, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{key}={value}: {remedy}")


def one_of(key: str, value: str, *allowed: str) -> None:
    check(value in allowed, key, value, f"must be one of {', '.join(allowed)}")


def at_least(least: int, group: str, node: object, *names: str) -> None:
    for name in names:
        check(getattr(node, name) >= least, f"{group}.{name}", getattr(node, name), f"must be {least} or more")


def positive(group: str, node: object, *names: str) -> None:
    for name in names:
        check(getattr(node, name) > 0, f"{group}.{name}", getattr(node, name), "must be positive")
