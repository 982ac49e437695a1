"""The connector's counts as vLLM logs and exports them."""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorPromMetrics, KVConnectorStats

COUNTS = {
    "asked_tokens": "Tokens of prompts that kvkeep was asked for.",
    "found_tokens": "Of these, the tokens that kvkeep had.",
    "loads": "Loads that have ended, of all workers.",
    "loaded_bytes": "Bytes copied from L1 into the KV cache.",
    "load_us": "Microseconds of these loads, from their beginning to their end.",
    "lost_loads": "Loads of which something could not be had.",
    "stores": "Stores that have ended, of all workers.",
    "stored_bytes": "Bytes copied from the KV cache into L1.",
    "store_us": "Microseconds of these stores, from their beginning to their end.",
}


class Stats(KVConnectorStats):
    """Counts of one interval, by the names in `COUNTS`."""

    def reset(self) -> None:
        self.data.clear()

    def aggregate(self, other: KVConnectorStats) -> Stats:
        for name, count in other.data.items():
            self.data[name] = self.data.get(name, 0) + count
        return self

    def reduce(self) -> dict[str, int | float]:
        """The counts as they are."""
        return {f"kvkeep {name.replace('_', ' ')}": count for name, count in self.data.items()}

    def is_empty(self) -> bool:
        return not any(self.data.values())


class Prometheus(KVConnectorPromMetrics):
    """A counter for each."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._counters: dict[str, dict[int, Any]] = {}
        for name, text in COUNTS.items():
            counter = self._counter_cls(name=f"vllm:kvkeep_{name}", documentation=text, labelnames=self._labelnames)
            self._counters[name] = {
                engine: counter.labels(*labels) for engine, labels in self.per_engine_labelvalues.items()
            }

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        for name, count in transfer_stats_data.items():
            self._counters[name][engine_idx].inc(count)
