"""A family's sample config as a model folder without weights, which transformers and the bridges can read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .family import ModelFamily


@contextmanager
def sample_folder(family: ModelFamily) -> Iterator[Path]:
    """A folder that is there, and can be read, within the block: ``config.json`` and the index of a checkpoint.

    By the names in that index some bridges see what there is to convert; no tensor lies in the folder.
    """
    config = dict(family.sample or {})
    tensors = ("lm_head.weight", *family.sample_tensors)
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model.safetensors")}
    with tempfile.TemporaryDirectory(prefix="verl-mtp-") as name, _known_model_type(config):
        folder = Path(name)
        (folder / "config.json").write_text(json.dumps(config))
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        yield folder


def read_config(folder: Path) -> Any:
    """The folder's Hugging Face config. No code that might lie in the folder is run."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(folder), trust_remote_code=False)


@contextmanager
def _known_model_type(config: Mapping[str, Any]) -> Iterator[None]:
    """Within it transformers reads the config's model type, as a plain config if it has no class for it.

    The published model then brings its config class as remote code, which is not run here.
    """
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    model_type = str(config.get("model_type"))
    if model_type in CONFIG_MAPPING:
        yield
        return
    CONFIG_MAPPING.register(model_type, type("SampleConfig", (PretrainedConfig,), {"model_type": model_type}))
    try:
        yield
    finally:
        CONFIG_MAPPING._extra_content.pop(model_type, None)
