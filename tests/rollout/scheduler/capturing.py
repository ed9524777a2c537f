"""SGLang's own model runners, of a target and of drafters, and what its capturers keep of them. In SGLang's process.

Real: ``ModelRunner.forward`` and ``init_*_capturer``, the capturers with their buffers, and what writes to them
(``TopK``; ``maybe_capture_indexer_topk``). Stand-ins: the model's other layers, and the loading of a model.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

from . import engine

LAYERS, TOKENS, ROWS = 3, 4, 32
#: What the target chooses for every token in every layer, and a drafter.
TARGET, DRAFT = (0, 1), (2, 3)
EXPERTS = ("sglang.srt.layers.moe.routed_experts_capturer", "sglang.srt.state_capturer.routed_experts")
INDEXER = "sglang.srt.state_capturer.indexer_topk"

#: Modules that ask what SGLang's start has set up for all.
_HOMES = (*EXPERTS, INDEXER, engine.RUNNER, "sglang.srt.server_args", "sglang.srt.mem_cache.pool_host.common")

Layer = Callable[[Any], None]


def everything(*, patched: bool) -> dict[str, Any]:
    """What became of the target's rows beside drafters, by what is recorded and how; what a release lacks is absent.

    Args:
        patched: the plugin is active, so the stand-in for ``load_model`` gets its patch.
    """
    found: dict[str, Any] = {"distribution": distribution(patched)}
    experts = _experts_module()
    if experts is not None:
        later = hasattr(experts, "BaseTopkCapturer")  # SGLang knows how to copy rows to the host later
        cases = [(count, overlap) for count in (1, 3) for overlap in ((False, True) if later else (False,))]
        for count, overlap in cases:
            with _one_rank(overlap):
                found[f"experts, {count} drafters, overlap {overlap}"] = _experts_flow(experts, count, patched)
    if engine.module_of(INDEXER) is not None:
        with _one_rank(overlap=False):
            found["indexer"] = _indexer_flow(patched)
    return found


def _experts_module() -> Any:
    """Where the capturer is; None where the runner has none, or leaves drafters out."""
    init = getattr(importlib.import_module(engine.RUNNER).ModelRunner, "init_routed_experts_capturer", None)
    if init is None or "is_draft_worker" in inspect.unwrap(init).__code__.co_names:
        return None
    return engine.module_of(EXPERTS[0]) or engine.module_of(EXPERTS[1])


@contextlib.contextmanager
def _one_rank(overlap: bool) -> Iterator[None]:
    """SGLang's world is one rank, and no memory can be pinned."""
    import torch

    arguments, zeros = _arguments(overlap), torch.zeros
    values: dict[str, Any] = {
        "get_global_server_args": lambda: arguments,
        "get_schedule": lambda: arguments,
        "get_exec": lambda: SimpleNamespace(features=arguments, moe=arguments),
        "get_parallel": lambda: SimpleNamespace(dp_size=1, num_dp_ranks=1, attn_tp_size=1),
        "get_attention_tp_size": lambda: 1,
        "_cuda_host_register": lambda *args: None,
        "build_step_span_name": lambda *args, **kwargs: "step",  # for a profiler
        "is_dp_attention_enabled": lambda: False,
        "get_moe_a2a_backend": lambda: SimpleNamespace(is_deepep=lambda: False, is_deepep_v2=lambda: False),
    }
    modules = [module for name in _HOMES if (module := engine.module_of(name)) is not None]
    before = [{name: vars(module)[name] for name in values if name in vars(module)} for module in modules]
    torch.zeros = lambda *args, pin_memory=False, **kwargs: zeros(*args, **kwargs)
    try:
        for module in modules:
            engine._substitute(module, **values)
        yield
    finally:
        torch.zeros = zeros
        for module, names in zip(modules, before, strict=True):
            vars(module).update(names)


def _arguments(overlap: bool) -> SimpleNamespace:
    return SimpleNamespace(
        enable_return_routed_experts=True,
        enable_return_indexer_topk=True,
        expert_distribution_recorder_mode="stat",
        disable_shared_experts_fusion=True,
        disable_overlap_schedule=not overlap,
        chunked_prefill_size=ROWS,
        dp_size=1,
        elastic_ep_backend=None,
    )


class _Runners:
    """The runners of one scheduler process."""

    def __init__(self, patched: bool, overlap: bool = False) -> None:
        self._patched, self._overlap = patched, overlap
        self._class = importlib.import_module(engine.RUNNER).ModelRunner

    def make(self, layers: list[Layer], *, draft: bool) -> Any:
        """SGLang's ``ModelRunner`` with a model of these layers, as its ``load_model`` leaves it."""
        from verl_mtp_plugin.rollout.sglang import capturers

        model = _Model(layers)
        runner = object.__new__(self._class)
        vars(runner).update(
            model=model,
            is_draft_worker=draft,
            server_args=_arguments(self._overlap),
            model_config=SimpleNamespace(
                hf_text_config=SimpleNamespace(num_hidden_layers=LAYERS, num_experts_per_tok=2, index_topk=2)
            ),
            max_total_num_tokens=ROWS - 1,
            kv_index_translator=SimpleNamespace(capture_token_capacity=lambda tokens: tokens + 1),
            page_size=1,
            max_running_requests=TOKENS,
            device="cpu",
            forward_pass_id=0,
            enable_elastic_ep=False,
            enable_hisparse=False,
            is_hybrid_swa=False,
            _forward_raw=lambda batch, *args: SimpleNamespace(can_run_graph=False, done=model.forward(batch)),
            **dict.fromkeys(("msprobe_debugger", "graph_runner", "decode_cuda_graph_runner", "eplb_manager")),
            **dict.fromkeys(("canary_manager", "gpu_id", "dp_size")),
        )
        if self._patched:
            capturers.load_model(lambda self: None, runner)
        return runner


class _Model:
    def __init__(self, layers: list[Layer]) -> None:
        self.layers = layers

    def forward(self, batch: Any) -> bool:
        for layer in self.layers:
            layer(batch)
        return True


def _batch(rows: list[int]) -> Any:
    """A forward batch of tokens in these rows of the KV cache."""
    import torch

    return SimpleNamespace(
        out_cache_loc=torch.tensor(rows),
        out_cache_loc_virtual=None,
        apply_deprecated_skip_attn_backend_init=lambda skip: None,
    )


def _turns(target: Any, drafters: list[Any], host: Callable[[], Any]) -> list[int]:
    """EAGLE's order: the target prefills or verifies, then each drafter runs over the same rows, in another order.

    Returns:
        The target's layers of which what is on the host is not what the target chose.
    """
    rows = list(range(1, TOKENS + 1))
    outputs = []
    for drafter in drafters:
        drafter.model.forward(_batch(rows))  # as a CUDA graph of it is captured
    for turn in range(2):
        used = [row + turn * TOKENS for row in rows]
        outputs.append(target.forward(_batch(used)))
        for drafter in drafters:
            outputs.append(drafter.forward(_batch(used[::-1])))
            drafter.model.forward(_batch(used))
    for output in outputs:  # what an overlapping scheduler does when it looks at results
        for name in ("routed_experts_output", "indexer_topk_output"):
            if getattr(output, name, None) is not None:
                getattr(output, name).finalize()
    written = host()[1 : 2 * TOKENS + 1].sort(dim=-1).values
    return [layer for layer in range(LAYERS) if not (written[:, layer] == written.new_tensor(TARGET)).all()]


def _experts_flow(module: Any, count: int, patched: bool) -> dict[str, Any]:
    import torch

    topk = importlib.import_module("sglang.srt.layers.moe.topk").TopK

    def layer(index: int, chosen: tuple[int, int]) -> Layer:
        choose, logits = topk(top_k=2, layer_id=index), torch.zeros(4)
        logits[list(chosen)] = 5.0
        return lambda batch: choose(
            torch.zeros(len(batch.out_cache_loc), 8), logits.repeat(len(batch.out_cache_loc), 1)
        )

    get = module.get_global_experts_capturer
    overlap = not importlib.import_module(engine.RUNNER).get_global_server_args().disable_overlap_schedule
    runners = _Runners(patched, overlap)
    target = runners.make([layer(index, TARGET) for index in range(LAYERS)], draft=False)
    target.init_routed_experts_capturer()
    first = get()
    drafters = [runners.make([layer(0, DRAFT)], draft=True) for _ in range(count)]
    for drafter in drafters:
        drafter.init_routed_experts_capturer()
    kept = get() is first
    return {"kept": kept, "wrong_layers": _turns(target, drafters, lambda: get().host_cache.buffer)}


def _indexer_flow(patched: bool) -> dict[str, Any]:
    """The target's capturer is put there: SGLang makes none without a GPU. The drafter's runner is SGLang's."""
    import torch

    module: Any = engine.module_of(INDEXER)
    sizes = {"num_tokens": ROWS, "num_indexer_layers": LAYERS, "index_topk": 2, "max_running_requests": TOKENS}
    first = module.IndexerTopkCapturer(**sizes, device="cpu")
    module.set_global_indexer_capturer(first)

    def layer(index: int, chosen: tuple[int, int]) -> Layer:
        rows = torch.tensor([chosen], dtype=torch.int32)
        return lambda batch: module.maybe_capture_indexer_topk(index, rows.repeat(len(batch.out_cache_loc), 1))

    runners = _Runners(patched)
    target = runners.make([layer(index, TARGET) for index in range(LAYERS)], draft=False)
    drafter = runners.make([layer(0, DRAFT)], draft=True)
    drafter.init_indexer_capturer()
    kept = module.get_global_indexer_capturer() is first
    module.set_global_indexer_capturer(first)  # on a GPU the drafter's is like it, and has its place
    try:
        return {"kept": kept, "wrong_layers": _turns(target, [drafter], lambda: first.host_cache.buffer)}
    finally:
        module.set_global_indexer_capturer(None)


def distribution(patched: bool) -> dict[str, list[int]]:
    """How many forward passes and choices of experts SGLang's recorder is told of, by whose they are."""
    runner: Any = importlib.import_module(engine.RUNNER)

    class Counts(runner.ExpertDistributionRecorder):
        """In the place of SGLang's own, which needs to know where experts lie on GPUs."""

        passes = choices = 0

        @contextlib.contextmanager
        def with_forward_pass(self, forward_pass_id: int, forward_batch: Any) -> Iterator[dict[str, Any]]:
            self.passes += 1
            yield {}

        def on_select_experts(self, topk_ids: Any) -> None:
            self.choices += 1

    def layer(batch: Any) -> None:
        runner.get_global_expert_distribution_recorder().on_select_experts(topk_ids=None)

    before, found = runner.get_global_expert_distribution_recorder(), {}
    try:
        for role in ("target", "draft"):
            one = _Runners(patched).make([layer], draft=role == "draft")
            counts = Counts()
            runner.set_global_expert_distribution_recorder(counts)
            with _one_rank(overlap=False):
                one.forward(_batch([1]))
            one.model.forward(_batch([1]))
            found[role] = [counts.passes, counts.choices]
            assert runner.get_global_expert_distribution_recorder() is counts
    finally:
        runner.set_global_expert_distribution_recorder(before)
    return found
