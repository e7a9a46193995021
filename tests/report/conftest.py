from __future__ import annotations

import pytest
from synthetic_run import write_full_run

from mmsr1.run_directory import RunDirectory


@pytest.fixture(scope="session")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Written once; tests read it and may write nothing but its report."""
    return write_full_run(tmp_path_factory.mktemp("grpo_balanced") / "2026-01-02_03-04-05_0")
