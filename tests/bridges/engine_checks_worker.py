"""What verl's engine does with models whose MTP its bridge can build and convert, or cannot. Prints JSON.

``python -m tests.bridges.engine_checks_worker FOLDER mbridge|megatron-bridge on|bare``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.stack import tiny_mimo
from tests.stack import watched_engine as common

from .assertion_worker import sample


def outcome(function: Callable[[], Any]) -> str:
    """How far it came: what was raised, and whether weights had been loaded by then."""
    import mbridge.core.bridge

    loads: list[str] = []
    original = mbridge.core.bridge.Bridge.load_weights

    def load_weights(*args: Any, **kwargs: Any) -> Any:
        loads.append("mbridge")
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mbridge.core.bridge.Bridge, "load_weights", load_weights)
        try:
            function()
        except Exception as error:
            cause = f" <- {type(error.__cause__).__name__}" if error.__cause__ else ""
            return f"{'loaded' if loads else 'nothing loaded'}: {type(error).__name__}: {error}{cause}"
    return "built"


def mtp_in_spite_of_config(source: Path, **options: Any) -> Any:
    """``mtp.enable=False``, and a bridge that builds MTP layers all the same."""
    from verl.workers.engine.megatron import transformer_impl

    def enable(model_config: Any, engine_config: Any) -> None:
        model_config.hf_config.num_nextn_predict_layers = 1

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(transformer_impl, "check_mtp_config", enable)
        return common.new_engine(source, train_mtp=False, with_mtp=False, **options)


def fewer_than_promised(engine: Any, label: str) -> str:
    from verl_mtp_plugin.bridges.built import check_mtp_is_built

    return outcome(lambda: check_mtp_is_built(engine._engine.module, 2, bridge=label))


def main() -> None:
    folder, bridge, mode = Path(sys.argv[1]), *sys.argv[2:]
    common.prepare(bare=mode == "bare")
    tiny_mimo.prepare_bridge(bridge)
    mimo = tiny_mimo.make(folder / "mimo", bridge)
    options = {"vanilla_mbridge": bridge == tiny_mimo.MBRIDGE}

    def engine(source: Path, *, train_mtp: bool = True) -> Callable[[], Any]:
        return lambda: common.new_engine(source, train_mtp=train_mtp, **options)

    found = {
        "MiMo": outcome(engine(mimo)),
        "MiMo, frozen": outcome(engine(mimo, train_mtp=False)),
        "disabled and built": outcome(lambda: mtp_in_spite_of_config(mimo, **options)),
    }
    if bridge == tiny_mimo.MBRIDGE:
        for family in ("GLM-4.5", "Qwen3-Next"):
            found[family] = outcome(engine(sample(folder, family)))
            found[f"{family}, frozen"] = outcome(engine(sample(folder, family), train_mtp=False))
    if mode == "on":
        found["one of two"] = fewer_than_promised(engine(mimo)(), f"{bridge} 1.2")
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
