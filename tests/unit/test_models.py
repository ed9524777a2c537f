"""Model families as data, and what is read off a Hugging Face config with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from verl_mtp_plugin import runtime
from verl_mtp_plugin.models import BRIDGES, ModelFamily
from verl_mtp_plugin.models.families import FAMILIES
from verl_mtp_plugin.models.lookup import family_of, promised_layers

from .conftest import Run

NAMES = [family.name for family in FAMILIES]


def config(**keys: Any) -> SimpleNamespace:
    """A Hugging Face config, sub-configs included."""
    return SimpleNamespace(**{k: config(**v) if k.endswith("_config") else v for k, v in keys.items()})


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"architectures": ["MiMoForCausalLM"]}, "MiMo"),
        ({"architectures": ["Qwen3_5MoeForConditionalGeneration"]}, "Qwen3.5 MoE"),
        ({"architectures": ["ExaoneMoEForCausalLM"]}, "EXAONE MoE"),
        ({"model_type": "glm_moe_dsa"}, "GLM-5"),
        ({"architectures": None, "model_type": "nemotron_h"}, "Nemotron-H"),
        # An architecture says more than the model type that it shares.
        ({"architectures": ["DeepseekV3ForTokenClassification"], "model_type": "deepseek_v3"}, None),
        ({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}, None),
        ({}, None),
    ],
)
def test_a_config_belongs_to_a_family_by_architecture_or_else_by_model_type(
    keys: dict[str, Any], name: str | None
) -> None:
    family = family_of(config(**keys))
    assert (family and family.name) == name


def test_a_later_registration_describes_a_family_anew() -> None:
    anew = ModelFamily("MiMo, ours", ("MiMoForCausalLM",), ("our_mtp_layers",))
    mimo = config(architectures=["MiMoForCausalLM"])
    assert family_of(mimo, [*FAMILIES, anew]) is anew
    assert family_of(mimo, FAMILIES).name == "MiMo"  # type: ignore[union-attr]
    assert family_of(mimo, []) is None


@pytest.mark.parametrize(
    ("keys", "layers"),
    [
        ({"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 1}, 1),
        ({"architectures": ["Step3p5ForCausalLM"], "num_nextn_predict_layers": 3}, 3),
        ({"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 0}, 0),
        ({"architectures": ["DeepseekV3ForCausalLM"]}, 0),
        ({"architectures": ["Qwen3_5ForCausalLM"], "mtp_num_hidden_layers": 1}, 1),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {"mtp_num_hidden_layers": 1}}, 1),
        ({"architectures": ["MiniMaxM2ForCausalLM"], "num_mtp_modules": 3}, 3),
        # Where the family is known its keys decide: what another one calls so need not mean the same here.
        ({"architectures": ["MiniMaxM2ForCausalLM"], "mtp_num_hidden_layers": 1}, 0),
        ({"architectures": ["LabForCausalLM"], "num_nextn_predict_layers": 2}, 2),
        ({"architectures": ["LabForCausalLM"], "mtp_num_hidden_layers": 1}, 1),
        ({"architectures": ["LabForCausalLM"], "text_config": {"num_nextn_predict_layers": 1}}, 1),
        ({"architectures": ["LabForCausalLM"], "text_config": {}, "num_nextn_predict_layers": None}, 0),
        ({"model_type": "llama"}, 0),
    ],
)
def test_the_number_of_mtp_layers_that_a_config_promises(keys: dict[str, Any], layers: int) -> None:
    assert promised_layers(config(**keys)) == layers


def test_families_do_not_claim_each_others_models() -> None:
    for kind in ("name", "architectures", "model_types"):
        values = [getattr(family, kind) for family in FAMILIES]
        flat = [item for value in values for item in ([value] if kind == "name" else value)]
        assert len(flat) == len(set(flat)), kind


@pytest.mark.parametrize("family", FAMILIES, ids=NAMES)
def test_a_sample_is_a_config_of_its_family_with_mtp_layers(family: ModelFamily) -> None:
    sample = json.loads(json.dumps(family.sample))
    found = config(**sample)
    assert family_of(found) is family
    assert family.num_layers(found) == 1
    assert sample["model_type"] in family.model_types
    assert set(family.since) <= set(BRIDGES)
    # After a checkpoint's name is completed it is a prefix like any other.
    assert all("{" not in prefix.format(layers=2) for prefix in family.mtp_prefixes)


def test_another_package_registers_a_family(run: Run, write: Callable[[str, str], Path]) -> None:
    write("lab_hooks.py", """
        from verl_mtp_plugin.hookspecs import hookimpl
        from verl_mtp_plugin.models import ModelFamily

        @hookimpl
        def verl_mtp_models():
            return [ModelFamily("Lab", ("LabForCausalLM",), ("mtp_depth",))]
    """)  # fmt: skip
    write("lab-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    write("lab-1.0.dist-info/entry_points.txt", "[verl_mtp_plugin]\nlab = lab_hooks\n")
    done = run("""
        import sys
        from types import SimpleNamespace
        from verl_mtp_plugin import runtime
        from verl_mtp_plugin.models.lookup import family_of, promised_layers
        found = SimpleNamespace(architectures=["LabForCausalLM"], mtp_depth=2)
        print(runtime.models()[-1].name, family_of(found).name, promised_layers(found))
        print([name for name in ("torch", "transformers", "verl", "megatron") if name in sys.modules])
    """)
    assert done.stdout.splitlines() == ["Lab Lab 2", "[]"]


def test_builtin_families_are_registered_by_their_module() -> None:
    assert [family.name for family in runtime.models()][: len(FAMILIES)] == NAMES
