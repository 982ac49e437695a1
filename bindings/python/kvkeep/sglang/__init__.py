"""SGLang's KV cache kept in kvkeep: a storage backend for its hierarchical cache, named by `module_path` "kvkeep.sglang" and
`class_name` "KvkeepStorage", and an external linker for its unified cache, "KvkeepLinker".

`storage` and `linker` alone import SGLang; the rest needs kvkeep only, and knows SGLang's objects by the few attributes it reads.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    # SGLang looks its class up here. Imported late, so that the parts can be used where there is no SGLang.
    if name == "KvkeepStorage":
        from .storage import KvkeepStorage

        return KvkeepStorage
    if name == "KvkeepLinker":
        from .linker import KvkeepLinker

        return KvkeepLinker
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
