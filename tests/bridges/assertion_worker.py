"""What becomes of the assertion that MTP needs ``vanilla_mbridge``. Prints JSON.

``python -m tests.bridges.assertion_worker FOLDER on|bare``. verl is the one on PYTHONPATH: a checkout of its git that
carries the assertion, or 0.7.1, whose method lacks it and gets it from a function of ours around it.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

from tests.stack import verl_legacy_worker as legacy
from tests.stack import watched_engine as common  # makes the quickstart's modules importable

# isort: split
import engine as quickstart

from verl_mtp_plugin.testing import cuda

MESSAGE = "MTP requires vanilla_mbridge to be True"
OTHER = "MTP requires use_mbridge to be True"
#: Everything else that the method asks of verl's Megatron config.
MEGATRON = {
    "use_mbridge": True,
    "tensor_model_parallel_size": 1,
    "pipeline_model_parallel_size": 1,
    "expert_model_parallel_size": 1,
    "expert_tensor_parallel_size": 1,
    "virtual_pipeline_model_parallel_size": None,
    "context_parallel_size": 1,
    "sequence_parallel": False,
}


def import_old_verl() -> None:
    """Import a verl that is older than transformers 5, which no longer has one of the names it imports."""
    cuda.install()
    for last in (False, True):
        transformers = importlib.import_module("transformers")
        if not hasattr(transformers, "AutoModelForVision2Seq"):
            vars(transformers)["AutoModelForVision2Seq"] = transformers.AutoModelForImageTextToText
        try:
            importlib.import_module("verl.utils.model")
            return
        except ImportError:  # while it is imported, transformers may put a new module in its own place
            if last:
                raise


def add_assertion() -> str:
    """Give verl's method the assertion where it lacks it. Returns whose it is."""
    from verl.workers.megatron_workers import MegatronWorker

    released = MegatronWorker._init_hf_config_and_tf_config
    if MESSAGE in inspect.getsource(released):
        return "verl's"

    def _init_hf_config_and_tf_config(
        self: Any,
        model_path: Any,
        tokenizer_or_path: Any,
        dtype: Any,
        override_model_config: Any,
        override_transformer_config: Any,
        trust_remote_code: bool = False,
        megatron_config: Any = None,
        enable_mtp: bool = False,
    ) -> Any:
        if enable_mtp:
            assert megatron_config.use_mbridge, OTHER
            assert megatron_config.vanilla_mbridge, MESSAGE
        given: tuple[Any, ...] = (
            override_model_config,
            override_transformer_config,
            trust_remote_code,
            megatron_config,
            enable_mtp,
        )
        return released(self, model_path, tokenizer_or_path, dtype, *given)

    MegatronWorker._init_hf_config_and_tf_config = _init_hf_config_and_tf_config
    return "ours"


def sample(folder: Path, family: str) -> Path:
    """A model folder with the family's toy config, and the quickstart's tokenizer."""
    from verl_mtp_plugin.models.families import FAMILIES

    (chosen,) = (known for known in FAMILIES if known.name == family)
    source = common.make_model(folder / family)
    (source / "config.json").write_text(json.dumps(dict(chosen.sample or {})))
    return source


def asked(source: Path, *, enable_mtp: bool = True, vanilla: bool = False, use_mbridge: bool = True) -> Any:
    """MTP layers that an actor's model would be built with, by which bridge, or why it is refused."""
    import torch
    from omegaconf import OmegaConf

    from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

    worker = legacy.new_worker(source, actor=True)
    megatron = OmegaConf.create({**MEGATRON, "use_mbridge": use_mbridge, "vanilla_mbridge": vanilla})
    given: tuple[Any, ...] = (
        str(source),
        str(source),
        torch.bfloat16,
        {},
        dict(TRANSFORMER_CONFIG),
        False,
        megatron,
        enable_mtp,
    )
    try:
        worker._init_hf_config_and_tf_config(*given)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    config = worker.tf_config if vanilla else worker.provider
    return [config.mtp_num_layers, worker.vanilla_bridge, megatron.vanilla_mbridge]


def main() -> None:
    folder, mode = Path(sys.argv[1]), sys.argv[2]
    import_old_verl()
    quickstart.prepare(plugin=False)
    assertion = add_assertion()
    common.prepare(bare=mode == "bare")
    from megatron.core import parallel_state

    from verl_mtp_plugin.testing import megatron_bridge

    megatron_bridge.install()
    parallel_state.initialize_model_parallel()
    glm, mimo = sample(folder, "GLM-4.5"), sample(folder, "MiMo")
    found = {
        "assertion": assertion,
        "supported": asked(glm),
        "unsupported": asked(sample(folder, "DeepSeek-V3")),
        "no_bridge": asked(mimo),
        "mbridge": asked(mimo, vanilla=True),
        "no_mbridge_at_all": asked(mimo, use_mbridge=False),
        "disabled": asked(glm, enable_mtp=False),
    }
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
