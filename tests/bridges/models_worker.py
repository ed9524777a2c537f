"""``verl-mtp models`` on the real packages without a GPU: stand-ins first, then the command.

``python -m tests.bridges.models_worker mbridge|megatron-bridge|bare [--json]``; ``bare`` is without stand-ins.
"""

from __future__ import annotations

import contextlib
import sys

from verl_mtp_plugin.cli.app import main
from verl_mtp_plugin.models.family import MEGATRON_BRIDGE
from verl_mtp_plugin.testing import cuda, transformer_engine

BARE = "bare"


def prepare(bridge: str) -> None:
    """What the bridge imports, or builds a config with, and a CPU machine lacks."""
    if bridge == BARE:
        return
    cuda.install()
    cuda.install_megatron()
    transformer_engine.install()
    if bridge == MEGATRON_BRIDGE:
        from verl_mtp_plugin.testing import megatron_bridge

        megatron_bridge.install()


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        prepare(sys.argv[1])
    main(["models", *sys.argv[2:]])
