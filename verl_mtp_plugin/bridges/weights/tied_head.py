"""Tied embeddings with MTP on another pipeline stage than the first: the head is the embedding there too.

Megatron's last stage has a copy of the embedding for its MTP layers, and with tied embeddings the head computes its
logits with that. It allocates a weight for the output layer all the same, of which megatron-core itself says that
there is none: nobody trains it, nobody hands it on, and the first distributed checkpoint ends in an AssertionError over
it. mbridge exports it as the embedding, and verl's fused kernels compute log-probs with it.

So before Megatron sets up its shared weights, the output layer's parameter makes way for the embedding's: it is an
attribute that reads as the weight in use, and no parameter of its own.
"""

from __future__ import annotations

from typing import Any


def setup_embeddings_and_output_layer(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    """``LanguageModule.setup_embeddings_and_output_layer``, which a model calls at the end of its making."""
    if has_idle_head(model):
        weight = model.embedding.word_embeddings.weight
        del model.output_layer.weight
        # Not by nn.Module's way, which would register the parameter a second time.
        object.__setattr__(model.output_layer, "weight", weight)
    return original(model, *args, **kwargs)


def has_idle_head(model: Any) -> bool:
    """Whether a model, being made, has a head's weight that its forward pass does not use."""
    if not (model.share_embeddings_and_output_weights and getattr(model, "mtp_process", False)):
        return False
    if model.pre_process or not model.post_process:  # where both are, megatron-core itself leaves the weight out
        return False
    idle = model.output_layer._parameters.get("weight")
    # On the meta device parameters are replaced later, and an attribute would not follow.
    return idle is not None and not idle.is_meta
