"""What the connector costs vLLM's scheduler for a request of 32,768 tokens that nobody has stored.

The scheduler is vLLM's own, with the harness of bindings/python/tests/test_vllm_classes.py; the daemon serves in this process.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from tests import test_vllm_classes as harness

TOKENS, CHUNK, REQUESTS = 32_768, 256, 100


def asked(engine: Any, name: str, tokens: list[int]) -> tuple[float, float, int]:
    """Milliseconds in the connector's calls, milliseconds until the answer, and the answer in tokens."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.request import Request

    connector = engine.scheduler.connector
    request = Request(name, tokens, SamplingParams(max_tokens=1), None, block_hasher=engine.hasher)
    spent, answer, began = 0.0, None, time.perf_counter()
    while answer is None:
        before = time.perf_counter()
        answer = connector.get_num_new_matched_tokens(request, 0)[0]
        spent += time.perf_counter() - before
        if answer is None:
            # A scheduler has other requests to go on with.
            time.sleep(0.0001)
    waited = time.perf_counter() - began
    before = time.perf_counter()
    connector.request_finished_all_groups(request, ([],))
    spent += time.perf_counter() - before
    return 1e3 * spent, 1e3 * waited, answer


def main() -> None:
    harness.CHUNK = CHUNK
    test = harness.Classes()
    test.setUp()
    engine = harness.Engine(test, ("full",))
    times = [asked(engine, f"{i}", [(i * 7919 + j * 31) % 500 + 3 for j in range(TOKENS)]) for i in range(REQUESTS)]
    assert {answer for _, _, answer in times} == {0}
    spent, waited = (statistics.median(column) for column in list(zip(*times))[:2])
    print(f"scheduler, {TOKENS} tokens, median of {REQUESTS}: {spent:.2f} ms in kvkeep's calls, {waited:.2f} ms until the answer")
    engine.close()
    test.doCleanups()


if __name__ == "__main__":
    main()
