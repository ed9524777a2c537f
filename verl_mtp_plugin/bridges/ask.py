"""Ask an installed bridge about a model family: with its sample config as a model folder, and nothing more.

The bridge is made as verl makes it, from the folder, and then probed as a job's bridge is. Nothing is downloaded, no
code but the installed packages' runs, no GPU is used, no weight is made, and nothing is left behind.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from .. import runtime
from ..environment import installed_version
from ..models.family import MBRIDGE, MEGATRON_BRIDGE, ModelFamily
from ..models.sample_folder import read_config, sample_folder
from ..patching.patch import Decision
from .support import Support

#: How long a reason may be, in characters.
DETAIL_LENGTH: Final = 200
NO_CLASS: Final = "it has no bridge class for this model"
#: What has no bearing on MTP, and may want TransformerEngine or a GPU where a model's config is checked.
NO_KERNELS: Final[dict[str, Any]] = {
    "apply_rope_fusion": False,
    "bias_activation_fusion": False,
    "bias_dropout_fusion": False,
    "gradient_accumulation_fusion": False,
    "masked_softmax_fusion": False,
    "moe_permute_fusion": False,
    "persist_layer_norm": False,
}
#: Where Megatron-Bridge locks a folder while it reads the config; the lock's file stays. Its default is in the home.
LOCKS: Final = "MEGATRON_CONFIG_LOCK_DIR"
#: Where the bridges' base classes lie: what is patched there serves every family.
GENERAL: Final = ("mbridge.core.", "megatron.bridge.models.conversion.")


@dataclass(frozen=True, slots=True)
class Answer(Support):
    """A bridge's answer; where it is yes, with the patch sets that are applied where the family's bridge class lies."""

    mends: tuple[str, ...] = ()


def ask(family: ModelFamily, bridge: str) -> Answer:
    """Whether the installed bridge can build and convert a family's MTP. Whatever raises becomes the answer.

    Args:
        family: one with a ``sample``; without it there is nothing to ask with.
        bridge: ``"mbridge"`` or ``"megatron-bridge"``.
    """
    module, question = _QUESTIONS[bridge]
    if installed_version(bridge) is None:
        return Answer(bridge, None, "not installed")
    if family.sample is None:
        return Answer(bridge, None, "the family has no sample config to ask with")
    why_not = _why_not_imported(module)
    if why_not is not None:
        return Answer(bridge, None, why_not)
    try:
        with sample_folder(family) as folder, _locks_in(folder):
            layers = family.num_layers(read_config(folder))
            return _answer(question, folder, layers, bridge)
    except Exception as error:
        return Answer(bridge, None, f"the sample config cannot be read: {_one_line(error)}")


@cache
def _why_not_imported(module: str) -> str | None:
    """Imports it, once: a second try would find the half of it that the first one left."""
    try:
        importlib.import_module(module)
    except Exception as error:
        return f"{module} cannot be imported: {_one_line(error)}"
    return None


_Question = Callable[[Path, int], tuple[Support, type]]


def _answer(question: _Question, folder: Path, layers: int, bridge: str) -> Answer:
    try:
        support, bridge_class = question(folder, layers)
    except Exception as error:  # what verl would meet as well
        return Answer(bridge, False, _one_line(error).replace(str(folder), "the sample"))
    return Answer(bridge, support.supported, support.detail, mends=_mends(bridge_class) if support.supported else ())


def _ask_mbridge(folder: Path, layers: int) -> tuple[Support, type]:
    import torch
    from mbridge import AutoBridge
    from mbridge.core.parallel_states import ParallelStates

    from .mbridge import knows, probe

    config = read_config(folder)
    if not knows(config):
        return Support(MBRIDGE, False, NO_CLASS), AutoBridge
    # Without process groups: the states of a model on one GPU.
    bridge = AutoBridge.from_config(config, dtype=torch.bfloat16, parallel_states=ParallelStates(vpp_size=None))
    bridge.set_extra_args(**NO_KERNELS)
    return probe(bridge, layers), type(bridge)


def _ask_megatron_bridge(folder: Path, layers: int) -> tuple[Support, type]:
    import torch
    from megatron.bridge import AutoBridge

    from .megatron_bridge import knows, probe

    if not knows(read_config(folder)):
        return Support(MEGATRON_BRIDGE, False, NO_CLASS), AutoBridge
    bridge = AutoBridge.from_hf_pretrained(str(folder), trust_remote_code=False)
    provider = bridge.to_megatron_provider(load_weights=False)
    overrides = {"variable_seq_lengths": True, "moe_token_dispatcher_type": "alltoall", **NO_KERNELS}  # as verl does
    if hasattr(provider, "apply_overrides_and_finalize"):
        provider.apply_overrides_and_finalize(dtype=torch.bfloat16, overrides=overrides)
    else:
        for key, value in {"params_dtype": torch.bfloat16, "bf16": True, **overrides}.items():
            setattr(provider, key, value)
        if hasattr(provider, "finalize"):
            provider.finalize()
    return probe(bridge, provider, layers), type(bridge._model_bridge)


#: By bridge: the module to import, and how it is asked.
_QUESTIONS: Final[dict[str, tuple[str, _Question]]] = {
    MBRIDGE: ("mbridge", _ask_mbridge),
    MEGATRON_BRIDGE: ("megatron.bridge", _ask_megatron_bridge),
}


@contextmanager
def _locks_in(folder: Path) -> Iterator[None]:
    before = os.environ.get(LOCKS)
    os.environ[LOCKS] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[LOCKS]
        else:
            os.environ[LOCKS] = before


def _mends(bridge_class: type) -> tuple[str, ...]:
    """The ids of the patch sets that are applied in the modules which the bridge's class, and no other, is made of."""
    modules = {cls.__module__ for cls in bridge_class.__mro__ if not cls.__module__.startswith(GENERAL)}
    applied = runtime.report().with_decision([Decision.APPLIED])
    return tuple(dict.fromkeys(r.patch_set for r in applied if r.target.partition(":")[0] in modules))


def _one_line(error: Exception) -> str:
    """The error's type and the first line of its message."""
    lines = (line.strip(" \t✗") for line in str(error).splitlines())
    text = f"{type(error).__name__}: {next(filter(None, lines), '')}".rstrip(": ")
    return text if len(text) <= DETAIL_LENGTH else text[: DETAIL_LENGTH - 3].rstrip() + "..."
