"""The real mbridge, asked for the MTP of several models: for :mod:`.test_mbridge`. Prints JSON.

``python -m tests.bridges.probes.mbridge_worker FOLDER all|bare``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from verl_mtp_plugin.bridges.mbridge import VIRTUAL, probe
from verl_mtp_plugin.bridges.mends import mbridge_mimo
from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

from ..mimo_worker import apply, prepare
from . import common

FOLDER = Path(sys.argv[1])
MIMO, DEEPSEEK_V3, GLM4_MOE, QWEN3_NEXT = (dict(family.sample or {}) for family in common.FAMILIES)


def read(sample: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig

    folder = common.write(FOLDER / str(sample["model_type"]), sample)
    return common.as_read_by_transformers_4(AutoConfig.from_pretrained(folder), sample)


def make(sample: Mapping[str, Any], **overrides: Any) -> Any:
    """The bridge, as verl makes it."""
    from mbridge import AutoBridge

    bridge = AutoBridge.from_config(read(sample), dtype=torch.bfloat16)
    bridge.set_extra_args(**TRANSFORMER_CONFIG, **overrides)
    return bridge


def ask(sample: Mapping[str, Any], layers: int = 1, **overrides: Any) -> Any:
    return common.attempt(lambda: common.told(probe(make(sample, **overrides), layers)))


def on_first_stage() -> Any:
    """MiMo asked on the first of two pipeline stages, which builds no MTP itself; and the stage afterwards."""
    from megatron.core import parallel_state

    parallel_state.set_pipeline_model_parallel_world_size(2)
    parallel_state.set_pipeline_model_parallel_rank(0)
    try:
        return [*ask(MIMO), parallel_state.get_pipeline_model_parallel_rank()]
    finally:
        parallel_state.set_pipeline_model_parallel_world_size(None)
        parallel_state.set_pipeline_model_parallel_rank(None)


def with_virtual_stages() -> Any:
    """MiMo asked with two virtual stages on each of two ranks; what the process is set to afterwards; the refusal."""
    from megatron.core import parallel_state

    parallel_state.set_pipeline_model_parallel_world_size(2)
    parallel_state.set_pipeline_model_parallel_rank(0)
    parallel_state.set_virtual_pipeline_model_parallel_world_size(2)
    try:
        bridge = make(MIMO, pipeline_model_parallel_size=2, **{VIRTUAL: 2}, overlap_p2p_comm=True, num_layers=4)
        support = probe(bridge, 1)
        left = [getattr(bridge.config, VIRTUAL), parallel_state.get_virtual_pipeline_model_parallel_world_size()]
        return [*common.told(support), left, common.refusal(bridge.hf_config, support)]
    finally:
        parallel_state.set_virtual_pipeline_model_parallel_world_size(None)
        parallel_state.set_pipeline_model_parallel_world_size(None)
        parallel_state.set_pipeline_model_parallel_rank(None)


def register_bridges() -> None:
    """A lab's own bridge, and those of two models with what they lack: GLM-4.5's layers, DeepSeek-V3's config."""
    from mbridge.core import register_model
    from mbridge.models import Qwen2Bridge
    from mbridge.models.deepseek_v3 import DeepseekV3Bridge
    from mbridge.models.glm4moe import GLM4MoEBridge
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec
    from megatron.core.transformer import MLATransformerConfig

    class BuildsMtp:
        def _build_base_config(self: Any, **others: Any) -> Any:
            return super()._build_base_config(mtp_num_layers=self.hf_config.num_nextn_predict_layers, **others)  # type: ignore[misc]

        def _get_gptmodel_args(self: Any) -> Any:
            spec = get_gpt_mtp_block_spec(self.config, self._get_transformer_layer_spec(), use_transformer_engine=True)
            return {**super()._get_gptmodel_args(), "mtp_block_spec": spec}  # type: ignore[misc]

    @register_model("lab")
    class LabBridge(BuildsMtp, Qwen2Bridge):
        def _weight_name_mapping_mcore_to_hf(self, name: str) -> Any:
            if not name.startswith("mtp.layers."):
                return super()._weight_name_mapping_mcore_to_hf(name)
            _, _, layer, part, *rest = name.split(".")
            if rest == ["weight"]:
                return [common.LAB_NAMES[part].format(layer) + ".weight"]
            trunk = super()._weight_name_mapping_mcore_to_hf(".".join(["decoder", "layers", layer, *rest]))
            return [hf.replace("model.layers", "drafts") for hf in trunk]

    @register_model("glm4_moe")
    class MendedGlm(BuildsMtp, GLM4MoEBridge):
        pass

    @register_model("deepseek_v3")
    class MendedDeepseek(DeepseekV3Bridge):
        @staticmethod
        def TransformerConfigClass(max_position_embeddings: int, **others: Any) -> Any:
            return MLATransformerConfig(**others)


def unnamed_when_built(sample: Mapping[str, Any]) -> Any:
    """The MTP parameters of a model that is really built: how many, and those without a name."""
    from mbridge.core.util import unwrap_model

    bridge = make(sample)
    parameters = [name for name, _ in unwrap_model(bridge.get_model()[0]).named_parameters() if name.startswith("mtp.")]
    return [len(parameters), [name for name in parameters if not bridge._weight_name_mapping_mcore_to_hf(name)]]


def answers() -> dict[str, Any]:
    glm = make(GLM4_MOE)
    found: dict[str, Any] = {
        "MiMo unmended": ask(MIMO),
        "MiMo unmended on the first stage": on_first_stage(),
        "DeepSeek-V3": ask(DEEPSEEK_V3),
        "GLM-4.5": common.told(probe(glm, 1)),
        "GLM-4.5 refused": common.refusal(glm.hf_config, probe(glm, 1)),
        "GLM-4.5 with an override": ask(GLM4_MOE, mtp_num_layers=1),
        "Qwen3-Next refused": common.unknown(read(QWEN3_NEXT), vanilla=True),
        "MiMo refused": common.unknown(read(MIMO), vanilla=True),
        "Qwen2": ask(common.QWEN2),
        "Qwen2 promises none": ask(common.QWEN2, 0),
        "not a bridge": common.told(probe(object(), 1)),
    }
    apply(mbridge_mimo.PATCHES)
    found |= {
        "MiMo": ask(MIMO),
        "MiMo on the first stage": on_first_stage(),
        "MiMo with virtual stages": with_virtual_stages(),
        "MiMo with another number": ask(MIMO, 2),
        "MiMo built": unnamed_when_built(MIMO),
    }
    common.register_lab()
    register_bridges()
    found |= {"lab": ask(common.LAB, 2), "lab built": unnamed_when_built(common.LAB)}
    found |= {
        "GLM-4.5 with layers": ask(GLM4_MOE),
        "GLM-4.5 with two": ask({**GLM4_MOE, "num_nextn_predict_layers": 2}, 2),
    }
    large = {**DEEPSEEK_V3, "num_hidden_layers": 61}
    found |= {"DeepSeek-V3 mended": ask(DEEPSEEK_V3), "DeepSeek-V3 in full": ask(large)}
    found["DeepSeek-V3 with two"] = ask({**large, "num_nextn_predict_layers": 2}, 2)
    common.LAB_NAMES.pop("hnorm")
    return {**found, "lab without a name": ask(common.LAB, 2)}


def without_transformer_engine() -> Any:
    """MiMo asked where nothing stands in for TransformerEngine, and there are no process groups."""
    import model as tiny  # found since mimo_worker was imported
    from mbridge.core.parallel_states import ParallelStates
    from mbridge.models.mimo import MimoBridge

    tiny.register()
    return common.told(probe(MimoBridge(read(MIMO), parallel_states=ParallelStates(vpp_size=None)), 1))


if __name__ == "__main__":
    if sys.argv[2] == "bare":
        print("=> " + json.dumps(without_transformer_engine()))
    else:
        prepare()
        print("=> " + json.dumps(answers()))
