"""Can this mbridge object build and convert a model's MTP layers? Asked before any weight is loaded.

mbridge has one class for each model type. Its config says how many MTP layers there will be, its arguments for
``GPTModel`` whether they are built, and its name mapping whether their weights can be loaded and exported.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, Final

from ..models.family import MBRIDGE
from .probing import ATTENTION_OUTPUT, NORMS, built_layers, inner_layer, projections, said, wrong_number
from .support import Support

#: What ``GPTModel`` builds its MTP layers from.
SPEC: Final = "mtp_block_spec"
#: What names begin with in models of text alone, and in those that see images.
PREFIXES: Final = ("", "language_model.")
ARGUMENTS: Final = "_get_gptmodel_args"
#: Megatron's and verl's name for the number of virtual pipeline stages on each rank.
VIRTUAL: Final = "virtual_pipeline_model_parallel_size"
WITHOUT_VIRTUAL: Final = (
    f"Set actor_rollout_ref.actor.megatron.{VIRTUAL}=null, or use Megatron-Bridge, which trains MTP with virtual "
    "pipelining (actor_rollout_ref.actor.megatron.vanilla_mbridge=False)."
)


def knows(hf_config: Any) -> bool:
    """Whether mbridge has a class for a Hugging Face config's model."""
    from mbridge import AutoBridge

    return getattr(hf_config, "model_type", None) in AutoBridge.list_supported_models()


def probe(bridge: Any, layers: int) -> Support:
    """Ask an mbridge object for its MTP. The answer is the same on all ranks, with or without process groups.

    Args:
        bridge: what ``mbridge.AutoBridge.from_config`` returned, after ``set_extra_args``.
        layers: the number of MTP layers that the Hugging Face config promises.

    Returns:
        ``supported`` is None where this mbridge has not what is asked here.
    """
    try:
        why_not = _why_not(bridge, layers)
        virtual = why_not is not None and _because_of_virtual_stages(bridge, layers)
    except Exception as error:  # a private method that moved, for one: no answer, and no reason to fail
        return Support(MBRIDGE, None, f"{type(bridge).__name__} could not be asked: {said(error)}")
    if virtual:
        stages = f"{VIRTUAL}={getattr(bridge.config, VIRTUAL)}"
        return Support(MBRIDGE, False, f"not with virtual pipelining ({stages}): {why_not}", advice=WITHOUT_VIRTUAL)
    if why_not is not None:
        return Support(MBRIDGE, False, why_not)
    return Support(MBRIDGE, True, f"{type(bridge).__name__} builds the MTP layers and names their weights")


def _why_not(bridge: Any, layers: int) -> str | None:
    return (
        wrong_number(type(bridge).__name__, bridge.config.mtp_num_layers, layers)
        or _not_built(bridge)
        or _not_named(bridge, layers)
    )


def _because_of_virtual_stages(bridge: Any, layers: int) -> bool:
    """Whether the answer were yes without virtual pipelining, which some of mbridge's classes know nothing of."""
    from megatron.core import parallel_state

    before = getattr(bridge.config, VIRTUAL, None), parallel_state.get_virtual_pipeline_model_parallel_world_size()
    if not any(before):
        return False
    setattr(bridge.config, VIRTUAL, None)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
    try:
        return _why_not(bridge, layers) is None
    finally:
        setattr(bridge.config, VIRTUAL, before[0])
        parallel_state.set_virtual_pipeline_model_parallel_world_size(before[1])


def _not_built(bridge: Any) -> str | None:
    """Why ``GPTModel`` would get no MTP layers."""
    name = type(bridge).__name__
    try:
        with _last_stage(bridge.config):
            arguments: dict[str, Any] = getattr(bridge, ARGUMENTS, dict)()
    except Exception as error:
        if not _has_transformer_engine():
            raise RuntimeError("without TransformerEngine it makes no layer specs") from error
        return f"{name} cannot build the MTP layers: {said(error)}"
    if SPEC in arguments or _writes_spec(type(bridge)):
        return None
    return f"{name} gives GPTModel no {SPEC}, so none would be built in spite of its config"


def _has_transformer_engine() -> bool:
    from megatron.core.models.gpt import gpt_layer_specs

    return gpt_layer_specs.HAVE_TE


@contextmanager
def _last_stage(config: Any) -> Iterator[None]:
    """Within it Megatron takes this rank for one of the last pipeline stage: the others make no MTP specs."""
    from megatron.core import parallel_state

    stages = config.pipeline_model_parallel_size
    before = vars(parallel_state)
    rank, size = before["_MPU_PIPELINE_MODEL_PARALLEL_RANK"], before["_MPU_PIPELINE_MODEL_PARALLEL_WORLD_SIZE"]
    parallel_state.set_pipeline_model_parallel_rank(stages - 1)
    parallel_state.set_pipeline_model_parallel_world_size(stages)
    try:
        yield
    finally:
        parallel_state.set_pipeline_model_parallel_rank(rank)
        parallel_state.set_pipeline_model_parallel_world_size(size)


def _writes_spec(cls: type) -> bool:
    """Whether a class, elsewhere than in the arguments that were asked for already, handles an MTP block spec."""
    methods = (vars(owner)[name] for owner in cls.__mro__ for name in vars(owner) if name != ARGUMENTS)
    codes = (getattr(inspect.unwrap(method), "__code__", None) for method in methods)
    return any(_names(code, SPEC) for code in codes if code is not None)


def _names(code: CodeType, name: str) -> bool:
    """Whether code, or a function within it, has a name as variable, attribute, argument or string."""
    if name in (*code.co_names, *code.co_varnames):
        return True
    for constant in code.co_consts:
        if constant == name or (isinstance(constant, tuple) and name in constant):
            return True
        if isinstance(constant, CodeType) and _names(constant, name):
            return True
    return False


def _not_named(bridge: Any, layers: int) -> str | None:
    """Which parameter of the MTP layers has no tensor of its own in the checkpoint."""
    reasons = [_unnamed(bridge, layers, prefix, projection) for prefix in PREFIXES for projection in projections()]
    return None if None in reasons else reasons[0]


def _unnamed(bridge: Any, layers: int, prefix: str, projection: tuple[str, ...]) -> str | None:
    cls, inner = type(bridge).__name__, inner_layer()
    owners = _trunk(bridge, prefix)
    for layer in built_layers(bridge.config, layers):
        for name in (*(f"{part}.weight" for part in (*projection, *NORMS)), f"{inner}.{ATTENTION_OUTPUT}"):
            parameter = f"{prefix}{layer}.{name}"
            try:
                tensors = list(bridge._weight_name_mapping_mcore_to_hf(parameter))
            except Exception as error:
                return f"{cls} does not know {parameter}: {said(error)}"
            for tensor in tensors:
                owner = owners.setdefault(tensor, parameter)
                if owner != parameter:
                    return f"{cls} loads {parameter} from {tensor}, which is {owner}"
    return None


def _trunk(bridge: Any, prefix: str) -> dict[str, str]:
    """Tensors of the trunk that a mapping may confuse with those of an MTP layer: which parameter each one is."""
    owners: dict[str, str] = {}
    for layer in range(bridge.config.num_layers):
        parameter = f"{prefix}decoder.layers.{layer}.{ATTENTION_OUTPUT}"
        try:
            owners.update(dict.fromkeys(bridge._weight_name_mapping_mcore_to_hf(parameter), parameter))
        except Exception:  # a layer without this attention
            continue
    return owners
