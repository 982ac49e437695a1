"""The connector that vLLM loads: translates between vLLM's interface and the two sides."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Callable, Optional

import torch
from vllm.distributed.kv_events import MEDIUM_CPU, MEDIUM_STORAGE, BlockRemoved, BlockStored
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorHandshakeMetadata,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.distributed.parallel_state import get_pp_group, get_tp_group
from vllm.distributed.utils import get_pp_indices
from vllm.logger import init_logger
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from ..pages import described, pages
from ..pool import Pool
from ..space import Space
from .connection import Connection
from .events import Events, News
from .groups import Kept, kept_groups
from .layout import Layer, fingerprint, joined
from .lending import Lending
from .metrics import Prometheus, Stats
from .pair import for_the_other
from .plan import Grid, Offer, grid, unstable_hashes
from .scheduler import Scheduler
from .settings import Settings, settings
from .step import Step
from .worker import Worker

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

# Under vLLM's own name, so that its logging settings hold.
log = init_logger("vllm.kvkeep")


@dataclass
class Metadata(KVConnectorMetadata):
    """A step on its way to the workers."""

    step: Step = field(default_factory=Step)


@dataclass
class Handshake(KVConnectorHandshakeMetadata):
    """What a worker tells the scheduler once its KV cache is there: which bytes its objects have."""

    layout: str = ""


@dataclass
class Stored(KVConnectorWorkerMetadata):
    """Of stores that blocks were lent to, how many workers need them no more."""

    workers: Counter[int] = field(default_factory=Counter)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Stored:
        """Of all workers together."""
        assert isinstance(other, Stored)
        return Stored(self.workers + other.workers)


class KvkeepConnector(KVConnectorBase_V1, SupportsHMA):
    """Finds, loads and stores the KV cache of prompts in a kvkeep daemon that engines share."""

    def __init__(self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        transfer = self._kv_transfer_config
        self._settings = settings(transfer.kv_connector_extra_config, vllm_config.parallel_config.nnodes)
        self._kept = kept_groups(kv_cache_config)
        self._grid = _grid(vllm_config, kv_cache_config, self._kept, self._settings)
        if self._settings.load == "layered" and not self._grid.is_plain:
            log.warning('kvkeep loads beside the steps: of this model\'s layers, vLLM cannot compute single ones again.')
        if transfer.kv_load_failure_policy != "recompute":
            log.warning('Requests fail where kvkeep loses an object: set "kv_load_failure_policy" to "recompute".')
        if role == KVConnectorRole.SCHEDULER and (trouble := unstable_hashes(vllm_config.cache_config, os.environ)):
            log.warning(trouble)
        # The first worker is there before the scheduler.
        owns = role == KVConnectorRole.WORKER and get_tp_group().rank_in_group == get_pp_group().rank_in_group == 0
        self._connection = Connection(self._settings, str(transfer.engine_id), owns)
        # Read once: vLLM's own name of the model changes where weights are loaded from elsewhere, and only in the workers.
        self._model = self._settings.model or _model(vllm_config)
        self._layout = ""
        self._worker: Optional[Worker] = None
        self._scheduler: Optional[Scheduler] = None
        self._lending: Optional[Lending] = None

    @property
    def requires_kv_delivery(self) -> bool:
        """A store that is dropped is a later miss and nothing worse."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """A graph of the whole model would not wait for its layers."""
        return extra_config.get("load") == "layered"

    @classmethod
    def supports_sleep_mode(cls, kv_transfer_config: Any) -> bool:
        """No page is touched between `unregister_kv_caches` and the next step."""
        return True

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: VllmConfig) -> Optional[str]:
        """Where heads have objects of their own, each lies in one piece."""
        canonical = vllm_config.kv_transfer_config.kv_connector_extra_config.get("canonical")
        return "LBHNC" if canonical and vllm_config.model_config and not vllm_config.model_config.use_mla else None

    # The workers' side.

    def register_kv_caches(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Opens the pool of this worker's pages."""
        config, parallel = self._vllm_config, self._vllm_config.parallel_config
        heads = self._grid.ranks * self._grid.replicas // self._grid.workers
        by_head = range(heads) if self._settings.canonical else [None]
        # Of each group, the tensors of each of this worker's ranks.
        groups = [[_caches(kept, kv_caches, head) for head in by_head] for kept in self._kept]
        layers = {name: layer for of_group in groups for name, layer in of_group[0][1].items()}
        block_count, stages = self._kv_cache_config.num_blocks, _stages(config)
        # The last of several stages has the layers of a draft model as well, which are not counted.
        drafted = " drafted" if len(stages) > 1 and config.speculative_config else ""
        described = (
            fingerprint(of_group[0][0], block_count, group.block_tokens, stages, group.reach)
            for of_group, group in zip(groups, self._grid.groups)
        )
        workers = f"tp {parallel.tensor_parallel_size}/{self._grid.replicas}"
        self._layout = "; ".join(
            (
                f"vllm {' + '.join(described)}",
                f"kv {config.cache_config.cache_dtype}",
                f"heads {self._grid.ranks}" if self._settings.canonical else workers,
                f"pp {len(stages)}{drafted}",
            )
        )
        tp_rank, tp_size = get_tp_group().rank_in_group, parallel.tensor_parallel_size
        rank = (get_pp_group().rank_in_group * tp_size + tp_rank) // self._grid.replicas
        ranks = range(rank * heads, (rank + 1) * heads)

        def open_pools(generation: int) -> list[Pool]:
            space = self._space(self._layout, generation)
            return [
                space.pool(
                    [segment._replace(group=number) for layer in caches for segment in joined(layer, block_count)],
                    blocks_per_chunk=self._grid.blocks_per_chunk(number),
                    block_count=block_count,
                    rank=rank,
                    device=caches[0].tensor.device,
                )
                for number, of_group in enumerate(groups)
                for rank, (caches, _) in zip(ranks, of_group)
            ]

        device = next(iter(kv_caches.values()))
        device = (device[0] if isinstance(device, (list, tuple)) else device).device
        self._worker = Worker(
            open_pools,
            ranks,
            layers,
            names_blocks=len(self._kept) == 1,
            # Of workers that hold the same bytes, one stores them.
            stores=tp_rank % self._grid.replicas == 0,
            steps_ahead=config.max_concurrent_batches,
            stream=_stream(device),
            generation=self._settings.generation,
        )

    def unregister_kv_caches(self) -> None:
        """vLLM is about to give up the memory of its KV cache: pages are opened anew when they are used next."""
        if self._worker:
            self._worker.suspend()

    def restore_kv_caches(self) -> None:
        """The memory is there again, at the same addresses: the first step that needs its pages opens them."""

    def get_handshake_metadata(self) -> Handshake:
        """For `set_xfer_handshake_metadata_pp_aware`."""
        return Handshake(self._layout)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        """Before the step writes any block."""
        self._at_work().settle(_step(kv_connector_metadata))

    def start_load_kv(self, forward_context: ForwardContext, **kwargs: Any) -> None:
        """Before the model runs where this step waits for a load, else after."""
        self._at_work().begin_loads(_step(self._get_connector_metadata()))

    def wait_for_layer_load(self, layer_name: str) -> None:
        """In front of each layer."""
        self._at_work().wait_layer(layer_name)

    def save_kv_layer(self, layer_name: str, kv_layer: torch.Tensor, attn_metadata: Any, **kwargs: Any) -> None:
        """Chunks are stored whole, when the model has run."""

    def wait_for_save(self) -> None:
        """When the model has run: begins the stores; their blocks stay as they are until `get_finished`."""
        self._at_work().begin_stores(_step(self._get_connector_metadata()))

    def get_finished(self, finished_req_ids: set[str]) -> tuple[Optional[set[str]], Optional[set[str]]]:
        """Requests whose held blocks may go, and requests that are loaded."""
        return self._at_work().over()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        """As `get_finished`, and the requests of several groups that vLLM has to compute after all."""
        sent, received = self._at_work().over()
        return KVConnectorTransferResults(sent, received, self._at_work().failed_requests())

    def build_connector_worker_meta(self) -> Optional[Stored]:
        """Which stores need their blocks no more."""
        stored = self._at_work().stored()
        return Stored(Counter(stored)) if stored else None

    def get_block_ids_with_load_errors(self) -> set[int]:
        """Blocks that vLLM has to compute after all."""
        return self._at_work().failed_blocks()

    # The scheduler's side.

    def bind_gpu_block_pool(self, gpu_block_pool: BlockPool) -> None:
        """The blocks that stores may have to keep."""

        def named(blocks: list[int]) -> list[KVCacheBlock]:
            return [gpu_block_pool.blocks[block] for block in blocks]

        self._lending = Lending(
            self._grid.workers,
            lambda blocks: gpu_block_pool.touch(named(blocks)),
            lambda blocks: gpu_block_pool.free_blocks(named(blocks)),
        )

    def set_xfer_handshake_metadata_pp_aware(
        self, metadata: dict[tuple[int, int], KVConnectorHandshakeMetadata]
    ) -> None:
        """Opens the space once the workers have said what their objects are."""
        layouts = {worker.layout for worker in metadata.values() if isinstance(worker, Handshake)}
        if len(layouts) != 1:
            raise ValueError(f"the workers' KV caches differ, so that kvkeep cannot name their objects: {layouts}")
        transfer, layout = self._kv_transfer_config, layouts.pop()
        published = self._vllm_config.kv_events_config
        self._scheduler = Scheduler(
            lambda generation: self._space(layout, generation),
            self._grid,
            self._settings,
            loads=transfer.is_kv_consumer,
            stores=transfer.is_kv_producer,
            lending=self._lending,
            events=Events(self._grid) if published and published.enable_kv_cache_events else None,
        )

    def on_new_request(self, request: Request) -> None:
        """It waits to be scheduled."""
        self._scheduling().arrived(request)

    def get_num_new_matched_tokens(self, request: Request, num_computed_tokens: int) -> tuple[Optional[int], bool]:
        """How much of the prompt is there; None: ask again."""
        if request.skip_reading_prefix_cache:
            return 0, False
        return self._scheduling().matched(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int) -> None:
        """vLLM has taken what was offered, or some of it, or nothing."""
        self._scheduling().allocated(request, self._of_kept(blocks.get_block_ids()), num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Metadata:
        """What the workers have to do in this step."""
        state = scheduler_output.kv_connector_block_state
        numbers = {kept.place: number for number, kept in enumerate(self._kept)}
        step = self._scheduling().step(
            scheduler_output.num_scheduled_tokens,
            lambda name: self._of_kept(state.resolve_block_ids(name)),
            scheduler_output.preempted_req_ids or (),
            {
                name: [Offer(numbers[group], block, tokens) for group, block, tokens in offers if group in numbers]
                for name, offers in state.boundary_state_offloads.items()
            },
        )
        return Metadata(step)

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        """What all workers have done."""
        stored = connector_output.kv_connector_worker_meta
        self._scheduling().told(
            connector_output.invalid_block_ids or (),
            connector_output.finished_recving or (),
            connector_output.finished_sending or (),
            failed=connector_output.failed_recving,
            stored=stored.workers if isinstance(stored, Stored) else {},
        )

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, Optional[dict[str, Any]]]:
        """The request is over. True: its blocks are kept until `get_finished` names it."""
        told = for_the_other(request, self._settings.lookup_timeout_ms) if self._kv_transfer_config.is_kv_producer else None
        return self._scheduling().finished(request), told

    def take_events(self) -> Iterator[BlockStored | BlockRemoved]:
        """What became of the chunks that this engine stored, for vLLM's publisher of events."""
        for news in self._scheduler.news() if self._scheduler else ():
            yield _event(news, self._kept[news.group])

    def reset_cache(self) -> bool:
        """Nothing stored before is found any more, in no tier, and nothing computed before is stored."""
        if self._scheduler:
            self._scheduler.reset()
        return True

    # Both.

    def get_kv_connector_stats(self) -> Optional[Stats]:
        """What was counted since it was asked last."""
        side = self._worker if self._role == KVConnectorRole.WORKER else self._scheduler
        counts = side.counts() if side else {}
        return Stats(counts) if counts else None

    @classmethod
    def build_kv_connector_stats(cls, data: Optional[dict[str, Any]] = None) -> Stats:
        """The counts on their way to the log."""
        return Stats(data or {})

    @classmethod
    def build_prom_metrics(cls, *given: Any) -> Prometheus:
        """The counts on their way to Prometheus."""
        return Prometheus(*given)

    def shutdown(self) -> None:
        """Lets stores finish, gives the rest back."""
        if self._worker:
            self._worker.close()
        if self._scheduler:
            self._scheduler.close()
        self._connection.close()

    def _space(self, layout: str, generation: int) -> Space:
        return self._connection.space(
            self._model,
            layout,
            self._settings.tenant,
            chunk_tokens=self._grid.chunk_tokens,
            generation=generation,
        )

    def _of_kept(self, tables: tuple[list[int], ...]) -> list[list[int]]:
        return [tables[kept.place] for kept in self._kept]

    def _at_work(self) -> Worker:
        assert self._worker, "vLLM registers its KV cache before the first step"
        return self._worker

    def _scheduling(self) -> Scheduler:
        assert self._scheduler, "vLLM shakes hands before the first request"
        return self._scheduler


def _grid(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig, kept: list[Kept], given: Settings) -> Grid:
    """How tokens are cut, or ValueError for what the connector cannot serve."""
    parallel = vllm_config.parallel_config
    if parallel.decode_context_parallel_size > 1 or parallel.prefill_context_parallel_size > 1:
        raise ValueError("kvkeep does not serve context parallelism: its blocks are spread over workers by token")
    computes_whole = not vllm_config.scheduler_config.enable_chunked_prefill
    if vllm_config.model_config.use_mla and vllm_config.device_config.device_type == "cpu" and computes_whole:
        raise ValueError(
            "kvkeep does not serve MLA where vLLM computes prompts whole, because what is loaded before them would not be read: "
            "use a CPU with AMX, or a GPU"
        )
    groups = [each.group for each in kept]
    workers = parallel.tensor_parallel_size * parallel.pipeline_parallel_size
    hash_tokens = kv_cache_config.hash_block_size or groups[0].block_tokens
    heads = {each.heads for each in kept} if given.canonical else {1}
    if len(heads) != 1 or 0 in heads or (given.canonical and parallel.pipeline_parallel_size > 1):
        raise ValueError("canonical objects need one stage, and layers of attention with as many heads each: leave canonical out")
    return grid(groups, hash_tokens, given.chunk_tokens, workers, kv_cache_config.kv_tp_replicas, heads.pop())


def _caches(kept: Kept, kv_caches: Mapping[str, Any], head: Optional[int]) -> tuple[list[Layer], dict[str, int]]:
    """The tensors of a group, or their parts of one head, and which of them each of its layers has."""
    caches: list[Layer] = []
    # Layers that share a tensor with an earlier one of the group are loaded with it.
    first: dict[int, int] = {}
    layers = {}
    for name in kept.layer_names:
        given = kv_caches.get(name)
        # A state may have several tensors.
        for tensor in given if isinstance(given, (list, tuple)) else [given]:
            if tensor is None:
                continue
            if head is not None:
                # Axes are blocks, heads, tokens and what a token has.
                tensor = tensor[:, head]
            if tensor.data_ptr() not in first:
                first[tensor.data_ptr()] = layer = len(first)
                dtype = str(tensor.dtype).removeprefix("torch.")
                segments = pages(tensor, layer=layer).segments
                if head is not None and len(segments) > 1:
                    raise ValueError("canonical objects need each head's tokens in one piece: set VLLM_KV_CACHE_LAYOUT=LBHNC")
                caches.append(Layer(described(tensor), segments, dtype))
            layers[name] = first[tensor.data_ptr()]
    if not caches:
        raise ValueError("kvkeep needs layers of each group in every pipeline stage: split the model otherwise")
    return caches, layers


def _event(news: News, kept: Kept) -> BlockStored | BlockRemoved:
    chunk, lora = news.chunk, news.chunk.lora
    hashes = [maybe_convert_block_hash(one) for one in chunk.hashes]
    medium = MEDIUM_STORAGE if news.is_storage else MEDIUM_CPU
    if not news.is_stored:
        return BlockRemoved(block_hashes=hashes, medium=medium, group_idx=kept.place)
    return BlockStored(
        block_hashes=hashes,
        parent_block_hash=None if chunk.parent is None else maybe_convert_block_hash(chunk.parent),
        token_ids=list(chunk.tokens),
        block_size=len(chunk.tokens) // len(hashes),
        lora_id=lora.lora_int_id if lora else None,
        lora_name=lora.lora_name if lora else None,
        medium=medium,
        group_idx=kept.place,
    )


def _model(vllm_config: VllmConfig) -> str:
    """Names the weights, as far as vLLM knows them, and the shape that they are given."""
    model = vllm_config.model_config
    shape = {name: value for name, value in model.hf_config.to_dict().items() if name != "transformers_version"}
    digest = hashlib.sha256(json.dumps(shape, sort_keys=True, default=str).encode()).hexdigest()
    return f"{model.model}@{model.revision or ''} {model.dtype} {model.quantization or ''} {digest[:16]}"


def _stages(vllm_config: VllmConfig) -> list[int]:
    """How many of the model's layers each pipeline stage has."""
    stages = vllm_config.parallel_config.pipeline_parallel_size
    layers = vllm_config.model_config.get_total_num_hidden_layers()
    bounds = (get_pp_indices(layers, stage, stages) for stage in range(stages))
    return [end - first for first, end in bounds]


def _stream(device: torch.device) -> Callable[[], int]:
    """The stream that vLLM's kernels are on; the CPU has none."""
    if device.type == "cpu":
        return lambda: 0
    return lambda: int(torch.cuda.current_stream(device).cuda_stream)


def _step(metadata: KVConnectorMetadata) -> Step:
    assert isinstance(metadata, Metadata)
    return metadata.step
