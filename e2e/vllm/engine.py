"""One vLLM, told what to do by lines of JSON on its standard input; it answers on the descriptor that is named first.

Its scheduler and its workers are processes of their own, which vLLM starts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig


class Engine:
    """The commands, by their names."""

    def __init__(self, model: str, extra: dict[str, Any], **options: Any) -> None:
        transfer = KVTransferConfig(
            kv_connector="KvkeepConnector",
            kv_connector_module_path="kvkeep.vllm",
            kv_role="kv_both",
            kv_load_failure_policy="recompute",
            kv_connector_extra_config=extra,
        )
        self._llm = LLM(
            model,
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=2048,
            disable_log_stats=False,
            kv_transfer_config=transfer if extra else None,
            **options,
        )

    def generate(self, prompts: list[list[int]], tokens: int) -> dict[str, Any]:
        """The text of each prompt, and how many of its tokens were not computed."""
        outputs = self._llm.generate([{"prompt_token_ids": p} for p in prompts], _sampling(tokens), use_tqdm=False)
        return {
            "texts": [list(output.outputs[0].token_ids) for output in outputs],
            "cached": [output.num_cached_tokens for output in outputs],
        }

    def forget(self) -> bool:
        """Empties vLLM's own cache of prefixes."""
        return self._llm.reset_prefix_cache()

    def reset(self) -> bool:
        """Empties vLLM's own cache, and what its connector keeps."""
        return self._llm.reset_prefix_cache(reset_connector=True)

    def nap(self) -> None:
        """Falls asleep, which empties all caches, and wakes up."""
        self._llm.sleep(level=1)
        self._llm.wake_up()

    def reload(self, path: str) -> None:
        """Takes other weights in place of its own."""
        self._llm.collective_rpc("reload_weights", kwargs={"weights_path": path})

    def abort(self, prompts: list[list[int]], steps: int) -> int:
        """Begins prompts and aborts them after so many steps; how many were aborted before their end."""
        engine = self._llm.llm_engine
        names = [
            engine.add_request(f"aborted-{steps}-{i}", {"prompt_token_ids": prompt}, _sampling(500))
            for i, prompt in enumerate(prompts)
        ]
        for _ in range(steps):
            engine.step()
        left = engine.get_num_unfinished_requests()
        engine.abort_request(names, internal=True)
        while engine.has_unfinished_requests():
            engine.step()
        return left

    def steps(self, prompts: list[list[int]], count: int) -> float:
        """How many microseconds a step takes, of so many that decode these prompts. The engine runs ahead of whoever asks it."""
        engine = self._llm.llm_engine
        names = [
            engine.add_request(f"timed-{time.monotonic_ns()}-{i}", {"prompt_token_ids": prompt}, _sampling(count + 20))
            for i, prompt in enumerate(prompts)
        ]
        # The first ones take the prompt.
        for _ in range(5):
            engine.step()
        began = time.perf_counter()
        for _ in range(count):
            engine.step()
        taken = (time.perf_counter() - began) / count * 1e6
        engine.abort_request(names, internal=True)
        while engine.has_unfinished_requests():
            engine.step()
        return taken

    def counted(self, metric: str) -> float:
        """One of vLLM's counters."""
        return sum(one.value for one in self._llm.get_metrics() if one.name == metric)


def _sampling(tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)


if __name__ == "__main__":
    answers = os.fdopen(int(sys.argv[1]), "w")
    engine = Engine(**json.loads(sys.argv[2]))
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        print(json.dumps(getattr(engine, name)(**arguments)), file=answers, flush=True)
