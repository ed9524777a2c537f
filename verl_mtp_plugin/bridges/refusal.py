"""What to say where a bridge cannot do a model's MTP: why, and what can."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from ..environment import installed_version
from ..errors import UnsupportedError
from ..models.family import BRIDGES, MBRIDGE, MEGATRON_BRIDGE, ModelFamily
from ..models.lookup import family_of
from .support import Support, label

#: The option of verl by which each bridge is chosen.
CHOICES: Final = {
    MBRIDGE: "actor_rollout_ref.actor.megatron.vanilla_mbridge=True",
    MEGATRON_BRIDGE: "actor_rollout_ref.actor.megatron.vanilla_mbridge=False",
}
REGISTER: Final = (
    "To register support, describe a family in the hook verl_mtp_models and mend a bridge in verl_mtp_patches: "
    "help(verl_mtp_plugin.hookspecs)."
)
WITHOUT: Final = "To train without MTP set actor_rollout_ref.model.mtp.enable=False."


def unsupported(hf_config: Any, support: Support, families: Iterable[ModelFamily]) -> UnsupportedError:
    """The error for a model whose MTP a bridge cannot build and convert.

    Args:
        hf_config: the model's Hugging Face config.
        support: the bridge's answer.
        families: all that are known; their ``since`` makes the advice, and nothing else.
    """
    families = tuple(families)
    advice = (support.advice, *_advice(support.bridge, family_of(hf_config, families), families))
    return UnsupportedError(
        found=f"{_model(hf_config, families)} with {support.label}: {support.detail}",
        expected="a bridge that builds and converts this model's MTP layers, since mtp.enable=True",
        advice=" ".join(filter(None, advice)),
    )


def unknown_model(hf_config: Any, families: Iterable[ModelFamily], *, vanilla: bool) -> UnsupportedError | None:
    """The error for a model that the installed bridge has no class for; None if it has one, or cannot be asked.

    Args:
        hf_config: the model's Hugging Face config.
        families: as in :func:`unsupported`.
        vanilla: verl's ``vanilla_mbridge``: whether the bridge is mbridge.
    """
    from . import mbridge, megatron_bridge

    try:
        known = (mbridge if vanilla else megatron_bridge).knows(hf_config)
    except Exception:  # not installed, or moved: what failed before this was asked says it better
        return None
    if known:
        return None
    bridge = MBRIDGE if vanilla else MEGATRON_BRIDGE
    return unsupported(hf_config, Support(bridge, False, "it has no bridge class for this model"), families)


def _model(hf_config: Any, families: tuple[ModelFamily, ...]) -> str:
    """``"MiMoForCausalLM (model_type mimo, family MiMo)"``."""
    family = family_of(hf_config, families)
    architectures = ", ".join(getattr(hf_config, "architectures", None) or ()) or "a model without architectures"
    known = f"family {family.name}" if family else "of no known family"
    return f"{architectures} (model_type {getattr(hf_config, 'model_type', None)}, {known})"


def _advice(bridge: str, family: ModelFamily | None, families: tuple[ModelFamily, ...]) -> Iterable[str]:
    if family is not None:
        yield from _ways_out(bridge, family)
    others = dict.fromkeys(known.name for known in families if known is not family and _supports(known, bridge))
    if others:
        yield f"{label(bridge)} does the MTP of {', '.join(others)}."
    yield REGISTER
    yield WITHOUT


def _ways_out(bridge: str, family: ModelFamily) -> Iterable[str]:
    """A newer release of the same bridge, and the other bridge."""
    if bridge in family.since and not _supports(family, bridge):
        yield f"{bridge} does {family.name} from {family.since[bridge]} on."
    for other in BRIDGES:
        if other != bridge and other in family.since:
            state = "" if _supports(family, other) else f"; {installed_version(other) or 'none'} is installed"
            yield f"{other} does it from {family.since[other]} on{state}: {CHOICES[other]}."


def _supports(family: ModelFamily, bridge: str) -> bool:
    """Whether the installed release of a bridge is known to do a family's MTP."""
    since, installed = family.since.get(bridge), installed_version(bridge)
    return since is not None and installed is not None and _release(installed) >= _release(since)


def _release(version: str) -> tuple[int, ...]:
    """``"0.4.0rc1"`` as ``(0, 4)``: enough for advice, and no requirement."""
    numbers = re.match(r"\d+(\.\d+)*", version)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else []
    while parts and not parts[-1]:
        parts.pop()
    return tuple(parts)
