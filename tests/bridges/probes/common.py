"""What the probes' workers share: samples, families with what is known of them, a lab's own model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from verl_mtp_plugin.bridges.refusal import unknown_model, unsupported
from verl_mtp_plugin.bridges.support import Support
from verl_mtp_plugin.errors import UnsupportedError
from verl_mtp_plugin.models.families import DEEPSEEK_V3, GLM4_MOE, MIMO, QWEN3_NEXT
from verl_mtp_plugin.models.family import MBRIDGE, MEGATRON_BRIDGE

#: The four families of the tests, with the releases that the expected texts name.
FAMILIES: Final = (
    replace(MIMO, since={MBRIDGE: "0.15.1", MEGATRON_BRIDGE: "0.4.0"}),
    replace(DEEPSEEK_V3, since={MEGATRON_BRIDGE: "0.4.0"}),
    replace(GLM4_MOE, since={MEGATRON_BRIDGE: "0.3.1"}),
    replace(QWEN3_NEXT, since={MEGATRON_BRIDGE: "0.5.0"}),
)
#: A model that has no MTP.
QWEN2: Final = {**(MIMO.sample or {}), "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
QWEN2.pop("auto_map")
QWEN2.pop("num_nextn_predict_layers")
#: A model of somebody else, and the names that the checkpoint has for the parts of its MTP layers.
LAB: Final = {
    **QWEN2,
    "architectures": ["LabForCausalLM"],
    "model_type": "lab",
    "auto_map": {"AutoConfig": "lab.LabConfig", "AutoModelForCausalLM": "lab.LabForCausalLM"},
    "num_nextn_predict_layers": 2,
}
LAB_NAMES = {
    "eh_proj": "drafts.{}.join",
    "enorm": "drafts.{}.token_norm",
    "hnorm": "drafts.{}.hidden_norm",
    "final_layernorm": "drafts.{}.last_norm",
}


def register_lab() -> None:
    """Let transformers read ``model_type: lab``."""
    from transformers import AutoConfig, Qwen2Config

    class LabConfig(Qwen2Config):
        model_type = "lab"
        rope_theta = 10000.0  # mbridge reads it here; transformers 5 moved it

    AutoConfig.register("lab", LabConfig, exist_ok=True)


def write(folder: Path, sample: Mapping[str, Any]) -> Path:
    """A model folder: the config, and the index of a checkpoint that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(sample)))
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "absent.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def as_read_by_transformers_4(config: Any, sample: Mapping[str, Any]) -> Any:
    """What transformers 5 moves out of reach (``rope_theta``, for one) put back, lest it decides instead of MTP."""
    for key, value in sample.items():
        if not hasattr(config, key):
            setattr(config, key, value)
    return config


def told(support: Support) -> list[Any]:
    return [support.supported, support.detail]


def refusal(hf_config: Any, support: Support) -> str:
    return str(unsupported(hf_config, support, FAMILIES))


def unknown(hf_config: Any, *, vanilla: bool) -> str | None:
    error: UnsupportedError | None = unknown_model(hf_config, FAMILIES, vanilla=vanilla)
    return None if error is None else str(error)


def attempt(function: Callable[[], Any]) -> Any:
    """What it returns, or the first line of what it raises."""
    try:
        return function()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
