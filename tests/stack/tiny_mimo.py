"""The quickstart's tiny MiMo, as each bridge wants it. Importing this puts the quickstart's modules on ``sys.path``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

import model

#: mbridge, which verl calls vanilla, and Megatron-Bridge.
MBRIDGE, MEGATRON_BRIDGE = "mbridge", "megatron-bridge"


def make(folder: Path, bridge: str) -> Path:
    """A new model in ``folder``, always with the same random weights."""
    model.register()
    path = model.make(folder, seed=0)
    if bridge == MEGATRON_BRIDGE:  # it asks transformers for the architecture, or this entry, as the real MiMo has
        config = {**model.CONFIG, "auto_map": {"AutoModelForCausalLM": "modeling_mimo.MiMoForCausalLM"}}
        (path / "config.json").write_text(json.dumps(config))
    return path


def prepare_bridge(bridge: str) -> None:
    """Make the bridge importable without a GPU. After verl and the other stand-ins."""
    if bridge == MEGATRON_BRIDGE:
        from verl_mtp_plugin.testing import megatron_bridge

        megatron_bridge.install()
