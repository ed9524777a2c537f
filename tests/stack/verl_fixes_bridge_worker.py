"""verl's engine and Megatron-Bridge on a tiny GLM-4 MoE: how many MTP layers come out of it. Prints JSON.

``python -m tests.stack.verl_fixes_bridge_worker FOLDER on|bare``
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from . import verl_legacy_worker as legacy
from . import watched_engine as common

#: GLM-4.5's shape, very much smaller; every Megatron-Bridge from 0.3.1 on builds its MTP layer.
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "vocab_size": 32,
    "hidden_size": 64,
    "intermediate_size": 128,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "attention_bias": True,
    "use_qk_norm": True,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "pad_token_id": 0,
    "eos_token_id": 1,
}


def make(folder: Path) -> Path:
    """A model folder with this config, and the quickstart's tokenizer and (unused) weights."""
    source = common.make_model(folder)
    (source / "config.json").write_text(json.dumps(CONFIG))
    return source


def through_engine(source: Path, *, enable: bool) -> dict[str, Any]:
    """What verl's engine makes of ``mtp.enable``, up to the model without its weights."""
    from verl.workers.engine.megatron.transformer_impl import MegatronEngine

    engines: list[Any] = []

    def initialize(engine: Any) -> None:
        engine._build_tf_config()
        engines.append(engine)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(MegatronEngine, "initialize", initialize)
        common.new_engine(source, train_mtp=enable, with_mtp=enable, vanilla_mbridge=False)
    provider = engines[0].provider
    model = provider.provide(pre_process=True, post_process=True)
    return {"depths": provider.mtp_num_layers, "built": getattr(model, "mtp", None) is not None}


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    common.prepare(bare=mode == "bare")
    from verl_mtp_plugin.testing import megatron_bridge

    megatron_bridge.install()
    source = make(folder)
    found: dict[str, Any] = {
        "enabled": through_engine(source, enable=True),
        "disabled": through_engine(source, enable=False),
    }
    if importlib.util.find_spec("verl.workers.megatron_workers") is not None:  # verl 0.7.1
        found["legacy"] = {
            "actor": legacy.depths(source, enable_mtp=True, vanilla=False, actor=True)[0],
            "critic": legacy.depths(source, enable_mtp=False, vanilla=False)[0],
        }
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
