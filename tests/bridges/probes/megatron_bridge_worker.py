"""The real Megatron-Bridge, asked for the MTP of several models: for :mod:`.test_megatron_bridge`. Prints JSON.

``python -m tests.bridges.probes.megatron_bridge_worker FOLDER all``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin.bridges import ask as table
from verl_mtp_plugin.bridges.megatron_bridge import probe
from verl_mtp_plugin.models import MEGATRON_BRIDGE, families
from verl_mtp_plugin.testing import linear_attention, megatron_bridge
from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

from ..mimo_worker import prepare
from . import common

FOLDER = Path(sys.argv[1])
MIMO, DEEPSEEK_V3, GLM4_MOE, QWEN3_NEXT = (dict(family.sample or {}) for family in common.FAMILIES)


def make(sample: Mapping[str, Any], **overrides: Any) -> tuple[Any, Any]:
    """The bridge and its provider, as verl makes them."""
    from megatron.bridge import AutoBridge

    bridge = AutoBridge.from_hf_pretrained(str(common.write(FOLDER / str(sample["model_type"]), sample)))
    common.as_read_by_transformers_4(bridge.hf_pretrained.config, sample)
    provider = bridge.to_megatron_provider(load_weights=False)
    for key, value in {**TRANSFORMER_CONFIG, **overrides}.items():
        setattr(provider, key, value)
    provider.finalize()
    return bridge, provider


def ask(sample: Mapping[str, Any], layers: int = 1, **overrides: Any) -> Any:
    return common.attempt(lambda: common.told(probe(*make(sample, **overrides), layers)))


def refused(sample: Mapping[str, Any]) -> Any:
    bridge, provider = make(sample)
    support = probe(bridge, provider, 1)
    return None if support.supported else common.refusal(bridge.hf_pretrained.config, support)


def not_known(sample: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    folder = common.write(FOLDER / str(sample["model_type"]), sample)
    return common.unknown(AutoConfig.from_pretrained(folder), vanilla=False)


def unmapped_when_built(bridge: Any, provider: Any) -> Any:
    """The MTP parameters of a model that is really built: how many, and those that Megatron-Bridge would not load."""
    model = provider.provide(pre_process=True, post_process=True)
    model_bridge = bridge._model_bridge
    model_bridge._hf_config = bridge.hf_pretrained.config  # as build_conversion_tasks of older releases does
    registry = model_bridge.mapping_registry()
    parameters = [name for name, _ in model.named_parameters() if "mtp.layers." in name]
    return [len(parameters), [name for name in parameters if registry.megatron_to_hf_lookup(name) is None]]


def of_every_family() -> dict[str, Any]:
    """Each family as it is asked about for the table of models, and, where it is supported, really built.

    A model that cannot be built without a GPU's packages leaves its error.
    """
    found: dict[str, Any] = {}

    def probe_and_build(bridge: Any, provider: Any, layers: int) -> Any:
        support = probe(bridge, provider, layers)
        if support.supported:
            vars(provider).update(TRANSFORMER_CONFIG)
            found[family.name] = common.attempt(partial(unmapped_when_built, bridge, provider))
        return support

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("verl_mtp_plugin.bridges.megatron_bridge.probe", probe_and_build)
        for family in families.FAMILIES:
            found.setdefault(family.name, table.ask(family, MEGATRON_BRIDGE).detail)
    return found


def register_bridge() -> type:
    """A lab's own bridge, by the door that Megatron-Bridge has for it."""
    from megatron.bridge.models.conversion.mapping_registry import MegatronMappingRegistry
    from megatron.bridge.models.conversion.model_bridge import MegatronModelBridge
    from megatron.bridge.models.conversion.param_mapping import AutoMapping
    from megatron.bridge.models.qwen.qwen2_bridge import Qwen2Bridge
    from megatron.core.models.gpt.gpt_model import GPTModel

    class LabBridge(Qwen2Bridge):
        prefix = ""
        inner = ("transformer_layer", "mtp_model_layer")

        def provider_bridge(self, hf_pretrained: Any) -> Any:
            provider = super().provider_bridge(hf_pretrained)
            provider.mtp_num_layers = hf_pretrained.config.num_nextn_predict_layers
            return provider

        def mapping_registry(self) -> Any:
            trunk = super().mapping_registry().get_all_mappings()
            parts = {part: f"{name.format('*')}.weight" for part, name in common.LAB_NAMES.items()}
            parts |= {f"{inner}.mlp.linear_fc2": f"drafts.*.{inner}.down_proj.weight" for inner in self.inner}
            mtp = [AutoMapping(f"{self.prefix}mtp.layers.*.{part}.weight", hf) for part, hf in parts.items()]
            return MegatronMappingRegistry(*trunk, *mtp)

    MegatronModelBridge.register_bridge(source="LabForCausalLM", target=GPTModel)(LabBridge)
    return LabBridge


def of_a_lab() -> dict[str, Any]:
    common.register_lab()
    lab: Any = register_bridge()
    found = {"lab": ask(common.LAB, 2)}
    lab.prefix = "language_model."
    found["lab that sees images"] = ask(common.LAB, 2)
    lab.prefix, lab.inner = "", ()
    found["lab without the inner layer"] = ask(common.LAB, 2)
    common.LAB_NAMES.pop("final_layernorm")
    found["lab without a norm"] = ask(common.LAB, 2)
    common.LAB_NAMES.clear()
    found["lab without mappings"] = ask(common.LAB, 2)
    return found


def answers() -> dict[str, Any]:
    samples = {"MiMo": MIMO, "DeepSeek-V3": DEEPSEEK_V3, "GLM-4.5": GLM4_MOE, "Qwen3-Next": QWEN3_NEXT}
    found: dict[str, Any] = {name: ask(sample) for name, sample in samples.items()}
    found |= {
        "Qwen2": ask(common.QWEN2),
        "Qwen2 promises none": ask(common.QWEN2, 0),
        "GLM-4.5 with another number": ask(GLM4_MOE, 2),
        "Qwen3-Next with an override": ask(QWEN3_NEXT, mtp_num_layers=1),
        "MiMo with another number": ask(MIMO, 3),
        "Qwen3-Next with two": ask(QWEN3_NEXT, 2, mtp_num_layers=2),
        "Qwen3-Next with one twice": ask(QWEN3_NEXT, 2, mtp_num_layers=2, mtp_use_repeated_layer=True),
        "MiMo refused": not_known(MIMO),
        "GLM-4.5 refused": not_known(GLM4_MOE),
        "DeepSeek-V3 refused": refused(DEEPSEEK_V3),
        "not a bridge": common.told(probe(object(), SimpleNamespace(mtp_num_layers=1), 1)),
    }
    found["Qwen3-Next built"] = unmapped_when_built(*make(QWEN3_NEXT))
    found["families"] = of_every_family()
    return {**found, **of_a_lab()}


if __name__ == "__main__":
    prepare()
    megatron_bridge.install()
    linear_attention.install()
    print("=> " + json.dumps(answers()))
