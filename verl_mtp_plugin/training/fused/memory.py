"""The line that says why fused log-prob kernels are off, what would make them work, and what memory that costs."""

from __future__ import annotations

from typing import Any, Final

#: Bytes per logit: the bf16 logits, and the fp32 copy that log-softmax is taken of.
BYTES_PER_LOGIT: Final = 2 + 4

OLD_VERL: Final = (
    "this verl's fused forward replaces GPTModel.forward, where no MTP layer runs; "
    "verl >= 0.9 on megatron-core >= 0.18 can do both"
)
OLD_MEGATRON_CORE: Final = (
    "this model's forward takes no output_processor, which verl's fused forward needs beside MTP; "
    "megatron-core >= 0.18 has it on GPTModel"
)
VISION: Final = "a vision-language model around the GPTModel prepares the labels itself; a text model can do both"

#: Where verl's configs (engine, legacy actor) keep the largest micro-batch of a training step, in tokens.
TOKEN_LIMITS: Final = ("max_token_len_per_gpu", "ppo_max_token_len_per_gpu")


def logits_bytes(tokens: int, vocabulary: int, tensor_parallel: int) -> int:
    """Bytes of the logits that one micro-batch materialises on one rank without the fused kernels."""
    return tokens * vocabulary // tensor_parallel * BYTES_PER_LOGIT


def message(why: str, model: Any, config: Any) -> str:
    """One line for the log.

    Args:
        why: one of the reasons above.
        model: the ``GPTModel``, or None where it is not known.
        config: verl's engine or actor config, which may name the largest micro-batch.
    """
    vocabulary = getattr(model, "vocab_size", None)
    if vocabulary is None:
        cost = "tokens x vocabulary / TP x (2 + 4) bytes"
    else:
        shards = model.config.tensor_model_parallel_size
        tokens = _tokens(config)
        cost = (
            f"tokens x vocabulary / TP x (2 + 4) bytes = {tokens} x {vocabulary} / {shards} x 6 = "
            f"{_readable(logits_bytes(tokens, vocabulary, shards))}"
        )
    return (
        f"verl-mtp-plugin: use_fused_kernels is off while MTP is enabled: {why}. "
        f"MTP trains all the same; the logits of each micro-batch cost {cost}."
    )


def _readable(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


def _tokens(config: Any) -> int:
    """The largest micro-batch that the config names, or 1024 tokens as a measure."""
    for name in TOKEN_LIMITS:
        value = config.get(name, None) if hasattr(config, "get") else getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1024
