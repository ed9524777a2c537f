"""Running the MTP layers: the hidden states of every depth, cut off from the policy where that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from inspect import signature
from typing import Any

import torch

from ..environment import installed_version
from ..errors import UnsupportedError
from .request import mtp_apart_from_labels


@lru_cache(maxsize=16)
def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the parameters that ``function`` takes."""
    return frozenset(signature(function).parameters)


def upstream() -> Any:
    """megatron-core's module of MTP, with what is patched in it at this moment."""
    from megatron.core.transformer import multi_token_prediction

    return multi_token_prediction


def check_supported(model: Any, call: dict[str, Any]) -> None:
    """Refuse what this megatron-core cannot train, before anything runs.

    Raises:
        UnsupportedError: packed sequences that cannot be rolled, or MTP on a pipeline stage of its own.
    """
    installed = f"megatron-core {installed_version('megatron-core') or '(unknown version)'}"
    if call.get("packed_seq_params") is not None and "packed_seq_params" not in parameters(upstream().roll_tensor):
        raise UnsupportedError(
            found=f"packed sequences with MTP training on {installed}",
            expected="megatron-core >= 0.16, whose MTP keeps packed sequences apart",
            advice="Upgrade megatron-core, or set actor_rollout_ref.model.use_remove_padding=False.",
        )
    if model.post_process != bool(call.get("mtp_in_postprocess")):
        raise mtp_apart_from_labels()


def mtp_hidden_states(model: Any, call: dict[str, Any], *, detach_encoder: bool) -> list[torch.Tensor]:
    """Run the MTP block on the trunk's hidden states.

    Args:
        model: the ``GPTModel``.
        call: the arguments of its ``_postprocess``; ``hidden_states`` is [s, b, h].
        detach_encoder: cut the graph at the entrance of the block, to the trunk and to the embedding. Later depths
            still train earlier ones, as in the chain of DeepSeek-V3 and with megatron-core's ``mtp_detach_heads``.

    Returns:
        One tensor [s, b, h] per depth.
    """
    hidden_states, embedding = call["hidden_states"], model.embedding
    if detach_encoder:
        # A leaf that requires a gradient: activation recompute runs backward only if some input asks for one.
        hidden_states = hidden_states.detach().requires_grad_()
        embedding = _detached(model.embedding)
    offered = {**call, "hidden_states": hidden_states, "embedding": embedding, **(call.get("extra_block_kwargs") or {})}
    # labels and loss_mask are _postprocess's; some blocks have parameters of these names with another meaning.
    accepted = parameters(type(model.mtp).forward) - {"self", "labels", "loss_mask"}
    output = model.mtp(**{name: value for name, value in offered.items() if name in accepted})
    return list(torch.chunk(output, 1 + model.config.mtp_num_layers, dim=0)[1:])


def _detached(embedding: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def embed(*args: Any, **kwargs: Any) -> torch.Tensor:
        return embedding(*args, **kwargs).detach()

    return embed
