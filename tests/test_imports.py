"""Imports point one way (docs/design.md): stages know those before them, only entry points know the configuration."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE = ("mmsr1.types", "mmsr1.batch", "mmsr1.files", "mmsr1.rollout.protocol", "mmsr1.torchvision_shim")
STAGES = (*BASE, "mmsr1.tools", "mmsr1.rewards", "mmsr1.models", "mmsr1.run_directory", "mmsr1.rollout", "mmsr1.data")
# What a module, or all modules below a package, may import from this project; the longest name counts.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "mmsr1": (),
    "mmsr1.types": (),
    "mmsr1.batch": (),
    "mmsr1.rollout.protocol": (),
    "mmsr1.torchvision_shim": (),
    "mmsr1.environment": ("mmsr1.torchvision_shim",),
    "mmsr1.processes": (),
    "mmsr1.config": ("mmsr1.config",),
    "mmsr1.tools": (*BASE, "mmsr1.tools"),
    "mmsr1.rewards": (*BASE, "mmsr1.rewards"),
    "mmsr1.models": (*BASE, "mmsr1.models"),
    "mmsr1.files": ("mmsr1.types",),
    "mmsr1.run_directory": BASE,
    "mmsr1.rollout": (*BASE, "mmsr1.rollout", "mmsr1.tools", "mmsr1.rewards", "mmsr1.models", "mmsr1.run_directory"),
    "mmsr1.data": (
        *BASE,
        "mmsr1.data",
        "mmsr1.tools",
        "mmsr1.rewards",
        "mmsr1.rollout.renderer",
        "mmsr1.rollout.engines.base",
    ),
    "mmsr1.evaluation": (*STAGES, "mmsr1.evaluation"),
    "mmsr1.report": (*STAGES, "mmsr1.evaluation", "mmsr1.report"),
}
ENTRY_POINTS = (
    "train",
    "evaluate",
    "ask",
    "mmsr1.assembly",
    "mmsr1.cli",
    "mmsr1.mistakes",
    "mmsr1.data.balance.__main__",
    "mmsr1.data.construct.__main__",
    "mmsr1.data.review.__main__",
    "mmsr1.data.traces.__main__",
    "mmsr1.evaluation.compare",
    "mmsr1.evaluation.table",
    "mmsr1.evaluation.edit.__main__",
    "mmsr1.models.export",
    "mmsr1.models.plan",
    "mmsr1.report.frontier",
    "mmsr1.report.study",
    "mmsr1.sweep",
    "mmsr1.tools.bundle.__main__",
    "mmsr1.tools.check",
    "mmsr1.tools.gateway.__main__",
    "mmsr1.tools.index.__main__",
)


def covers(name: str, module: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in [*sorted((ROOT / "mmsr1").rglob("*.py")), *sorted(ROOT.glob("*.py"))]}


def imported(source: str, module: str, is_package: bool) -> set[str]:
    """Names imported anywhere in the source, also inside functions and for type checking only.

    `from package import name` counts as `package.name` where that is a module of ours.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: len(module.split(".")) + is_package - node.level] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            inner = {f"{origin}.{alias.name}" for alias in node.names}
            found |= (inner & MODULES.keys()) or {origin}
    return {name for name in found if covers("mmsr1", name) or name in ENTRY_POINTS}


def imports_of(module: str) -> set[str]:
    file = MODULES[module]
    return imported(file.read_text(encoding="utf-8"), module, file.name == "__init__.py") - {module}


def rule_for(module: str) -> tuple[str, ...] | None:
    """The packages that the module may import from; None for an entry point, which may import all."""
    if any(covers(entry, module) for entry in ENTRY_POINTS):
        return None
    return MAY_IMPORT[max((name for name in MAY_IMPORT if covers(name, module)), key=len)]


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_lies_below_it(module: str) -> None:
    allowed = rule_for(module)
    wrong = {name for name in imports_of(module) if allowed is not None and not any(covers(a, name) for a in allowed)}
    assert not wrong, f"{module} may import {allowed}, not {sorted(wrong)}"


def test_only_entry_points_see_the_configuration() -> None:
    outside = [module for module in MODULES if not covers("mmsr1.config", module)]
    seeing = {module for module in outside if "mmsr1.config" in imports_of(module)}
    assert {"train", "mmsr1.assembly.data", "mmsr1.cli"} <= seeing
    assert not {module for module in seeing if not any(covers(entry, module) for entry in ENTRY_POINTS)}


def test_every_top_level_module_has_a_rule_of_its_own() -> None:
    """A new one must be put in its place, not fall under the rule of the package."""
    top = {".".join(module.split(".")[:2]) for module in MODULES if covers("mmsr1", module)}
    assert {module for module in top if module not in MAY_IMPORT and module not in ENTRY_POINTS} == set()


def test_the_reader_of_imports_sees_every_form() -> None:
    source = """
import mmsr1.tools.base as base, os
from mmsr1.types import Example
from mmsr1 import assembly
from mmsr1.rollout import episode, renderer
if TYPE_CHECKING:
    from mmsr1.models.packing import pack
def late():
    from . import buffer
    from ..rewards import reward
    from .. import config
"""
    assert imported(source, "mmsr1.models.module", is_package=False) == {
        "mmsr1.tools.base",
        "mmsr1.types",
        "mmsr1.assembly",
        "mmsr1.rollout.episode",
        "mmsr1.rollout.renderer",
        "mmsr1.models.packing",
        "mmsr1.models.buffer",
        "mmsr1.rewards.reward",
        "mmsr1.config",
    }
    assert imported("from .base import Tool", "mmsr1.tools", is_package=True) == {"mmsr1.tools.base"}


def test_the_rules_refuse_what_they_should() -> None:
    for module, name in (
        ("mmsr1.tools.base", "mmsr1.models.packing"),
        ("mmsr1.models.module", "mmsr1.rollout.engines.base"),
        ("mmsr1.rollout.episode", "mmsr1.data.fvqa"),
        ("mmsr1.data.fvqa", "mmsr1.rollout.episode"),
        ("mmsr1.rollout.worker", "mmsr1.report.run"),
        ("mmsr1.rollout.protocol", "mmsr1.types"),
        ("mmsr1.report.run", "mmsr1.config"),
    ):
        allowed = rule_for(module)
        assert allowed is not None and not any(covers(a, name) for a in allowed), (module, name)
