"""vLLM's KV cache kept in kvkeep: a connector, named by `kv_connector_module_path="kvkeep.vllm"`.

`connector` and `metrics` alone import vLLM; the rest needs kvkeep only, and knows vLLM's objects by the few attributes it reads.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # vLLM looks the class up here. Imported late, so that the parts can be used where there is no vLLM.
    if name == "KvkeepConnector":
        from .connector import KvkeepConnector

        return KvkeepConnector
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
