"""Which tensors are MTP's: one answer for what is saved and for the drafter's checksum, for every family."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from verl_mtp_plugin.bridges.weights.superfluous import superfluous
from verl_mtp_plugin.models import ModelFamily
from verl_mtp_plugin.models.families import FAMILIES
from verl_mtp_plugin.models.lookup import mtp_names_of
from verl_mtp_plugin.rollout.sglang.drafter import Drafter

#: How published checkpoints name a tensor of MTP layer ``i`` of a model whose trunk has ``n`` layers.
NAMED = {
    "MiMo": "model.mtp_layers.{i}.input_proj.weight",
    "MiMo-V2-Flash": "model.mtp.layers.{i}.eh_proj.weight",
    "DeepSeek-V4": "mtp.{i}.eh_proj.weight",
    "ERNIE 4.5": "model.mtp_block.{i}.self_attn.o_proj.weight",
    **dict.fromkeys(
        ("DeepSeek-V3", "GLM-4.5", "GLM-4.7-Flash", "GLM-5", "Ling 2.0", "Step-3.5", "HunYuan 3"),
        "model.layers.{n+i}.eh_proj.weight",
    ),
    "GLM-4.5V": "model.language_model.layers.{n+i}.eh_proj.weight",
    **dict.fromkeys(
        ("Qwen3 with an MTP head", "Qwen3-Next", "Qwen3.5 text", "Qwen3.5 MoE text", "Qwen3.5", "Qwen3.5 MoE"),
        "mtp.layers.{i}.self_attn.o_proj.weight",
    ),
    **dict.fromkeys(("Nemotron-H", "EXAONE MoE", "EXAONE 4.5"), "mtp.layers.{i}.eh_proj.weight"),
}
#: Of no family's MTP.
TRUNK = (
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.o_proj.weight",
    "model.layers.{n-1}.self_attn.o_proj.weight",
    "model.language_model.layers.{n-1}.self_attn.o_proj.weight",
    "model.visual.blocks.{n+1}.attn.qkv.weight",
)


def config(family: ModelFamily, layers: int | None) -> Any:
    """The family's sample config with as many MTP layers; None: their number is cleared."""
    read = json.loads(json.dumps(family.sample), object_hook=lambda keys: SimpleNamespace(**keys))
    for part in (read, getattr(read, "text_config", read)):
        for key in family.num_layers_keys:
            if hasattr(part, key):
                setattr(part, key, layers or 0)
    return read


def trunk_of(config: Any) -> int:
    return int(getattr(config, "text_config", config).num_hidden_layers)


def written(template: str, n: int, i: int = 0) -> str:
    numbers = {"{i}": i, "{n+i}": n + i, "{n-1}": n - 1, "{n+1}": n + 1}
    for key, number in numbers.items():
        template = template.replace(key, str(number))
    return template


def compared(config: Any, names: list[str]) -> set[str]:
    """The tensors that a drafter made of all of them would be compared with."""
    drafter = Drafter(None, "replica 0", config)
    lasts = {".".join(name.split(".")[-2:]) for name in names}
    drafter.learn([{"ranks": [{last: [1, "bfloat16", None] for last in lasts}]}])
    for _ in drafter.watch((name, torch.ones(1, dtype=torch.bfloat16)) for name in names):
        pass
    return {name for name, *_ in drafter._pending}


@pytest.mark.parametrize("layers", [1, 3, 20])
@pytest.mark.parametrize("family", [f for f in FAMILIES if f.mtp_prefixes], ids=lambda family: family.name)
def test_both_users_see_the_same_tensors_as_mtps(family: ModelFamily, layers: int) -> None:
    found = config(family, layers)
    n = trunk_of(found)
    mtp = {written(NAMED[family.name], n, i) for i in range(layers)}
    names = [*(written(name, n) for name in TRUNK), *sorted(mtp)]
    assert len(mtp) == layers
    assert superfluous(found, names, with_mtp=False) == mtp
    assert compared(found, names) == mtp
    assert {mtp_names_of(found).layer(name) for name in mtp} == set(range(layers))
    # Disabled: the number is cleared, and the checkpoint still has them.
    assert superfluous(config(family, None), names, with_mtp=False) == mtp


def test_a_family_without_a_description_of_its_names_has_none() -> None:
    undescribed = {family.name for family in FAMILIES} - set(NAMED)
    assert undescribed == {"MiniMax-M2"}
    for architecture in ("MiniMaxM2ForCausalLM", "LabForCausalLM"):
        found = SimpleNamespace(architectures=[architecture], num_hidden_layers=2)
        assert not mtp_names_of(found)
        assert superfluous(found, ["model.layers.2.eh_proj.weight"], with_mtp=False) == frozenset()


def test_without_the_number_of_the_trunks_layers_none_of_them_is_taken_for_mtps() -> None:
    found = SimpleNamespace(architectures=["DeepseekV3ForCausalLM"])
    assert not mtp_names_of(found)
    assert superfluous(found, ["model.layers.0.mlp.down_proj.weight"], with_mtp=False) == frozenset()


def test_a_lora_wrapper_is_no_part_of_the_name() -> None:
    names = mtp_names_of(SimpleNamespace(architectures=["DeepseekV3ForCausalLM"], num_hidden_layers=61))
    assert "model.layers.61.self_attn.o_proj.base_layer.weight" in names
    assert str(names) == "model.layers.61., model.layers.62., ..."


def test_a_right_sync_of_several_mtp_layers_is_held_and_an_old_layer_is_not() -> None:
    """A drafter of three steps, each with a layer of its own, as SGLang's multi-layer workers have it."""
    from verl_mtp_plugin.rollout.sglang.checksum import Comparison
    from verl_mtp_plugin.rollout.sglang.digest import as_integers, digest

    found = SimpleNamespace(architectures=["Step3p5ForCausalLM"], num_hidden_layers=4, num_nextn_predict_layers=3)
    generator = torch.Generator().manual_seed(0)

    def answer(tensors: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        held = {f"draft_step_{i}.model.eh_proj.weight": tensor for i, tensor in enumerate(tensors.values())}
        values = as_integers([digest(tensor) for tensor in held.values()])
        ranks = [{name: [t.numel(), "bfloat16", value] for (name, t), value in zip(held.items(), values)}]
        return [{"ranks": ranks}]

    def sync(drafter: Drafter, stale: int | None = None) -> Comparison:
        sent = {
            f"model.layers.{4 + i}.eh_proj.weight": torch.randn(4, 8, generator=generator).to(torch.bfloat16)
            for i in range(3)
        }
        for _ in drafter.watch(iter(sent.items())):
            pass
        held = {name: torch.zeros_like(t) if i == stale else t for i, (name, t) in enumerate(sent.items())}
        return drafter.compare(answer(held))

    drafter = Drafter(None, "replica 0", found)
    drafter.learn(answer({str(i): torch.zeros(4, 8, dtype=torch.bfloat16) for i in range(3)}))
    for _ in range(2):
        compared = sync(drafter)
        assert len(compared.held) == 3, compared
        assert not compared.different
        assert not compared.uncompared
    assert set(sync(drafter, stale=2).different) == {"draft_step_2.model.eh_proj.weight"}
