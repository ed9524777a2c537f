"""The versions of docs/RESULTS.md's matrix. They label a stack as tested or untested; no decision depends on them."""

from __future__ import annotations

from typing import Final

VERL: Final = ("0.7.1", "0.8.0", "0.9.0", "0.9.1")
MEGATRON_CORE: Final = ("0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
MBRIDGE: Final = ("0.15.1",)
MEGATRON_BRIDGE: Final = ("0.3.1", "0.4.2", "0.5.1", "0.6.2")

TESTED: Final = {"verl": VERL, "megatron-core": MEGATRON_CORE, "mbridge": MBRIDGE, "megatron-bridge": MEGATRON_BRIDGE}
