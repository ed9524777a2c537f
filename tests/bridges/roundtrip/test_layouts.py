"""The layouts against transformers' own classes, and the checkpoints made of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from . import checkpoints, layouts
from .cells import DEEPSEEK, GLM, MIMO, MTP_TENSORS, QWEN, Case
from .configs import config

#: transformers 5 keeps a layer's experts in two stacks.
STACKS = {".experts.gate_up_proj": ("gate_proj", "up_proj"), ".experts.down_proj": ("down_proj",)}


def one_by_one(name: str, shape: tuple[int, ...]) -> layouts.Shapes:
    """A tensor of transformers' class, as tensors of a checkpoint."""
    for end, projections in STACKS.items():
        if name.endswith(end):
            stem, (experts, rows, columns) = name.removesuffix(end) + ".experts", shape
            size = (rows // len(projections), columns)
            return {f"{stem}.{i}.{projection}.weight": size for i in range(experts) for projection in projections}
    return {name: shape}


@pytest.mark.parametrize("family", [DEEPSEEK, GLM, QWEN])
def test_the_trunk_is_what_transformers_builds(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = config(Case.parse(f"{family}@1"))
    folder = checkpoints.write(tmp_path, wanted, checkpoints.tensors(wanted))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    built: layouts.Shapes = {}
    for name, tensor in model.state_dict().items():
        built |= one_by_one(name, tuple(tensor.shape))
    assert layouts.trunk(wanted) == built


@pytest.mark.parametrize("family", [MIMO, DEEPSEEK, GLM, QWEN])
def test_the_mtp_head_has_as_many_tensors_as_counted_by_hand(family: str) -> None:
    found = config(Case.parse(f"{family}@1"))
    mtp = layouts.mtp(found)
    assert len(mtp) == MTP_TENSORS[family]
    assert not mtp.keys() & layouts.trunk(found).keys()
    assert len(layouts.copies(found)) == (2 if family in (DEEPSEEK, GLM) else 0)


@pytest.mark.parametrize("family", [MIMO, DEEPSEEK, GLM, QWEN])
def test_no_two_tensors_are_alike_and_no_bit_is_lost_by_adding_one(family: str) -> None:
    tensors = checkpoints.tensors(config(Case.parse(f"{family}@1")))
    numbers = Counter(tuple(tensor.flatten().tolist()) for tensor in tensors.values())
    assert max(numbers.values()) == 1
    for name, tensor in tensors.items():
        assert tensor.dtype is (torch.float32 if name.endswith(layouts.FP32_SUFFIX) else torch.bfloat16)
        if tensor.dtype is torch.bfloat16:
            assert torch.equal(tensor - 1 + 1, tensor) or "norm" not in name
        else:
            assert not torch.equal(tensor.bfloat16().float(), tensor)
