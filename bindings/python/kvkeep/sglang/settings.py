"""What the user says in `--hicache-storage-backend-extra-config`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..cache import Cache
from ..errors import InvalidError


class Settings(NamedTuple):
    """The options by their names."""

    # The daemon: "unix:///run/kvkeep.sock".
    connect: str = ""
    # Instead: a cache inside each of SGLang's processes, and the URLs of its backends.
    l1_bytes: int = 0
    backends: tuple[str, ...] = ()
    # Names the weights, in place of the model's name in SGLang: change it when they change under the same name.
    model: str = ""
    # Keeps what tenants store apart.
    tenant: str = ""
    # Which weights, where the model's name stays the same: change it when they change.
    generation: int = 0
    # How long a lookup may take; what is not answered by then is a miss. 0: the default of the class.
    lookup_ms: int = 0

    def open(self) -> Cache:
        """The cache that they name."""
        return Cache(connect=self.connect) if self.connect else Cache(self.l1_bytes, backends=self.backends)


def settings(extra: Mapping[str, Any], where: str) -> Settings:
    """Kvkeep's settings among others', or InvalidError where they cannot be meant. `where` names the option for messages."""
    given = {name: extra[name] for name in Settings._fields if name in extra}
    if isinstance(given.get("backends"), (list, tuple)):
        given["backends"] = tuple(given["backends"])
    for name, value in given.items():
        kind = type(Settings._field_defaults[name])
        if not isinstance(value, kind) or isinstance(value, bool):
            raise InvalidError(f"{where}: {name} is {value!r}, not of type {kind.__name__}")
    chosen = Settings(**given)
    if chosen.lookup_ms < 0 or not 0 <= chosen.generation < 1 << 64:
        raise InvalidError(f"{where}: lookup_ms is no negative number, and generation has 64 bits")
    if bool(chosen.connect) == bool(chosen.l1_bytes):
        raise InvalidError(
            f'{where} needs either "connect", the socket of a `kvkeep serve` ("unix:///…"), '
            'or "l1_bytes", the memory of a cache of each process'
        )
    return chosen
