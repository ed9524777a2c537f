"""A model family, described as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

from ..definitions import Fields
from .mtp_names import MtpNames

#: The two bridges between Hugging Face's weights and Megatron's that verl uses, by distribution name.
MBRIDGE: Final = "mbridge"
MEGATRON_BRIDGE: Final = "megatron-bridge"
BRIDGES: Final = (MBRIDGE, MEGATRON_BRIDGE)


@dataclass(frozen=True, slots=True)
class ModelFamily:
    """Models that share an architecture and name their MTP head alike.

    Nothing here decides whether a bridge supports the family: that is found by asking the bridge.
    """

    name: str  # "MiMo"
    architectures: tuple[str, ...]  # HF ``architectures``: ("MiMoForCausalLM",)
    num_layers_keys: tuple[str, ...]  # HF config keys that may hold the number of MTP layers, in order
    model_types: tuple[str, ...] = ()  # HF ``model_type``, by which mbridge chooses: ("mimo",)
    #: How names of MTP tensors in an HF checkpoint begin; ``{layers}`` is a number from that of the trunk's layers on,
    #: where some families count on: ("model.layers.{layers}.",)
    mtp_prefixes: tuple[str, ...] = ()
    #: How names of tensors end that a checkpoint may hold besides, copies of the trunk's embedding and head:
    #: ("embed_tokens.weight",). Rollout engines take the trunk's.
    copies: tuple[str, ...] = ()
    #: First release of a bridge known to support the family, for advice alone: {"megatron-bridge": "0.4.2"}
    since: Mapping[str, str] = field(default_factory=dict)
    #: A complete HF config at toy size, with which the installed bridges are asked (``verl-mtp models``).
    sample: Mapping[str, Any] | None = None
    #: Names of tensors in the sample's checkpoint, where a bridge counts MTP layers by them and not by the config.
    sample_tensors: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        fields = Fields(self, "name")
        fields.text("name")
        fields.texts("architectures", "num_layers_keys", "model_types", "mtp_prefixes", "copies", "sample_tensors")
        for prefix in self.mtp_prefixes:
            _check_prefix(fields, prefix)
        expected = f"a mapping from {' or '.join(BRIDGES)} to a release, such as {{{MEGATRON_BRIDGE!r}: '0.7.0'}}"
        for bridge, release in fields.mapping("since", expected).items():
            if bridge not in BRIDGES:
                near = get_close_matches(str(bridge), BRIDGES, 1)
                raise fields.refuse("since", self.since, expected, f"Write {near[0]!r}." if near else "")
            if not isinstance(release, str):
                raise fields.refuse("since", self.since, f"{expected}, a string")
        if self.sample is not None:
            fields.mapping("sample", "a mapping like config.json, or None")

    def matches(self, hf_config: Any) -> bool:
        """Whether an HF config object is of this family, by architecture or else by model type."""
        architectures = getattr(hf_config, "architectures", None) or ()
        if architectures:
            return not set(self.architectures).isdisjoint(architectures)
        return getattr(hf_config, "model_type", None) in self.model_types

    def num_layers(self, hf_config: Any) -> int:
        """The number of MTP layers that an HF config promises, at its top or in its ``text_config``; 0 if none."""
        found = (getattr(part, key, None) for part in parts(hf_config) for key in self.num_layers_keys)
        return next((int(number) for number in found if number), 0)

    def mtp_names(self, hf_config: Any) -> MtpNames:
        """Which tensors of a checkpoint with this HF config are MTP's: those of all MTP layers that it may hold.

        The number of MTP layers is not asked: it may have been cleared from the config, to disable them.
        """
        found = (getattr(part, "num_hidden_layers", None) for part in reversed(list(parts(hf_config))))
        return MtpNames(self.mtp_prefixes, next((int(number) for number in found if number), None))


def _check_prefix(fields: Fields, prefix: str) -> None:
    try:
        prefix.format(layers=0)
    except (LookupError, ValueError, AttributeError):
        raise fields.refuse("mtp_prefixes", prefix, "a prefix with no placeholder but {layers}") from None


def parts(hf_config: Any) -> Iterator[Any]:
    """A Hugging Face config, and the one of the text model in it where the model sees images too."""
    yield hf_config
    text = getattr(hf_config, "text_config", None)
    if text is not None:
        yield text
