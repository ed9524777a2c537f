"""Model classes that are not ``GPTModel``: megatron-core's HybridModel, and one that a third party registers."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks

from .conftest import RunStack, results

VERL = stacks.VERL[-1]
#: MambaModel in 0.17, HybridModel after.
MEGATRON_CORE = stacks.MEGATRON_CORE[stacks.MEGATRON_CORE.index("0.17.1") :]
CASES = [f"tied_{tied}_detach_{detach}" for tied in (False, True) for detach in (False, True)]


@functools.cache
def run(megatron_core: str, plugin: str = "on") -> dict[str, Any]:
    """What the worker saw under the newest verl."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
    env |= {"PYTHONPATH": stacks.python_path(stacks.Cell(VERL, megatron_core)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.stack.model_classes_worker", VERL, megatron_core, plugin]
    done = subprocess.run(command, cwd=stacks.ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(results(done)[0])
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_the_mtp_head_of_a_hybrid_model_trains_as_upstreams(megatron_core: str, case: str) -> None:
    found = run(megatron_core)[case]
    heads = {name for name in found["sizes"] if name.startswith("mtp.")}
    assert len(heads) > 10
    assert all(found["sizes"][name] > 0 for name in heads)
    assert max(found["apart"][name] for name in heads) < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_nothing_leaks_out_of_the_head(megatron_core: str, case: str) -> None:
    found = run(megatron_core)[case]
    outside = {name: size for name, size in found["sizes"].items() if not name.startswith("mtp.")}
    if "detach_True" in case:
        assert set(outside.values()) == {0.0}
    elif "tied_False" in case:
        assert outside.pop("output_layer.weight") == 0.0
        assert found["upstream_sizes"]["output_layer.weight"] > 0.01  # which upstream trains
        assert max(found["apart"][name] for name in outside) < 1e-5


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_log_probs_run_no_mtp_layer(megatron_core: str, case: str) -> None:
    found = run(megatron_core)[case]
    assert found["logits"] == [2, 16, 64]
    assert found["same_logits"]
    assert found["mtp_calls"] == [1, 0, 0]


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_through_verls_packed_forward(megatron_core: str) -> None:
    found = run(megatron_core)["verl_forward"]
    assert found["log_probs_apart"] < 1e-5
    assert found["mtp_trained"] > 0
    assert found["others_trained"] == 0.0


@pytest.mark.parametrize("megatron_core", MEGATRON_CORE)
def test_a_request_can_be_withdrawn(megatron_core: str) -> None:
    found = run(megatron_core)
    assert found["withdrawn"] == [2, 16]  # upstream's loss per token again
    assert "no GPTModel" in found["verify_without_request"]


def test_without_the_plugin_verl_passes_a_hybrid_model_over() -> None:
    assert run(MEGATRON_CORE[-1], "off") == {"asked": False, "detached": False}


def test_a_class_that_has_no_mtp_is_left_alone(run_stack: RunStack) -> None:
    code = """
        from verl_mtp_plugin.testing import cuda
        cuda.install()
        from megatron.core.models.mamba.mamba_model import MambaModel
        from verl_mtp_plugin.patching import PatchEngine
        from verl_mtp_plugin.training.class_hooks import MAMBA
        engine = PatchEngine()
        engine.arm([MAMBA.patches()])
        print("=>", sorted({str(record.decision) for record in engine.records()}))
        print("=>", "_postprocess" in vars(MambaModel), MambaModel.forward.__module__)
    """
    module = "megatron.core.models.mamba.mamba_model"
    assert results(run_stack(code, megatron_core="0.16.1")) == ["['not_needed']", f"False {module}"]


# -- a third party -----------------------------------------------------------------------------------------------------

MODEL = '''
from megatron.core.models.gpt.gpt_model import GPTModel

class SoftcapGPT(GPTModel):
    """Caps its logits, in a _postprocess of its own."""

    def _postprocess(self, hidden_states, labels, loss_mask=None, mtp_in_postprocess=None, **more):
        logits = super()._postprocess(
            hidden_states, labels=labels, loss_mask=loss_mask, mtp_in_postprocess=mtp_in_postprocess, **more
        )
        return 2.0 * (logits / 2.0).tanh()
'''

HOOKS = """
from verl_mtp_plugin.hookspecs import hookimpl
from verl_mtp_plugin.models import ModelClass

@hookimpl
def verl_mtp_patches(environment):
    return [ModelClass("my_lab.my_gpt", "SoftcapGPT").patches()]
"""

USE = """
    import sys
    sys.path.insert(0, ROOT)
    import torch
    from tests.contract import models, process
    from tests.contract.models import random_batch
    world, _, error = process.prepare(VERL, MEGATRON_CORE, plugin=True, device="cpu")
    assert error is None, error
    from megatron.core.models.gpt import gpt_model
    from my_lab.my_gpt import SoftcapGPT
    from verl_mtp_plugin import report
    from verl_mtp_plugin.errors import UnsupportedError

    plain = world.build()
    plain_class, gpt_model.GPTModel = gpt_model.GPTModel, SoftcapGPT
    capped = world.build()
    gpt_model.GPTModel = plain_class
    assert type(capped) is SoftcapGPT

    def gradients(model):
        batch = world.batch
        logits = model(**batch.inputs(), labels=batch.labels, loss_mask=batch.loss_mask)
        (0.0 * logits).sum().backward()
        return logits, {name: p.grad for name, p in model.named_parameters() if name.startswith("mtp.")}

    try:
        world.ask(capped)
    except UnsupportedError as error:
        print("=> refused:", error.found)
        raise SystemExit
    world.ask(plain)
    (logits, expected), (found, trained) = gradients(plain), gradients(capped)
    print("=>", torch.equal(found, 2.0 * (logits / 2.0).tanh()), bool((found != logits).any()))
    print("=>", all(torch.equal(trained[name], grad) and bool(grad.any()) for name, grad in expected.items()))
    print("=>", [str(p.decision) for p in report().patches if p.id.startswith("model_class.my_lab")])
"""


@pytest.fixture
def my_lab(tmp_path: Path) -> Path:
    """A folder with an installed package, its entry point among its metadata."""
    folder = tmp_path / "site"
    (folder / "my_lab").mkdir(parents=True)
    (folder / "my_lab" / "__init__.py").touch()
    (folder / "my_lab" / "my_gpt.py").write_text(MODEL)
    (folder / "my_lab" / "hooks.py").write_text(HOOKS)
    metadata = folder / "my_lab-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-lab\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl_mtp_plugin]\nmy_lab = my_lab.hooks\n")
    return folder


def use(megatron_core: str) -> str:
    return (
        USE.replace("ROOT", repr(str(stacks.ROOT)))
        .replace("MEGATRON_CORE", repr(megatron_core))
        .replace("VERL", repr(VERL))
    )


@pytest.mark.parametrize("megatron_core", ["0.16.1", MEGATRON_CORE[-1]])
def test_a_third_partys_class_is_served(run_stack: RunStack, my_lab: Path, megatron_core: str) -> None:
    done = run_stack(use(megatron_core), verl=VERL, megatron_core=megatron_core, paths=(my_lab,))
    assert results(done) == ["True True", "True", "['applied']"]


def test_the_same_class_unregistered_is_refused(run_stack: RunStack, my_lab: Path) -> None:
    (my_lab / "my_lab-1.0.dist-info" / "entry_points.txt").unlink()
    done = run_stack(use(MEGATRON_CORE[-1]), verl=VERL, megatron_core=MEGATRON_CORE[-1], paths=(my_lab,))
    assert results(done) == ["refused: my_lab.my_gpt.SoftcapGPT with a _postprocess of its own"]


BAD = """
    from verl_mtp_plugin.models import ModelClass
    from verl_mtp_plugin.patching import PatchEngine
    import lab

    engine = PatchEngine()
    engine.arm(ModelClass("lab", name).patches() for name in ("Star", "Few", "Heir"))
    for record in engine.records():
        print("=>", record.decision, record.detail)
"""
LAB = """
class Star:
    def _postprocess(self, *args): ...
class Few:
    def _postprocess(self, hidden_states, labels, **more): ...
class Heir(Star): ...
"""


def test_what_cannot_be_served_is_named(run_stack: RunStack, tmp_path: Path) -> None:
    (tmp_path / "lab.py").write_text(LAB)
    assert results(run_stack(BAD, paths=(tmp_path,))) == [
        "unsupported found Star._postprocess with *args; expected parameters that can be handed over by name; "
        "name them, or take them as **kwargs",
        "unsupported found Few._postprocess without loss_mask, mtp_in_postprocess; expected the parameters "
        "hidden_states, labels, loss_mask, mtp_in_postprocess; give it a patch of its own in place of a ModelClass",
        "not_needed Heir inherits _postprocess",
    ]
