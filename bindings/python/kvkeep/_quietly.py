"""Giving back, where it does not matter whether there was anything left."""

from __future__ import annotations

from typing import Any, Callable

from .errors import KvkeepError


def quietly(function: Callable[..., object], *arguments: Any, **options: Any) -> None:
    """Calls a function that need not succeed. A session or job that is gone holds nothing: it passed its deadline, or its daemon ended."""
    try:
        function(*arguments, **options)
    except KvkeepError:
        pass
