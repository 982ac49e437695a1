"""Which of vLLM's groups of layers are kept, and how much of a prefix each of them needs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from .plan import Group


class Kept(NamedTuple):
    """A group by vLLM's number for it, and its layers."""

    place: int
    group: Group
    # Heads of each of its layers in a worker; 0 where they differ, or have none.
    heads: int
    layer_names: tuple[str, ...]


def kept_groups(kv_cache_config: Any) -> list[Kept]:
    """The groups whose blocks are kept, in vLLM's order; ValueError where one cannot be served.

    Groups that vLLM itself never finds by their hashes are left out: it computes them anew after each hit.
    """
    kept = []
    for index, group in enumerate(kv_cache_config.kv_cache_groups):
        if getattr(group, "host_resident", False):
            raise ValueError("kvkeep does not serve HiSparse, whose blocks vLLM keeps in host memory itself")
        if index in kv_cache_config.prefix_cacheable_group_ids:
            spec = group.kv_cache_spec
            kept.append(Kept(index, _group(spec), _heads(spec), tuple(group.layer_names)))
    if not kept:
        raise ValueError("kvkeep has nothing to keep: no layer of this model has blocks that are found by a prefix")
    return kept


def _group(spec: Any) -> Group:
    """How much of a prefix the layers of a group need; those of a group are of one kind."""
    specs = list(getattr(spec, "kv_cache_specs", {}).values()) or [spec]
    needs = {_need(one) for one in specs}
    if len({reach == 0 for reach, _ in needs}) > 1 or len({named for _, named in needs}) > 1:
        raise ValueError(f"kvkeep does not know groups of several kinds: {_names(specs)}")
    reach, named = max(needs)
    return Group(spec.block_size, reach, named)


def _heads(spec: Any) -> int:
    specs = getattr(spec, "kv_cache_specs", {}).values() or [spec]
    heads = {getattr(one, "num_kv_heads", 0) for one in specs}
    return heads.pop() if len(heads) == 1 else 0


def _need(spec: Any) -> tuple[int, bool]:
    """How many tokens before its end a prefix needs (0: all), and whether vLLM names the blocks."""
    kinds = {kind.__name__ for kind in type(spec).__mro__}
    if "MambaSpec" in kinds:
        if spec.mamba_cache_mode not in ("align", "all"):
            raise ValueError("kvkeep needs the states that vLLM keeps for prefix caching: set --mamba-cache-mode align")
        return 1, spec.mamba_cache_mode == "align"
    if "SlidingWindowSpec" in kinds:
        return max(1, spec.sliding_window - 1 + getattr(spec, "extra_retained_tokens", 0)), False
    if "FullAttentionSpec" in kinds:
        return 0, False
    hint = ": set --disable-hybrid-kv-cache-manager" if "ChunkedLocalAttentionSpec" in kinds else ""
    raise ValueError(f"kvkeep does not serve layers of kind {type(spec).__name__}{hint}")


def _names(specs: Iterable[Any]) -> list[str]:
    return sorted({type(spec).__name__ for spec in specs})
