"""How many MTP layers a toy Nemotron-H gets from verl's engine and Megatron-Bridge. Prints JSON.

``python -m tests.bridges.hybrid_worker FOLDER on|bare``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tests.stack import watched_engine as common
from tests.stack.verl_fixes_bridge_worker import through_engine

#: Attention, experts and MLP: layers of Mamba need a GPU to be built.
PATTERN = "*E*-"


def make(folder: Path) -> Path:
    from verl_mtp_plugin import runtime

    (family,) = (known for known in runtime.models() if known.name == "Nemotron-H")
    source = common.make_model(folder)
    config = {**(family.sample or {}), "hybrid_override_pattern": PATTERN, "num_hidden_layers": len(PATTERN)}
    (source / "config.json").write_text(json.dumps(config))
    return source


def outcome(source: Path, *, enable: bool) -> Any:
    try:
        return through_engine(source, enable=enable)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    common.prepare(bare=mode == "bare")
    from verl_mtp_plugin.testing import megatron_bridge

    megatron_bridge.install()
    source = make(folder)
    print("=> " + json.dumps({"enabled": outcome(source, enable=True), "disabled": outcome(source, enable=False)}))


if __name__ == "__main__":
    main()
