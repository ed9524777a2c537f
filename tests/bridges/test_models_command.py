"""``verl-mtp models`` on real bridges and real megatron-core: what is asserted are facts of those releases."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.contract import stacks
from verl_mtp_plugin.models import MBRIDGE, MEGATRON_BRIDGE
from verl_mtp_plugin.models.families import FAMILIES

from . import models_page, models_table
from .models_table import Stack, ask

MBRIDGE_OLD = Stack(MBRIDGE, stacks.MBRIDGE[-1], stacks.MBRIDGE_CORE)
MBRIDGE_NEW = Stack(MBRIDGE, stacks.MBRIDGE[-1], stacks.MEGATRON_CORE[-1])
MB_0_3 = Stack(MEGATRON_BRIDGE, "0.3.1", stacks.BRIDGE_CORES["0.3.1"])
MB_0_4 = Stack(MEGATRON_BRIDGE, "0.4.2", stacks.BRIDGE_CORES["0.4.2"])

#: No connection leaves the process, and no name is looked up.
OFFLINE = """
    import sys

    def refuse(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.sendto"):
            raise RuntimeError(f"network used: {event} {arguments}")

    sys.addaudithook(refuse)
"""
#: A package with three families: one that comes in the shape of DeepSeek-V3, one that no bridge knows, one not to ask.
LAB = """
    from dataclasses import replace
    from verl_mtp_plugin.hookspecs import hookimpl
    from verl_mtp_plugin.models import ModelFamily
    from verl_mtp_plugin.models.families import DEEPSEEK_V3, MIMO

    KEYS = ("num_nextn_predict_layers",)
    TWO = {**DEEPSEEK_V3.sample, "num_nextn_predict_layers": 2}
    UNKNOWN = {**MIMO.sample, "architectures": ["LabForCausalLM"], "model_type": "lab"}
    del UNKNOWN["auto_map"]

    @hookimpl
    def verl_mtp_models():
        return [
            replace(DEEPSEEK_V3, name="Lab V3", sample=TWO),
            ModelFamily("Lab", ("LabForCausalLM",), KEYS, ("lab",), sample=UNKNOWN),
            ModelFamily("Lab, secret", ("SecretForCausalLM",), KEYS),
        ]
"""
#: A family whose sample is no config at all.
BROKEN = """
    from verl_mtp_plugin.hookspecs import hookimpl
    from verl_mtp_plugin.models import ModelFamily

    @hookimpl
    def verl_mtp_models():
        return [ModelFamily("Broken", ("BrokenForCausalLM",), ("mtp",), sample={"model_type": "llama", "mtp": {1, 2}})]
"""


def package(folder: Path, hooks: str) -> Path:
    """A package that registers ``hooks`` under our entry point, in a folder for PYTHONPATH."""
    metadata = folder / "lab-1.0.dist-info"
    metadata.mkdir(parents=True)
    (folder / "lab_hooks.py").write_text(textwrap.dedent(hooks))
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[verl_mtp_plugin]\nlab = lab_hooks\n")
    return folder


def answers(stack: Stack, environment: dict[str, str] | None = None, *, status: int = 0) -> dict[str, dict[str, Any]]:
    """Each family's cell for the stack's bridge, after the other bridge has been found to be not installed."""
    done = ask(stack, "--json", environment=environment)
    assert done.returncode == status, done.stdout[-2000:] + done.stderr[-4000:]
    table = json.loads(done.stdout)
    assert table["status"] == status
    other = MEGATRON_BRIDGE if stack.bridge == MBRIDGE else MBRIDGE
    assert {row["bridges"][other]["state"] for row in table["families"]} == {"not installed"}
    assert table["versions"][stack.bridge] == stack.version
    return {row["family"]: row["bridges"][stack.bridge] for row in table["families"]}


def yes(detail: str, *mends: str) -> dict[str, Any]:
    return {"state": "yes", "detail": detail, "mends": list(mends)}


def no(detail: str) -> dict[str, Any]:
    return {"state": "no", "detail": detail, "mends": []}


def test_mbridge() -> None:
    found = answers(MBRIDGE_OLD)
    assert found["MiMo"] == yes("MimoBridge builds the MTP layers and names their weights", "bridge.mbridge_mimo")
    assert found["DeepSeek-V3"] == yes(
        "DeepseekV3Bridge builds the MTP layers and names their weights", "bridge.mbridge_deepseek"
    )
    # Its GLM-4 class never sets mtp_num_layers, though it has names for MTP weights.
    assert found["GLM-4.5"] == no("GLM4MoEBridge builds this model without MTP layers (mtp_num_layers=None)")
    assert found["Qwen3.5"] == no("it has no bridge class for this model")


def test_without_the_plugins_mend_mbridge_does_no_mimo() -> None:
    found = answers(MBRIDGE_NEW, {"VERL_MTP_PLUGIN": "off"})["MiMo"]
    assert found["state"] == "no"
    # It hands its config to megatron-core where a layer spec belongs.
    assert found["detail"].startswith("MimoBridge cannot build the MTP layers: ValueError: Invalid spec: Transformer")
    assert found["mends"] == []


def test_megatron_bridge_0_4(tmp_path: Path) -> None:
    """Also: it needs no network, and leaves no file where it may write."""
    site, home, temporary = (tmp_path / name for name in ("site", "home", "temporary"))
    for folder in (site, home, temporary):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(OFFLINE))
    environment = {"PYTHONPATH": str(site), "HOME": str(home), "TMPDIR": str(temporary), "PYTHONDONTWRITEBYTECODE": "1"}
    found = answers(MB_0_4, environment)
    assert found["MiMo"] == yes("MimoBridge builds the MTP layers and maps their weights")
    assert found["DeepSeek-V3"] == yes("DeepSeekV3Bridge builds the MTP layers and maps their weights")
    assert found["Qwen3 with an MTP head"] == no("Qwen3Bridge has no mapping for any weight of an MTP layer")
    assert found["MiMo-V2-Flash"] == no("it has no bridge class for this model")
    assert [path for folder in (home, temporary) for path in folder.rglob("*") if path.is_file()] == []


def test_megatron_bridge_0_3() -> None:
    found = answers(MB_0_3)
    # It has set the number to None since it knows the model.
    assert found["DeepSeek-V3"] == no("DeepSeekV3Bridge builds this model without MTP layers (mtp_num_layers=None)")
    assert found["GLM-4.5"] == yes("GLM45Bridge builds the MTP layers and maps their weights")
    assert found["MiMo"] == no("it has no bridge class for this model")


def test_another_packages_families(tmp_path: Path) -> None:
    found = answers(MB_0_4, {"PYTHONPATH": str(package(tmp_path, LAB))})
    assert list(found) == [*(family.name for family in FAMILIES), "Lab V3", "Lab", "Lab, secret"]
    assert found["Lab V3"] == yes("DeepSeekV3Bridge builds the MTP layers and maps their weights")
    assert found["Lab"] == no("it has no bridge class for this model")
    assert found["Lab, secret"]["state"] == "not asked"


def test_a_broken_family_gets_no_answer_and_harms_no_other(tmp_path: Path) -> None:
    found = answers(MBRIDGE_OLD, {"PYTHONPATH": str(package(tmp_path, BROKEN))}, status=1)
    assert found["Broken"] == {
        "state": "no answer",
        "detail": "the sample config cannot be read: TypeError: Object of type set is not JSON serializable",
        "mends": [],
    }
    assert found["MiMo"]["state"] == "yes"


def test_a_bridge_that_cannot_be_imported_gives_no_answer() -> None:
    """Megatron-Bridge needs TransformerEngine, which this machine has not."""
    done = ask(MB_0_4, "--json", stand_ins=False)
    assert done.returncode == 1, done.stderr[-4000:]
    cells = [row["bridges"][MEGATRON_BRIDGE] for row in json.loads(done.stdout)["families"]]
    assert {cell["state"] for cell in cells} == {"no answer"}
    (detail,) = {cell["detail"] for cell in cells}
    assert detail.startswith("megatron.bridge cannot be imported: ")


@pytest.mark.parametrize("key", ["stacks", "families"])
def test_the_committed_table_is_of_these_stacks_and_families(key: str) -> None:
    committed = json.loads(models_table.RESULTS.read_text())
    expected = {
        "stacks": [str(stack) for stack in models_table.STACKS],
        "families": [family.name for family in FAMILIES],
    }
    found = {
        "stacks": [str(Stack(s["bridge"], s["version"], s["megatron_core"])) for s in committed["stacks"]],
        "families": [family["family"] for family in committed["families"]],
    }
    assert found[key] == expected[key]


def test_the_committed_page_shows_the_committed_results() -> None:
    committed = json.loads(models_table.RESULTS.read_text())
    assert models_table.PAGE.read_text() == models_page.render(committed)
