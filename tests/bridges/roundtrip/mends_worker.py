"""The mends of DeepSeek-V3's bridge alone, on a real mbridge: put in, taken out, and left out. Prints JSON.

``python -m tests.bridges.roundtrip.mends_worker``
"""

from __future__ import annotations

import json
from typing import Any

from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda


def main() -> None:
    cuda.install()
    import megatron.core  # noqa: F401

    cuda.install_megatron()
    import mbridge.core.llm_bridge
    import mbridge.models.deepseek_v3

    from verl_mtp_plugin.bridges.mends import mbridge_deepseek, mbridge_rope

    patches = (*mbridge_rope.PATCHES, *mbridge_deepseek.PATCHES)
    bridge: Any = mbridge.models.deepseek_v3.DeepseekV3Bridge
    owners = (mbridge.core.llm_bridge.LLMBridge, bridge)
    before = [dict(vars(owner)) for owner in owners]
    engine = PatchEngine()
    engine.arm(patches)
    changed = [dict(vars(owner)) != then for owner, then in zip(owners, before)]
    engine.revert_all()
    restored = [dict(vars(owner)) for owner in owners] == before
    repair(bridge)
    second = PatchEngine()
    second.arm(patches)
    decisions = {record.id: str(record.decision) for record in second.records()}
    print(json.dumps({"changed": changed, "restored": restored, "decisions": decisions}))


def repair(bridge: Any) -> None:
    """As a later mbridge may have it: nothing is read at the config's top, and any number of layers is named."""

    def arguments(self: Any) -> dict[str, Any]:
        return {"rotary_base": self.hf_config.rope_parameters["rope_theta"]}

    def config(self: Any) -> Any:
        return self._build_base_config(original_max_position_embeddings=4096)

    def names(self: Any, name: str) -> list[str]:
        return [f"model.layers.{self.config.num_layers}.mlp.down_proj.weight"]

    bridge.__mro__[1]._get_gptmodel_args = arguments
    bridge._build_config = config
    bridge._convert_mtp_param = names


if __name__ == "__main__":
    main()
