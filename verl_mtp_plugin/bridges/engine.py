"""verl's engine asked, before any weights load, whether its bridge can build and convert the model's MTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .. import runtime
from ..errors import UnsupportedError
from ..models.lookup import promised_layers
from ..verl_fixes.mtp_config import OVERRIDE
from .built import check_mtp_is_built, check_no_mtp_is_built
from .refusal import unknown_model, unsupported
from .support import bridge_label
from .weights.export import check_export


def demand(bridge: Any, provider: Any, hf_config: Any, overrides: Mapping[str, Any]) -> None:
    """Check that a bridge which verl has just made can build and convert the MTP layers asked for.

    Args:
        bridge: mbridge's object with the overrides set, or a Megatron-Bridge ``AutoBridge``.
        provider: Megatron-Bridge's model provider, finalized; None with mbridge.
        hf_config: the model's Hugging Face config.
        overrides: verl's ``override_transformer_config``.

    Raises:
        UnsupportedError: it cannot, or the overrides take away what ``mtp.enable=True`` asks for.
    """
    if OVERRIDE in overrides and not overrides[OVERRIDE]:
        raise UnsupportedError(
            found=f"mtp.enable=True with override_transformer_config.{OVERRIDE}={overrides[OVERRIDE]}",
            expected="MTP either enabled or taken away",
            advice="Drop that override, or set actor_rollout_ref.model.mtp.enable=False.",
        )
    from . import mbridge, megatron_bridge

    layers = expected_layers(hf_config, overrides)
    if provider is None:
        support = mbridge.probe(bridge, layers)
    else:
        support = megatron_bridge.probe(bridge, provider, layers)
    if support.supported is False:
        raise unsupported(hf_config, support, runtime.models())


def expected_layers(hf_config: Any, overrides: Mapping[str, Any]) -> int:
    """The number of MTP layers to build: the user's override, or else what the Hugging Face config promises."""
    return int(overrides.get(OVERRIDE) or promised_layers(hf_config))


def build_tf_config(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine._build_tf_config``, which makes the bridge, and the bridge asked.

    Raises:
        UnsupportedError: MTP is enabled, and the bridge does not know the model or cannot do its MTP.
    """
    if not needs_mtp(engine):
        return original(engine, *args, **kwargs)
    config = engine.model_config
    with refusing_unknown(lambda: config.hf_config, vanilla=engine.engine_config.vanilla_mbridge):
        result = original(engine, *args, **kwargs)
    demand(engine.bridge, engine.provider, config.hf_config, engine.engine_config.override_transformer_config)
    return result


@contextmanager
def refusing_unknown(hf_config: Callable[[], Any], *, vanilla: bool) -> Iterator[None]:
    """Around the making of a bridge: where there is none for the model, say so as for one without MTP.

    Args:
        hf_config: gives the model's Hugging Face config; called after a failure alone.
        vanilla: whether the bridge is mbridge.

    Raises:
        UnsupportedError: the bridge does not know the model. Any other failure stays as it is.
    """
    try:
        yield
    except ValueError as error:  # what both bridges raise
        config = hf_config()
        refused = unknown_model(config, runtime.models(), vanilla=vanilla) if promised_layers(config) else None
        if refused is None:
            raise
        raise refused from error


def build_megatron_module(original: Any, engine: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngine._build_megatron_module``, and what came out of it looked at.

    Raises:
        UnsupportedError: MTP is enabled and was not built, not in full, or cannot be exported; or it was built although
            it is disabled.
    """
    modules = original(engine, *args, **kwargs)
    config = engine.model_config
    if needs_mtp(engine) or not config.mtp.enable:
        overrides = engine.engine_config.override_transformer_config
        vanilla, enabled = engine.vanilla_bridge, config.mtp.enable
        check_built(engine.bridge, modules, config.hf_config, overrides, vanilla=vanilla, enabled=enabled)
    return modules


def check_built(
    bridge: Any, modules: Any, hf_config: Any, overrides: Mapping[str, Any], *, vanilla: bool, enabled: bool
) -> None:
    """Look at a model that a bridge has built.

    Args:
        modules: the model chunks of this rank.
        overrides: verl's ``override_transformer_config``.
        vanilla: whether the bridge is mbridge.
        enabled: ``mtp.enable``.

    Raises:
        UnsupportedError: MTP is enabled and was not built, or not in full; or it is disabled and was built.
        MissingWeightsError: MTP layers that the bridge would not export to the rollout engine.
    """
    label = bridge_label(vanilla=vanilla)
    if not enabled:
        check_no_mtp_is_built(modules, bridge=label)
        return
    check_mtp_is_built(modules, expected_layers(hf_config, overrides), bridge=label)
    if bridge is not None:
        check_export(bridge, modules)


def needs_mtp(engine: Any) -> bool:
    """Whether MTP must be in what this engine builds: it is enabled, and the model predicts tokens and is trained.

    A value model has no labels. A reference model serves nobody's drafts.
    """
    return engine.model_config.mtp.enable and not _is_value_model(engine) and not engine.engine_config.forward_only


def _is_value_model(engine: Any) -> bool:
    # verl 0.7.1 sets the attribute late; the class is its other mark.
    by_class = any(cls.__name__ == "MegatronEngineWithValueHead" for cls in type(engine).__mro__)
    return by_class or getattr(engine, "is_value_model", False)
