"""What keeps the cache from being used, said when it begins."""

from __future__ import annotations

import logging
from typing import Any

from ..errors import KvkeepError

log = logging.getLogger("vllm.kvkeep")


class Trouble:
    """Says a trouble once for as long as it lasts: each request or step would meet it again."""

    def __init__(self) -> None:
        self._said = ""

    def say(self, error: KvkeepError, line: str, *arguments: Any) -> None:
        """Logs the line, which ends with the error, unless this error was the last one said."""
        if str(error) != self._said:
            self._said = str(error)
            log.warning(line + ": %s", *arguments, error)

    def over(self) -> None:
        """What comes now is a new trouble."""
        self._said = ""
