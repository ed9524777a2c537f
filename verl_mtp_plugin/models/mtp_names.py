"""Which tensors of a checkpoint are a model's MTP layers, told by their names alone. Standard library only.

One definition for all who ask: what is saved (``bridges/weights/superfluous.py``), what the drafter's checksum compares
and whether a sync feeds the drafter at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

#: In a prefix, the number of an MTP layer that counts on after the trunk's.
LAYERS: Final = "{layers}"
#: Parts of a name that only say where the text model lies in a larger one, or that a LoRA adapter wraps the layer.
_WRAPPERS: Final = frozenset({"language_model", "text_model", "thinker", "base_layer"})
_NUMBER: Final = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True, slots=True)
class MtpNames:
    """The names of one model's MTP tensors: ``name in names``. Every MTP layer's, however many there are.

    Args:
        prefixes: how they begin, as :attr:`ModelFamily.mtp_prefixes` has it.
        trunk: how many layers the trunk has; None if the config does not say, and then no prefix with ``{layers}``
            can tell an MTP layer from one of the trunk.
    """

    prefixes: tuple[str, ...]
    trunk: int | None

    def __bool__(self) -> bool:
        """Whether any name can be told."""
        return any(self.trunk is not None or LAYERS not in prefix for prefix in self.prefixes)

    def __contains__(self, name: str) -> bool:
        return self._rest(name) is not None

    def layer(self, name: str) -> int | None:
        """The number of the MTP layer that a tensor belongs to, from 0; None if the name has none, or is not MTP's."""
        rest = self._rest(name)
        found = None if rest is None else _NUMBER.search(rest)
        return int(found[1]) if found else None

    def among(self, names: Iterable[str]) -> frozenset[str]:
        """Those of ``names`` that are MTP's."""
        return frozenset(name for name in names if name in self)

    def __str__(self) -> str:
        """For messages: ``model.layers.61., model.layers.62., ...``."""
        shown = []
        for prefix in self.prefixes:
            if LAYERS not in prefix:
                shown.append(prefix)
            elif self.trunk is not None:
                shown += [prefix.replace(LAYERS, str(self.trunk)), prefix.replace(LAYERS, str(self.trunk + 1)), "..."]
        return ", ".join(shown)

    def _rest(self, name: str) -> str | None:
        """What follows the prefix, an MTP layer's number first where the prefix counts on; None if not MTP's."""
        plain = ".".join(part for part in name.split(".") if part not in _WRAPPERS)
        for prefix in self.prefixes:
            head, counted, tail = prefix.partition(LAYERS)
            if not plain.startswith(head):
                continue
            rest = plain[len(head) :]
            if not counted:
                return rest
            digits = re.match(r"\d+", rest)
            if digits and self.trunk is not None and rest[digits.end() :].startswith(tail):
                layer = int(digits[0]) - self.trunk
                if layer >= 0:
                    return f"{layer}.{rest[digits.end() + len(tail) :]}"
        return None
