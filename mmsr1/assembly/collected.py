"""Several evaluations on disk, as one table or picture of them reads them: what tells them apart that are called the
same, and why one has no figures."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from omegaconf import OmegaConf

from mmsr1.assembly.settings import decides_nothing, flat

T = TypeVar("T")

# Told wherever they differ; of all other settings only what is needed to tell two evaluations apart.
_FIRST = re.compile(
    r"seed|limit|repeats|rollout\.temperature|tools\.\w+\.provider|tools\.(text_index|image_index|bundle)"
    r"|judge\.(model|prompt)"
)
# What decides none of the figures that are compared, or is told otherwise: `whose` has the policy, the summary the
# judge.
_ASIDE = ("name", "resume", "policy", "model.path", "judge.", "algorithm", "trainer", "logger", "counterfactual")
_ASIDE += ("concurrent", "benchmark.path", "benchmark.lock", "benchmark.temperature", "data.root", "data.cache_dir")
_ASIDE += ("tools.cache_dir", "tools.budget", "rollout.vllm", "rollout.server", "rollout.transformers")


@dataclass(frozen=True)
class Variant:
    """One evaluation: `name` is what its policy is called, `whose` that policy in full; `asked` is what it was asked,
    and how. Those that agree in `name` and `asked` would be taken for each other but for their `settings`."""

    name: str
    whose: str
    asked: tuple[str, ...]
    settings: Mapping[str, str]


def configuration(run: Path) -> dict[str, Any]:
    """The values of its config.yaml by their full keys; none without the file. Raises yaml.YAMLError, and ValueError
    for what is no configuration."""
    file = run / "config.yaml"
    return flat(OmegaConf.create(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def variant_of(summary: Mapping[str, Any], config: Mapping[str, Any], asked: tuple[str, ...]) -> Variant:
    """Of an evaluation with this summary.json and `configuration`."""
    settings = {key: _said(value) for key, value in config.items() if not decides_nothing(key, _ASIDE)}
    judge = summary.get("judge") or {}
    settings["judge.model"] = _said(judge.get("model"))
    if asked_about := summary.get("questions"):  # only where one benchmark's file was another
        settings[f"questions.{summary['benchmark']}"] = str(asked_about)
    if prompt := judge.get("prompt_hash"):
        settings["judge.prompt"] = str(prompt)[:12]
    name = str(summary["policy"])
    policy = str(config.get("policy", name))
    return Variant(name, _in_full(str(config.get("model.path")) if policy == "start" else policy), asked, settings)


def _said(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _in_full(policy: str) -> str:
    """One spelling of a folder's path; of what is none, what was given."""
    folder, here = Path(policy), Path.cwd()
    if not folder.is_dir():
        return policy
    folder = folder.resolve()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)


def told_apart(ones: Sequence[Variant]) -> list[str]:
    """What to put behind the name of each, like " (seed=1)"; nothing where the name says enough.

    Policies of one name are told apart by their paths, evaluations of one policy that were asked the same by the
    settings that differ between them. Repeats with the same settings stay alike.
    """
    said: list[list[str]] = [[] for _ in ones]
    for places in _grouped(range(len(ones)), lambda i: ones[i].name):
        paths = _ends({ones[i].whose for i in places})
        for i in places if len(paths) > 1 else ():
            said[i].append(f"policy={paths[ones[i].whose]}")
    for places in _grouped(range(len(ones)), lambda i: (ones[i].name, ones[i].whose)):
        for key in _differing([ones[i] for i in places]):
            for i in places:
                if key in ones[i].settings:
                    said[i].append(f"{key}={ones[i].settings[key]}")
    return [f" ({', '.join(parts)})" if parts else "" for parts in said]


def _differing(ones: Sequence[Variant]) -> list[str]:
    """The keys that tell those apart which were asked the same. One that an evaluation lacks, being of another
    version, says nothing of it."""
    keys = sorted({key for one in ones for key in one.settings}, key=lambda key: (not _FIRST.fullmatch(key), key))
    found: list[str] = []
    for key in keys:
        rivals = _grouped(ones, lambda one: one.asked)
        if not _FIRST.fullmatch(key):
            rivals = [some for those in rivals for some in _alike(those, found)]
        if any(len({one.settings[key] for one in some if key in one.settings}) > 1 for some in rivals):
            found.append(key)
    return found


def _alike(ones: Sequence[Variant], keys: Sequence[str]) -> list[list[Variant]]:
    """Those that have the same settings under the keys."""
    return _grouped(ones, lambda one: tuple(one.settings.get(key) for key in keys))


def _ends(paths: set[str]) -> dict[str, str]:
    """As many last parts of each path as tell them apart."""
    parts = {path: Path(path).parts for path in paths}
    longest = max(map(len, parts.values()))
    enough = (n for n in range(1, longest) if len({those[-n:] for those in parts.values()}) == len(paths))
    count = next(enough, longest)
    return {path: str(Path(*those[-count:])) for path, those in parts.items()}


def _grouped(items: Iterable[T], by: Callable[[T], Hashable]) -> list[list[T]]:
    groups: dict[Hashable, list[T]] = {}
    for item in items:
        groups.setdefault(by(item), []).append(item)
    return list(groups.values())


def without_figures(final: Mapping[str, Any]) -> str | None:
    """Why an evaluation has no accuracy, if it is because infrastructure lost all of its episodes."""
    lost = final.get("accuracy") is None and bool(final.get("failed_share"))
    return "no episode that counts: all were lost to tools or engine; resume= asks again" if lost else None
