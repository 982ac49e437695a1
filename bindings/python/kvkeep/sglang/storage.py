"""The storage backend that SGLang loads: translates between its interface and the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Optional

import torch
from sglang.srt.mem_cache.hicache_storage import (
    HiCacheStorage,
    HiCacheStorageConfig,
    HiCacheStorageExtraInfo,
    PoolHitPolicy,
    PoolTransfer,
    PoolTransferResult,
)
from sglang.srt.runtime_context import get_server_args

from ..errors import InvalidError, UnsupportedError
from .settings import settings
from .store import KV, Place, Store, Window

if TYPE_CHECKING:
    from sglang.srt.mem_cache.pool_host import HostKVCache

WHERE = "--hicache-storage-backend-extra-config"
# SGLang asks from a thread of its own, for which a request waits.
LOOKUP_MS = 1000


class KvkeepStorage(HiCacheStorage):
    """Finds, loads and stores pages of SGLang's host memory in a kvkeep daemon that engines share."""

    def __init__(self, storage_config: HiCacheStorageConfig, kwargs: Optional[dict[str, Any]] = None) -> None:
        extra = storage_config.extra_config or {}
        if not extra.get("interface_v1"):
            raise InvalidError(f'{WHERE} needs "interface_v1": 1, without which SGLang copies each page once more')
        if storage_config.dcp_size > 1:
            raise UnsupportedError("kvkeep does not serve SGLang with decode context parallelism")
        chosen = settings(extra, WHERE)
        place = Place(
            storage_config.tp_rank,
            storage_config.tp_size,
            storage_config.pp_rank,
            storage_config.pp_size,
            storage_config.attn_cp_rank,
            storage_config.attn_cp_size,
            storage_config.is_mla_model,
            kv_dtype(),
        )
        self._store = Store(chosen.open(), chosen, storage_config.model_name or "", place, LOOKUP_MS)

    def register_mem_pool_host(self, mem_pool_host: HostKVCache) -> None:
        """The host pool of K and V."""
        super().register_mem_pool_host(mem_pool_host)
        self._store.register_host(KV, mem_pool_host, torch.arange)

    def register_mem_host_pool_v2(self, host_pool: HostKVCache, host_pool_name: Any) -> None:
        """A host pool by its name; that of K and V comes here once more."""
        super().register_mem_host_pool_v2(host_pool, host_pool_name)
        name = str(host_pool_name)
        if name != KV or not self._store.has(KV) or host_pool is not self.mem_pool_host:
            self._store.register_host(name, host_pool, torch.arange)

    def batch_exists(self, keys: list[str], extra_info: Optional[HiCacheStorageExtraInfo] = None) -> int:
        """How many pages of K and V are there, from the first on."""
        return self._store.prefix(keys)

    def batch_get_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Optional[HiCacheStorageExtraInfo] = None
    ) -> list[bool]:
        """Loads pages of K and V."""
        return self._store.get(KV, keys, host_indices)

    def batch_set_v1(
        self, keys: list[str], host_indices: torch.Tensor, extra_info: Optional[HiCacheStorageExtraInfo] = None
    ) -> list[bool]:
        """Stores pages of K and V."""
        return self._store.set(KV, keys, host_indices)

    def batch_exists_v2(
        self,
        keys: list[str],
        pool_transfers: Optional[list[PoolTransfer]] = None,
        extra_info: Optional[HiCacheStorageExtraInfo] = None,
    ) -> PoolTransferResult:
        """Every length at which all pools can continue."""
        windows = [Window(KV, 0)]
        windows += [
            Window(str(transfer.name), window_of(transfer))
            for transfer in pool_transfers or ()
            # Its groups are a second form of the same pages: it never limits a hit, and says nothing here.
            if transfer.hit_policy != PoolHitPolicy.BLOCK_GROUPS
        ]
        found = self._store.restorable(keys, windows)
        return PoolTransferResult(found.lengths[-1] if found.lengths else 0, found.by_pool, found.lengths)

    def batch_get_v2(
        self, transfers: list[PoolTransfer], extra_info: Optional[HiCacheStorageExtraInfo] = None
    ) -> dict[str, list[bool]]:
        """Loads pages of each pool."""
        return {one.name: self._store.get(str(one.name), one.keys or [], one.host_indices) for one in transfers}

    def batch_set_v2(
        self, transfers: list[PoolTransfer], extra_info: Optional[HiCacheStorageExtraInfo] = None
    ) -> dict[str, list[bool]]:
        """Stores pages of each pool."""
        return {one.name: self._store.set(str(one.name), one.keys or [], one.host_indices) for one in transfers}

    def exists(self, key: str) -> bool:
        """Whether a page of K and V is there."""
        return self._store.prefix([key]) == 1

    def clear(self) -> None:
        """Forgets what was stored of this model, in every tier."""
        self._store.clear()

    def close(self) -> None:
        """When SGLang detaches the storage: no page is touched any more after this."""
        self._store.close()

    # SGLang's former interface, which copies pages into tensors of their own. With interface_v1 it is not called.

    def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
        raise UnsupportedError(FORMER)

    def batch_get(self, keys: list[str], target_locations: Any = None, target_sizes: Any = None) -> Any:
        raise UnsupportedError(FORMER)

    def set(self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None) -> bool:
        raise UnsupportedError(FORMER)

    def batch_set(
        self, keys: list[str], values: Any = None, target_locations: Any = None, target_sizes: Any = None
    ) -> bool:
        raise UnsupportedError(FORMER)


FORMER = f'kvkeep has no interface of SGLang\'s before v1: set "interface_v1": 1 in {WHERE}'


def kv_dtype() -> str:
    """The option --kv-cache-dtype; "auto" also where no server runs."""
    try:
        return str(get_server_args().kv_cache_dtype)
    except (AssertionError, AttributeError, RuntimeError, ValueError):
        return "auto"


def window_of(transfer: PoolTransfer) -> int:
    """How many of the last pages of a prefix must be there; 0: all."""
    if transfer.hit_policy == PoolHitPolicy.ALL_PAGES:
        return 0
    return max(1, len(transfer.keys or ()))
