"""A model that consists of a config and a tokenizer whose words are their ids, for servers without a real engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

VOCABULARY: Final = 256
CONFIG: Final[dict[str, Any]] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 128,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 100_000,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "float32",
}


def make(folder: Path, **changes: Any) -> Path:
    """Write it, with ``changes`` of the config; the folder. There are no weights."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    words = Tokenizer(models.WordLevel({str(token): token for token in range(VOCABULARY)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="1", eos_token="2", pad_token="2").save_pretrained(folder)
    return folder
