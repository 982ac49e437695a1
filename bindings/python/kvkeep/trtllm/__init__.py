"""TensorRT-LLM's KV cache kept in kvkeep: a connector, named by `connector_module` "kvkeep.trtllm".

Written after TensorRT-LLM's documents and tested with calls as they describe them; it has never run on the engine. `connector`
alone imports TensorRT-LLM; the rest needs kvkeep only.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # TensorRT-LLM looks the classes up here. Imported late, so that the parts can be used where there is no TensorRT-LLM.
    if name in ("KvkeepScheduler", "KvkeepWorker"):
        from . import connector

        return getattr(connector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
