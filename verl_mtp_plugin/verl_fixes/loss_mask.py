"""The loss mask of the MTP loss, over ``[prompt; response]`` like the tokens that it masks.

PPO and GRPO batches hold a mask of the responses alone. verl 0.7.1 reads its columns as if they were those of the whole
sequence, and fills up with ones: MTP is then trained on prompts, and in part not on responses (verl #6432, in 0.8.0).

In every release the mask is then rolled around: what it says of a sequence's first token ends up at its last position,
where that token, or with packed sequences the next one's first, is taken for the one that follows. Nothing predicts a
first token, so its place in the mask is zero here.
"""

from __future__ import annotations

from typing import Any

import torch

from ..errors import UnsupportedError


def prepare_model_inputs(original: Any, engine: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
    """``MegatronEngineWithLMHead.prepare_model_inputs``, whose ``loss_mask`` verl needs for MTP alone."""
    inputs = original(engine, batch, *args, **kwargs)
    mtp = engine.model_config.mtp
    if mtp.enable and mtp.enable_train:
        inputs["loss_mask"] = aligned(inputs["loss_mask"], inputs["input_ids"], batch.get("attention_mask", None))
    return inputs


def aligned(
    loss_mask: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """``loss_mask`` with zeros for the prompts, and for each sequence's first token.

    Args:
        loss_mask: for the last tokens of each sequence (the response, or all of it): jagged [b, j'], or [b, r] padded
            on the right.
        input_ids: whole sequences, jagged [b, j].
        attention_mask: [b, s] with s >= r, nonzero for tokens; its last r columns tell how long each response is.

    Returns:
        Jagged [b, j], with the lengths of ``input_ids``.

    Raises:
        UnsupportedError: the lengths of the responses are not known, or they are longer than the sequences.
    """
    offsets: torch.Tensor = input_ids.offsets()
    if loss_mask.is_nested:
        values, counts = loss_mask.values(), loss_mask.offsets().diff()
    else:
        columns = loss_mask.shape[1]
        if attention_mask is None or attention_mask.is_nested or attention_mask.shape[1] < columns:
            raise UnsupportedError(
                found=f"a padded loss mask of {columns} columns and no attention mask to tell the padding from tokens",
                expected="a padded attention_mask in the batch, or a nested loss_mask",
                advice="Keep attention_mask in the batches that are trained on.",
            )
        counts = attention_mask[:, attention_mask.shape[1] - columns :].bool().sum(dim=1)
        values = loss_mask[torch.arange(columns, device=counts.device) < counts[:, None]]
    for count, length in zip(counts.tolist(), offsets.diff().tolist(), strict=True):
        if count > length:
            raise UnsupportedError(
                found=f"a loss mask for {count} tokens of a sequence of {length}",
                expected="a mask for the last tokens of each sequence",
                advice="Check the loss_mask of the training batches.",
            )
    # All sequences at once: a loop over them is a handful of kernels for each.
    ends, behind = (
        torch.repeat_interleave(each, counts, output_size=len(values)) for each in (offsets[1:], counts.cumsum(0))
    )
    whole = values.new_zeros(len(input_ids.values()) + 1)  # an empty sequence at the end begins behind the last token
    whole[torch.arange(len(values), device=values.device) - behind + ends] = values
    whole[offsets[:-1]] = 0
    return torch.nested.nested_tensor_from_jagged(whole[:-1], offsets=offsets)
