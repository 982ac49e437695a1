"""The classes that TensorRT-LLM loads: they translate between its interface and the two sides. Never run on the engine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Optional

from tensorrt_llm._torch.pyexecutor.connectors.kv_cache_connector import (
    KvCacheConnectorScheduler,
    KvCacheConnectorWorker,
    SchedulerOutput,
)
from tensorrt_llm._utils import mpi_rank

from ..cache import Cache
from ..errors import UnsupportedError
from ..pages import pages
from ..space import Space
from .plan import Grid, Group, Step
from .scheduler import Scheduler
from .settings import Settings, settings
from .worker import Paged, Worker, paged

if TYPE_CHECKING:
    import torch
    from tensorrt_llm._torch.pyexecutor.connectors.kv_cache_layout import KvCacheLayout
    from tensorrt_llm.bindings.internal.batch_manager import LlmRequest
    from tensorrt_llm.llmapi.llm_args import TorchLlmArgs

# The worker of this process tells the scheduler which layer groups there are. Both are made on rank 0, the worker's cache first.
_registered: Optional[list[Paged]] = None


def chosen_by(llm_args: TorchLlmArgs) -> Settings:
    """The settings, by the engine's options and the environment."""
    return settings(getattr(llm_args.kv_connector_config, "server_url", None) or "", os.environ)


def open_space(cache: Cache, chosen: Settings, llm_args: TorchLlmArgs) -> Space:
    """The space of an engine's blocks, the same for all its processes, and all that may read them. Shapes are compared besides."""
    config = llm_args.kv_cache_config
    layout = ", ".join(
        (
            f"trtllm {llm_args.dtype}",
            f"kv {config.dtype}",
            f"block {config.tokens_per_block}",
            f"tp {llm_args.tensor_parallel_size}",
            f"pp {llm_args.pipeline_parallel_size}",
        )
    )
    model = chosen.model or f"{llm_args.model}@{getattr(llm_args, 'revision', None)}"
    return cache.space(model, layout, chosen.tenant, generation=chosen.generation)


class KvkeepWorker(KvCacheConnectorWorker):
    """Loads and stores the pages of one rank."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        super().__init__(llm_args)
        self._chosen = chosen_by(llm_args)
        self._cache = Cache(connect=self._chosen.connect)
        self._worker: Optional[Worker] = None

    def register_kv_caches(self, kv_cache_tensor: torch.Tensor) -> None:
        """The cache as one tensor, whose axis 0 counts pages."""
        read = pages(kv_cache_tensor)
        self._register([Paged(Group(0), read.segments, read.block_count)], read.device or 0)

    def register_kv_cache_layout(self, layout: KvCacheLayout) -> None:
        """The cache as regions."""
        import torch

        self._register(paged(layout), torch.cuda.current_device())

    def start_load_kv(self, stream: torch.cuda.Stream) -> None:
        """Before the model runs."""
        if step := self._step():
            self._at_work().begin_loads(step.loads, stream.cuda_stream)

    def wait_for_layer_load(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """In front of each layer."""
        self._at_work().wait_layer(layer_idx, stream.cuda_stream)

    def save_kv_layer(self, layer_idx: int, stream: torch.cuda.Stream) -> None:
        """Blocks are stored whole, when the model has run."""

    def wait_for_save(self, stream: torch.cuda.Stream) -> None:
        """When the model has run."""
        step = self._step()
        self._at_work().store(step.stores if step else [], stream.cuda_stream)

    def get_finished(
        self, finished_gen_req_ids: list[int], started_loading_req_ids: list[int]
    ) -> tuple[list[int], list[int]]:
        """Nothing is moved beside the steps."""
        return [], []

    def _register(self, groups: list[Paged], device: int) -> None:
        global _registered
        space = open_space(self._cache, self._chosen, self._llm_args)
        self._worker = Worker(space, self._cache, groups, mpi_rank(), self._chosen.save_ms, device)
        _registered = groups

    def _step(self) -> Optional[Step]:
        step: Optional[Step] = self.get_connector_meta()
        return step

    def _at_work(self) -> Worker:
        if self._worker is None:
            raise UnsupportedError("TensorRT-LLM has not registered its KV cache")
        return self._worker


class KvkeepScheduler(KvCacheConnectorScheduler):
    """Answers what can be loaded, on rank 0."""

    def __init__(self, llm_args: TorchLlmArgs) -> None:
        super().__init__(llm_args)
        self._chosen = chosen_by(llm_args)
        self._cache = Cache(connect=self._chosen.connect)
        self._space = open_space(self._cache, self._chosen, llm_args)
        self._side: Optional[Scheduler] = None

    def get_num_new_matched_tokens(self, request: LlmRequest, num_computed_tokens: int) -> tuple[int, bool]:
        """How many tokens can be loaded before the model runs."""
        return self._at_work().matched(request, num_computed_tokens)

    def cancel_load(self, request: LlmRequest, start: int, end: int) -> None:
        """The engine computes a part of what was offered."""
        self._at_work().cancelled(request, start, end)

    def update_state_after_alloc(self, request: LlmRequest, block_ids: list[int]) -> None:
        """Pages come with `build_connector_meta`."""

    def update_state_after_alloc_by_layer_group(
        self, request: LlmRequest, block_ids_by_layer_group: list[list[int]]
    ) -> None:
        """Pages come with `build_connector_meta`."""

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> Step:
        """What the workers do in this step."""
        return self._at_work().step(scheduler_output.new_requests, scheduler_output.cached_requests)

    def request_reset(self, request: LlmRequest) -> None:
        """The request's pages are another's now."""
        self._at_work().reset(request)

    def request_finished(self, request: LlmRequest, cache_block_ids: list[int]) -> bool:
        """The request is over."""
        return self._at_work().finished(request)

    def request_finished_by_layer_group(
        self, request: LlmRequest, cache_block_ids_by_layer_group: list[list[int]]
    ) -> bool:
        """The request is over."""
        return self._at_work().finished(request)

    def _at_work(self) -> Scheduler:
        if self._side is None:
            if _registered is None:
                raise UnsupportedError("kvkeep's scheduler needs a worker in its process, as TensorRT-LLM has on rank 0")
            args: Any = self._llm_args
            grid = Grid(
                args.kv_cache_config.tokens_per_block,
                tuple(one.group for one in _registered),
                args.tensor_parallel_size * args.pipeline_parallel_size,
            )
            self._side = Scheduler(self._space, grid, self._chosen)
        return self._side
