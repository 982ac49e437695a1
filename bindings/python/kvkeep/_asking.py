"""Waiting for the answer of a job's lookup, which comes before any byte is loaded."""

from __future__ import annotations

from typing import Callable, Optional, TypeVar

from .errors import KvkeepError, TimedOutError
from .job import Job

T = TypeVar("T")

# A job tells of its end only: how often its answer is asked for until then.
ASK_S = 0.001


def answer(job: Job, ask: Callable[[], Optional[T]], check: Callable[[], object] = lambda: None) -> T:
    """What `ask` gives once the lookup of `job` is answered. `check` is called meanwhile and may raise."""
    is_over = False
    while (answered := ask()) is None:
        if is_over:
            raise TimedOutError("the lookup ended unanswered")
        check()
        try:
            job.wait(ASK_S)
            is_over = True
        except KvkeepError as error:
            # How the job ended is not asked here, but whether it did.
            is_over = job.done()
            if not is_over and not isinstance(error, TimedOutError):
                raise
    return answered
