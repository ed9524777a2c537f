"""Running the MTP layers: the hidden states of every depth, cut off from the policy where that was asked for."""

from __future__ import annotations

from typing import Any, Final

import torch

from ..environment import installed_version
from ..errors import UnsupportedError
from .detach import DetachedEmbedding, detached, leaf
from .request import mtp_apart_from_labels
from .roll import parameters

#: The arguments of the block that it computes from; the second with megatron-core dev's hyper-connections.
STATES: Final = ("hidden_states", "mhc_multistream")


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


def check_trunk(model: Any, hidden_states: torch.Tensor) -> None:
    """Refuse a trunk that is trained, in part, and gets no gradient.

    Without MTP the backward pass itself says so. With MTP the MTP loss gives the output a graph, and the policy would
    go on untrained, in silence.

    Args:
        model: whose ``decoder`` is the trunk.
        hidden_states: the trunk's, [s, b, h], computed with gradients enabled.

    Raises:
        UnsupportedError: they have no graph, although parameters of the trunk require a gradient.
    """
    if hidden_states.requires_grad:
        return
    trained = [name for name, parameter in model.decoder.named_parameters() if parameter.requires_grad]
    if trained:
        raise UnsupportedError(
            found=f"{len(trained)} trained parameters of the trunk (decoder.{trained[0]} and so on) that get no "
            "gradient: activation recompute gives none where its input, from a frozen embedding, requires none",
            expected="hidden states with a graph, or a trunk that is frozen as a whole",
            advice="Let the embedding's output require a gradient, as bridges do for LoRA, or set "
            "actor_rollout_ref.actor.megatron.override_transformer_config.recompute_granularity=null.",
        )


def mtp_hidden_states(model: Any, call: dict[str, Any], *, detach_encoder: bool) -> list[torch.Tensor]:
    """Run the MTP block on the trunk's hidden states.

    Args:
        model: the ``GPTModel``.
        call: the arguments of its ``_postprocess``; ``hidden_states`` is [s, b, h].
        detach_encoder: cut the graph at the entrance of the block, to the embedding and to everything that computed
            one of its arguments. Later depths still train earlier ones, as in the chain of DeepSeek-V3 and with
            megatron-core's ``mtp_detach_heads``.

    Returns:
        One tensor [s, b, h] per depth.

    Raises:
        UnsupportedError: see :func:`check_trunk`.
    """
    check_trunk(model, call["hidden_states"])
    extra = call.get("extra_block_kwargs") or {}
    offered = {**call, "embedding": model.embedding, **extra}
    # labels and loss_mask are _postprocess's; some blocks have parameters of these names with another meaning.
    accepted = parameters(type(model.mtp).forward) - {"self", "labels", "loss_mask"}
    entering = {name: value for name, value in offered.items() if name in accepted}
    if detach_encoder:
        entering = {**detached(entering), "embedding": DetachedEmbedding(model.embedding)}
    for name in STATES:
        if isinstance(entering.get(name), torch.Tensor) and not entering[name].requires_grad:
            # A frozen trunk: without an input that asks for a gradient, activation recompute gives the block none.
            entering[name] = leaf(entering[name])
    output = model.mtp(**entering)
    return list(torch.chunk(output, 1 + model.config.mtp_num_layers, dim=0)[1:])
