"""What the user says in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

LOADS = ("async", "layered")
RESETS = ("all", "own")


class Settings(NamedTuple):
    """The options by their names. Either `connect` or `l1_bytes` must be given."""

    # The daemon: "unix:///run/kvkeep.sock".
    connect: str = ""
    # Without a daemon: the bytes of a cache that this engine brings, and what is below it ("fs:///directory?capacity=200GiB").
    l1_bytes: int = 0
    backends: Sequence[str] = ()
    # Tokens of one object; rounded up to a multiple of vLLM's block.
    chunk_tokens: int = 256
    # Names the weights, in place of the model's name in vLLM: change it when they change under the same name.
    model: str = ""
    # Keeps what tenants store apart.
    tenant: str = ""
    # "async": a request waits beside the others while its pages are loaded. "layered": it is scheduled once the bytes are
    # in L1, and a layer's pages are loaded while the layers before it compute.
    load: str = "async"
    # How long a prompt that is not there yet is asked for again, for stores that another process is still making.
    lookup_timeout_ms: int = 0
    # Which weights, where the model's name stays the same: change it when they change on disk.
    generation: int = 0
    # Whether each head has an object of its own, so that engines of different tensor parallelism share them.
    canonical: bool = False
    # What resetting the cache does. "all": every engine that shares the daemon loses what it had of this model. "own": this
    # engine alone turns away from it.
    reset: str = "all"
    # Which weights adapters have, by their names, where their files do not say it: {"adapter": "revision"}.
    lora_revisions: Mapping[str, str] = {}


def settings(extra: Mapping[str, Any], hosts: int = 1) -> Settings:
    """The settings of a connector whose workers are on so many hosts, or ValueError where they cannot be meant."""
    if unknown := set(extra) - set(Settings._fields):
        raise ValueError(f"kv_connector_extra_config has {sorted(unknown)}; kvkeep knows {list(Settings._fields)}")
    if bool(extra.get("connect")) == bool(extra.get("l1_bytes")):
        raise ValueError(
            'kv_connector_extra_config needs "connect", the socket of a `kvkeep serve` ("unix:///…"), or "l1_bytes", the size of a '
            "cache of this engine alone"
        )
    if extra.get("l1_bytes") and hosts > 1:
        raise ValueError(
            'kv_connector_extra_config: l1_bytes is for workers on one host: start a `kvkeep serve` on each, and give "connect"'
        )
    given = Settings(**extra)
    for name, value in zip(given._fields, given):
        kind = type(Settings._field_defaults[name])
        if kind is tuple:
            kind = list if isinstance(value, list) else tuple
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            raise ValueError(f"kv_connector_extra_config: {name} is {value!r}, not of type {kind.__name__}")
    if given.load not in LOADS:
        raise ValueError(f"kv_connector_extra_config: load is {given.load!r}, not one of {LOADS}")
    if given.reset not in RESETS:
        raise ValueError(f"kv_connector_extra_config: reset is {given.reset!r}, not one of {RESETS}")
    if given.l1_bytes < 0 or given.chunk_tokens < 1 or given.lookup_timeout_ms < 0 or not 0 <= given.generation < 1 << 64:
        raise ValueError(
            "kv_connector_extra_config: l1_bytes, chunk_tokens and lookup_timeout_ms are no negative numbers, and generation has "
            "64 bits"
        )
    if not all(isinstance(url, str) for url in given.backends) or (given.backends and given.connect):
        raise ValueError("kv_connector_extra_config: backends are URLs below l1_bytes; a daemon has its own")
    if not all(isinstance(text, str) for pair in given.lora_revisions.items() for text in pair):
        raise ValueError("kv_connector_extra_config: lora_revisions has a text for each adapter's name")
    return given
