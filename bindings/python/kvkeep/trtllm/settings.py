"""What the user says: the daemon in `server_url`, and the rest in an environment variable, since the engine's options have no place."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import InvalidError

VARIABLE = "KVKEEP_TRTLLM"


class Settings(NamedTuple):
    """The options by their names; those without a default must be given."""

    # The daemon: "unix:///run/kvkeep.sock".
    connect: str
    # Names the weights, in place of the model's name in TensorRT-LLM: change it when they change under the same name.
    model: str = ""
    # Keeps what tenants store apart.
    tenant: str = ""
    # Which weights, where the model's name stays the same: change it when they change.
    generation: int = 0
    # How long a request's first question waits for objects on their way to L1; it holds the engine's scheduler up.
    wait_ms: int = 20
    # How long a step waits for its stores; what is not stored by then is dropped.
    save_ms: int = 1000


def settings(server_url: str, environment: Mapping[str, str]) -> Settings:
    """The settings of a connector, or InvalidError where they cannot be meant."""
    try:
        extra: Any = json.loads(environment.get(VARIABLE, "{}"))
    except ValueError as error:
        raise InvalidError(f"{VARIABLE} is no JSON: {error}") from None
    if not isinstance(extra, dict):
        raise InvalidError(f'{VARIABLE} is no JSON object, such as {{"wait_ms": 20}}')
    if unknown := set(extra) - set(Settings._fields):
        raise InvalidError(f"{VARIABLE} has {sorted(unknown)}; kvkeep knows {list(Settings._fields)}")
    extra.setdefault("connect", server_url or "")
    for name, value in extra.items():
        kind = type(Settings._field_defaults.get(name, ""))
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidError(f"{VARIABLE}: {name} is {value!r}, not of type {kind.__name__}")
    given = Settings(**extra)
    if not given.connect:
        raise InvalidError('kv_connector_config needs "server_url", the socket of a `kvkeep serve`: "unix:///…"')
    if given.wait_ms < 1 or given.save_ms < 1 or not 0 <= given.generation < 1 << 64:
        raise InvalidError(f"{VARIABLE}: wait_ms and save_ms are at least 1, and generation has 64 bits")
    return given
