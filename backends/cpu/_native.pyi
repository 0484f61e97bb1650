from collections.abc import Callable
from types import ModuleType
from typing import Any

LEVELS: dict[str, str]

def __getattr__(level: str) -> ModuleType: ...
def threading() -> str: ...
def without_python(
    entry: Callable[..., Any],
    settled: Callable[..., Any],
    settings: object,
    torch: ModuleType,
    empty: Callable[..., Any],
    written: tuple[int, ...],
    unread: tuple[bool, ...],
) -> Callable[..., Any]: ...
