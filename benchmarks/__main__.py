"""`python -m benchmarks NAME`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def main() -> int:
    here = Path(__file__).parent
    names = sorted(path.stem for path in here.glob("*.py") if not path.stem.startswith("_"))
    parser = argparse.ArgumentParser(prog="benchmarks", description="Measure something beside what it replaces.")
    parser.add_argument("name", choices=names)
    name = parser.parse_args().name
    figures = importlib.import_module(f"benchmarks.{name}").measure()
    table = Table("figure", "value", title=name)
    for key, value in figures.items():
        if isinstance(value, list):
            Console().print(_rows(key, value))
        else:
            table.add_row(key, _text(value))
    Console().print(table)
    sys.stdout.write(json.dumps({"benchmark": name, **figures}) + "\n")
    return 0


def _rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """A figure that is a list of rows, turned on its side: each row a column."""
    table = Table(title, *("" for _ in rows))
    for key in rows[0]:
        table.add_row(key, *(_text(row[key]) for row in rows))
    return table


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
