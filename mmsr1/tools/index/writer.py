"""What a kind of index must be able to do so that `building` can make one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Writer(Protocol):
    """What one kind of index does with its rows; `TextWriter` and `ImageWriter`."""

    kind: str

    def committed(self) -> int | None:
        """How many rows are safe, where the index itself knows."""
        ...

    def open(self, sizes: Mapping[str, int]) -> None:
        """Begin to write, growing files cut to these sizes."""
        ...

    def prepare(self, value: Any, /) -> Any:
        """The slow part for one row, on any thread. Raises ValueError in one line for a row that cannot be used."""
        ...

    def identify(self, prepared: Any, /) -> tuple[str, ...]:
        """The id, then all else that makes up the row's content."""
        ...

    def add(self, prepared: Sequence[Any], first: int, /) -> None: ...

    def sync(self) -> Mapping[str, int]: ...

    def commit(self) -> None: ...

    def finish(self, count: int) -> Mapping[str, str]: ...

    def close(self) -> None: ...
