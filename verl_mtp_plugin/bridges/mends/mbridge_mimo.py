"""MiMo through mbridge: builds with MTP, and loads and saves the MTP head as Hugging Face's MiMo means it.

mbridge 0.15.1, the newest on PyPI, hands the TransformerConfig over where Megatron wants a layer spec, so no MiMo with
MTP builds. It also copies MiMo's ``input_proj`` straight into Megatron's ``eh_proj``, although MiMo joins ``[hidden,
embedding]`` and Megatron ``[embedding, hidden]``: the checkpoint would load, and draft nonsense.

Each probe asks the class what it does with one name or one small tensor, so a fixed mbridge is left alone whatever its
version. Not critical: a job with another model family must not fail over MiMo's bridge.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from ...environment import Environment
from ...patching import Patch, PatchSet, Target, Verdict, applicable, around, not_needed, unsupported

if TYPE_CHECKING:
    from torch import Tensor

MODULE: Final = "mbridge.models.mimo"
UPSTREAM: Final = "fixed on mbridge's main after 0.15.1; delete when 0.15.1 is no longer supported"
UPSTREAM_NAMES: Final = "megatron-core 0.17 renamed the layer; delete when mbridge's MimoBridge knows both names"

EH_PROJ: Final = "mtp.layers.0.eh_proj.weight"
#: Megatron's names for the transformer layer inside an MTP layer, from 0.17 on and before. mbridge knows the latter.
LAYER_NAME: Final = ".mtp_model_layer."
OLD_LAYER_NAME: Final = ".transformer_layer."


def swap_halves(weight: Tensor) -> Tensor:
    """``[h, 2h]`` with the columns for the embedding and those for the hidden state exchanged. Its own inverse."""
    return weight.roll(weight.shape[1] // 2, dims=1)


# -- what each replacement does around the original --------------------------------------------------------------------


def _mtp_block_spec(original: Callable[..., Any], config: Any, spec: Any, *args: Any, **kwargs: Any) -> Any:
    """``get_gpt_mtp_block_spec`` that takes a config, given in place of the spec, to mean that config's layers."""
    if spec is config:
        from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec

        given = inspect.signature(original).bind(config, spec, *args, **kwargs).arguments
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=given["use_transformer_engine"])
    return original(config, spec, *args, **kwargs)


def _to_mcore(original: Callable[..., Any], bridge: Any, name: str, weights: list[Tensor]) -> Any:
    weight = original(bridge, name, weights)
    return swap_halves(weight) if name.endswith("eh_proj.weight") else weight


def _to_hf(original: Callable[..., Any], bridge: Any, name: str, weight: Tensor, *args: Any, **kwargs: Any) -> Any:
    if name.endswith("eh_proj.weight"):
        weight = swap_halves(weight)
    return original(bridge, name, weight, *args, **kwargs)


def _hf_names(original: Callable[..., Any], bridge: Any, name: str) -> Any:
    return original(bridge, name.replace(LAYER_NAME, OLD_LAYER_NAME))


class _WithOldModelType:
    """Megatron's ``ModelType`` and a member that no model has: mbridge compares with it before it builds one."""

    encoder_and_decoder: Final = object()

    def __init__(self, model_type: Any) -> None:
        self._model_type = model_type

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model_type, name)

    def __call__(self, value: Any) -> Any:
        return self._model_type(value)


# -- probes ------------------------------------------------------------------------------------------------------------


def _blank(module: ModuleType) -> Any:
    """A MimoBridge with just enough state to convert a name or a tensor: no config, no process groups."""
    bridge = object.__new__(module.MimoBridge)
    bridge.dtype = bridge.make_vocab_size_divisible_by = None
    return bridge


def _asks_for_a_spec(environment: Environment, module: ModuleType) -> Verdict:
    code = inspect.unwrap(module.MimoBridge._get_gptmodel_args).__code__
    makers = [name for name in code.co_names if "spec" in name and name != "get_gpt_mtp_block_spec"]
    if makers:
        return not_needed(f"MimoBridge._get_gptmodel_args asks {makers[0]} for the layer spec")
    return applicable("MimoBridge._get_gptmodel_args passes its config as the layer spec")


def _swaps(convert: Callable[[Any, Tensor], Tensor]) -> Callable[[Environment, ModuleType], Verdict]:
    """A probe: what comes out when the columns 0 and 1 of an eh_proj for h = 1 go in."""

    def decide(environment: Environment, module: ModuleType) -> Verdict:
        import torch  # mbridge has imported it

        found = convert(_blank(module), torch.tensor([[0.0, 1.0]])).tolist()
        if found == [[1.0, 0.0]]:
            return not_needed("MimoBridge exchanges the halves of eh_proj itself")
        if found == [[0.0, 1.0]]:
            return applicable("MimoBridge copies input_proj and eh_proj as they are")
        return unsupported(
            found=f"a conversion of eh_proj that makes {found} of [[0.0, 1.0]]",
            expected="its halves in place, or exchanged",
            advice="check MimoBridge against Hugging Face's MiMo",
        )

    return decide


def _knows_the_new_name(environment: Environment, module: ModuleType) -> Verdict:
    try:
        names = _blank(module)._convert_mtp_param(f"mtp.layers.0{LAYER_NAME}mlp.linear_fc2.weight")
    except NotImplementedError:
        return applicable(f"MimoBridge knows only {OLD_LAYER_NAME.strip('.')}")
    return not_needed(f"MimoBridge maps {LAYER_NAME.strip('.')} to {names[0]}")


def _has_the_old_model_type(environment: Environment, module: ModuleType) -> Verdict:
    if hasattr(module.ModelType, "encoder_and_decoder"):
        return not_needed("megatron-core has ModelType.encoder_and_decoder")
    if "encoder_and_decoder" not in inspect.getsource(module):
        return not_needed("mbridge does not ask for ModelType.encoder_and_decoder")
    return applicable("mbridge asks for ModelType.encoder_and_decoder, which megatron-core no longer has")


_REASON_HALVES: Final = (
    "a MiMo checkpoint's MTP head loads with the roles of embedding and hidden state exchanged, so its drafts are noise"
)

MIMO: Final = PatchSet(
    "bridge.mbridge_mimo",
    (
        Patch(
            id="bridge.mbridge_mimo.layer_spec",
            target=Target(MODULE, "get_gpt_mtp_block_spec"),
            reason='building MiMo with MTP ends in ValueError("Invalid spec: TransformerConfig(...)")',
            upstream=UPSTREAM,
            decide=_asks_for_a_spec,
            build=around(_mtp_block_spec),
        ),
        Patch(
            id="bridge.mbridge_mimo.load",
            target=Target(MODULE, "MimoBridge._weight_to_mcore_format"),
            reason=_REASON_HALVES,
            upstream=UPSTREAM,
            decide=_swaps(lambda bridge, weight: bridge._weight_to_mcore_format(EH_PROJ, [weight])),
            build=around(_to_mcore),
        ),
        Patch(
            id="bridge.mbridge_mimo.save",
            target=Target(MODULE, "MimoBridge._weight_to_hf_format"),
            reason="the MTP head goes to the rollout engine and to checkpoints with its halves exchanged",
            upstream=UPSTREAM,
            decide=_swaps(lambda bridge, weight: bridge._weight_to_hf_format(EH_PROJ, weight)[1][0]),
            build=around(_to_hf),
        ),
        Patch(
            id="bridge.mbridge_mimo.names",
            target=Target(MODULE, "MimoBridge._convert_mtp_param"),
            reason="with megatron-core >= 0.17 loading MiMo raises NotImplementedError for mtp_model_layer.*",
            upstream=UPSTREAM_NAMES,
            decide=_knows_the_new_name,
            build=around(_hf_names),
        ),
    ),
)

MODEL_TYPE: Final = Patch(
    id="bridge.mbridge_model_type",
    target=Target("mbridge.core.util", "ModelType"),
    reason="mbridge 0.15.1 builds no model at all on megatron-core >= 0.17: AttributeError: encoder_and_decoder",
    upstream="delete when the oldest supported mbridge no longer names ModelType.encoder_and_decoder",
    decide=_has_the_old_model_type,
    build=_WithOldModelType,
    absent_ok=True,  # mbridge's main does not import it there
)

PATCHES: Final[tuple[Patch | PatchSet, ...]] = (MIMO, MODEL_TYPE)
