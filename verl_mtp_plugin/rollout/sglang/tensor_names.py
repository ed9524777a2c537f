"""How the names of a checkpoint's tensors and of SGLang's parameters correspond. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

#: Modules that SGLang makes of several tensors of a checkpoint.
FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
    "fused_qkv_a_proj_with_mqa": ("q_a_proj", "kv_a_proj_with_mqa"),
}
#: The same of experts, whose tensors lie in one parameter.
EXPERTS: Final[Mapping[str, tuple[str, ...]]] = {
    "w13_weight": ("experts.gate_proj.weight", "experts.up_proj.weight"),
    "w2_weight": ("experts.down_proj.weight",),
}
_EXPERT: Final = re.compile(r"^(?:(.*)\.)?experts\.\d+\.(\w+\.\w+)$")


def unit(name: str) -> tuple[str, str]:
    """Path and last parts of a tensor's name. Experts are one unit, since they lie in one parameter."""
    expert = _EXPERT.match(name)
    if expert:
        return expert.group(1) or "", f"experts.{expert.group(2)}"
    path, _, leaf = name.rpartition(".")
    path, _, module = path.rpartition(".")
    return path, f"{module}.{leaf}"


def made_of(parameter: str) -> tuple[str, ...]:
    """The last parts of the names of the tensors that a parameter of SGLang's is made of."""
    *_, module, leaf = ("", *parameter.split("."))
    if module == "experts" and leaf in EXPERTS:
        return EXPERTS[leaf]
    return tuple(f"{part}.{leaf}" for part in FUSED.get(module, (module,)))
