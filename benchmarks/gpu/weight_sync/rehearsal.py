"""Stand-ins for a machine without a GPU: what runs is the benchmark's own logic, verl's and Ray's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from verl_mtp_plugin.testing import rollout_process, sglang_engine

HOOK: Final = rollout_process.HOOK
ENGINE: Final = dict(sglang_engine.ENGINE_KWARGS)
ENVIRONMENT: Final = {"SGLANG_USE_CPU_ENGINE": "1", "OMP_NUM_THREADS": "1"}
_CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": 256,
    "max_position_embeddings": 100_000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}


def prepare() -> None:
    """Before verl is imported."""
    sglang_engine.install()
    rollout_process.prepare()


def model(folder: Path) -> Path:
    """A model that consists of a config, a tokenizer and three tensors."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    words = Tokenizer(models.WordLevel({str(token): token for token in range(256)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="1", eos_token="2", pad_token="2").save_pretrained(folder)
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    save_file({name: torch.zeros(256, 64) for name in names}, folder / "model.safetensors")
    return folder
