"""Which releases of verl and SGLang are tested together: each verl with the SGLang that it pins."""

from __future__ import annotations

import os
from dataclasses import dataclass

from tests.contract import stacks


@dataclass(frozen=True, slots=True)
class Stack:
    """One pair of releases."""

    verl: str
    sglang: str

    def __str__(self) -> str:
        return f"verl-{self.verl}_sglang-{self.sglang}"

    @property
    def path(self) -> str:
        """PYTHONPATH: this repository first, for Ray's workers start elsewhere."""
        parts = (stacks.ROOT, stacks.layer("verl", self.verl), stacks.layer("sglang", self.sglang))
        return os.pathsep.join(map(str, parts))


PINNED = tuple(Stack(verl, sglang) for verl, sglang in stacks.SGLANG_PINS.items())
#: Rules of SGLang that came after the last pin, with the newest verl; of the same rules the first and the newest.
LATER = tuple(Stack(stacks.VERL[-1], release) for release in (stacks.SGLANG_SESSIONS, stacks.SGLANG[-1]))
LATEST = LATER[-1]
#: Older verls with the newest SGLang. verl 0.7.1 imports what no SGLang has from 0.5.10 on.
OLDER_VERL = tuple(Stack(release, stacks.SGLANG[-1]) for release in ("0.8.0", "0.9.0"))
