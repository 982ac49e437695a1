"""What keeps the cache from being used, said when it begins, and now and then while it lasts."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

# How often the same trouble is logged.
REPEAT_S = 60.0


class Troubles:
    """Each request meets a trouble again: the same one is logged at most once in REPEAT_S. Any thread."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._said: dict[str, float] = {}

    def say(self, error: object, line: str, *arguments: Any) -> None:
        """Logs the line, which ends with the error."""
        text, now = str(error), time.monotonic()
        with self._lock:
            self._said = {said: when for said, when in self._said.items() if now - when < REPEAT_S}
            if text in self._said:
                return
            self._said[text] = now
        self._log.warning(line + ": %s", *arguments, text)
