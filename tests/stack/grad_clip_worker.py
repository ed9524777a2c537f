"""Real megatron-core optimizers on models with and without MTP; prints what :mod:`.test_grad_clip` asks for, as JSON.

``python -m tests.stack.grad_clip_worker one KIND...``   one process
``python -m tests.stack.grad_clip_worker tp|pp|dp``      one of two processes, as torchrun describes it
"""

from __future__ import annotations

import gc
import importlib
import json
import sys
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch

from tests.contract.models import build
from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda
from verl_mtp_plugin.training import hooks
from verl_mtp_plugin.training.clipping import hooks as clip_hooks

from .grad_clip_run import CPU, KINDS, MAX_NORM, Kind, Run

CASES: dict[str, Callable[..., Any]] = {}


def case(function: Callable[..., Any]) -> Callable[..., Any]:
    CASES[function.__name__] = function
    return function


def prepare(**parallel: int) -> PatchEngine:
    cuda.install()
    torch.set_num_threads(1)
    from megatron.core import parallel_state, tensor_parallel

    cuda.install_megatron()
    cuda.init_process_group()
    parallel_state.initialize_model_parallel(**parallel)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    PatchEngine().arm([hooks.POSTPROCESS])
    engine = PatchEngine()
    engine.arm(clip_hooks.PATCHES)
    return engine


@case
def one(*kinds: str) -> dict[str, Any]:
    """Models trained with and without MTP, and with its clipping in all its ways."""
    engine = prepare()
    found: dict[str, Any] = {"kinds": {name: compare(KINDS[name]) for name in kinds}}
    found |= {"parameters": parameters(), "alone": alone(), "overflow": overflow(), "untraced": untraced()}
    found |= {"forgotten": forgotten(), "tensor": tensor_norm()}
    found["decisions"] = {record.id: str(record.decision) for record in engine.records()}
    engine.revert_all()
    found["reverted"] = Run(Kind(), track={"apart": True}).train().report()
    return found


def compare(kind: Kind, **model: Any) -> dict[str, Any]:
    return {
        "plain": Run(kind, mtp=False, **model).train().report(),
        "untracked": Run(kind, **model).train().report(),
        "joint": Run(kind, track={"apart": False}, **model).train().report(),
        "apart": Run(kind, track={"apart": True}, **model).train().report(),
        "max_norm": Run(kind, track={"apart": True, "max_norm": MAX_NORM}, **model).train().report(),
    }


def parameters() -> dict[str, bool]:
    """Which parameters count as MTP's when some of them are shared."""
    from verl_mtp_plugin.training.clipping.stepped import mtp_parameters

    model = build(CPU)
    own = {id(p) for p in model.mtp.parameters()}
    found = {"all": {id(p) for p in mtp_parameters(model)} == own and len(own) > 5}
    model.mtp.word_embeddings = model.embedding.word_embeddings
    model.mtp.twice = model.mtp.layers[0]
    found["without the model's embedding"] = {id(p) for p in mtp_parameters(model)} == own
    found["once each"] = len(mtp_parameters(model)) == len(own)
    first = next(model.mtp.layers[0].parameters())
    first.shared = True
    found["without another stage's"] = {id(p) for p in mtp_parameters(model)} == own - {id(first)}
    found["none without MTP"] = mtp_parameters(build(CPU, mtp=None)) == []
    return found


def alone() -> dict[str, Any]:
    """Optimizers that are no chain."""
    found: dict[str, Any] = {}
    for name in ("fp32", "bf16", "distributed"):
        for how, mtp, track in (("plain", False, None), ("joint", True, False), ("apart", True, True)):
            run = Run(KINDS[name], mtp=mtp, track=None if track is None else {"apart": track})
            (run.optimizer,) = run.optimizer.chained_optimizers
            found.setdefault(name, {})[how] = run.train().report()
    return found


def overflow() -> dict[str, Any]:
    """A step that Megatron skips, after one that it made; its own method is kept for it."""
    from verl_mtp_plugin.training.clipping.grad_clip import last_grad_norm

    run = Run(Kind(), track={"apart": True}).train(1)
    before = last_grad_norm(run.optimizer)
    run.optimizer.prepare_grads = lambda: True
    result = run.optimizer.step()
    return {"before": before, "result": result, "after": last_grad_norm(run.optimizer), "names": sorted(own(run))}


def own(run: Run) -> set[str]:
    return {"prepare_grads", "step_with_ready_grads"} & set(vars(run.optimizer))


def untraced() -> dict[str, Any]:
    """An optimizer with a parameter of which nobody can tell whether it is MTP's."""
    from verl_mtp_plugin.errors import UnsupportedError
    from verl_mtp_plugin.training.clipping.grad_clip import last_grad_norm

    def run_with_stranger(apart: bool) -> Run:
        run = Run(Kind(bf16=True), track={"apart": apart})
        run.backward()
        run.optimizer.param_groups[0]["params"].append(torch.zeros(1, requires_grad=True))
        return run

    joint, apart = run_with_stranger(False), run_with_stranger(True)
    joint.optimizer.step()
    try:
        apart.optimizer.step()
    except UnsupportedError as error:
        return {"found": error.found, "norm": last_grad_norm(joint.optimizer), "names": sorted(own(apart))}
    return {}


def forgotten() -> list[bool]:
    """Whether model and optimizer are gone once nobody else holds them."""
    run = Run(KINDS["distributed"], track={"apart": True}).train(1)
    references = [weakref.ref(run.model), weakref.ref(run.optimizer)]
    del run
    gc.collect()
    return [reference() is None for reference in references]


def tensor_norm() -> dict[str, Any] | None:
    """megatron-core 0.19 keeps norms on the device where TransformerEngine has a kernel that scales by a tensor."""
    clip_grads: Any = importlib.import_module("megatron.core.optimizer.clip_grads")
    name = "multi_tensor_scale_tensor_impl"
    if not hasattr(clip_grads, name):
        return None

    def scale(chunk: int, overflow: Any, lists: list[list[torch.Tensor]], by: torch.Tensor) -> None:
        for source, target in zip(*lists):
            target.copy_(source * by)

    setattr(clip_grads, name, scale)
    try:
        return compare(Kind())
    finally:
        setattr(clip_grads, name, None)


@case
def tp() -> dict[str, Any]:
    """Two halves of one model: real training."""
    prepare(tensor_model_parallel_size=2)
    return {name: compare(KINDS[name], tensor_model_parallel_size=2) for name in ("fp32", "distributed_bf16")}


@case
def pp() -> dict[str, Any]:
    """Two stages, of which only the last has MTP, with given gradients: it is the optimizer that is looked at."""
    prepare(pipeline_model_parallel_size=2)
    rank = torch.distributed.get_rank()
    return given(rank, ("fp32", "bf16", "distributed", "moe", "moe_distributed"), stage=(rank == 0, rank == 1))


@case
def dp() -> dict[str, Any]:
    """Two replicas with the same gradients, whose optimizers have a part of the parameters each."""
    prepare()
    return given(0, ("distributed", "distributed_bf16", "moe_distributed"))


def given(seed: int, kinds: tuple[str, ...], **model: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in kinds:
        for how, apart in (("joint", False), ("apart", True)):
            stages: dict[str, Any] = {"pipeline_model_parallel_size": 2} if "stage" in model else {}
            run = Run(KINDS[name], track={"apart": apart}, **model, **stages)
            for step in range(2):
                run.give_gradients(100 * step + seed)
                run.step()
            found.setdefault(name, {})[how] = run.report()
    return found


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print("=> " + json.dumps(CASES[sys.argv[1]](*sys.argv[2:])))
    cuda.end_process()
