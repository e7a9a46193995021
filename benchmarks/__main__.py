"""`python -m benchmarks NAME`."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path

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
        table.add_row(key, f"{value:.4g}" if isinstance(value, float) else str(value))
    Console().print(table)
    sys.stdout.write(json.dumps({"benchmark": name, **figures}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
