"""Facts that stand in two places say the same."""

from __future__ import annotations

import re

from tests.contract import stacks
from verl_mtp_plugin import __version__, tested

from .conftest import ROOT


def test_tested_versions_are_those_of_the_matrix() -> None:
    installed = {name for name, _ in stacks.LAYERS} - {"transformers", "huggingface_hub"}
    assert installed == tested.TESTED.keys() - tested.STOOD_IN
    for name in installed:
        assert tuple(version for layer, version in stacks.LAYERS if layer == name) == tested.TESTED[name]


def test_readme_names_the_tested_versions() -> None:
    readme = (ROOT / "README.md").read_text()
    assert f"verl {', '.join(tested.VERL)} with megatron-core {', '.join(tested.MEGATRON_CORE)}" in readme
    assert f"mbridge {', '.join(tested.MBRIDGE)}, Megatron-Bridge {', '.join(tested.MEGATRON_BRIDGE)}" in readme
    assert f"verl-mtp-plugin {__version__} (auto)" in readme


def test_readme_names_the_rollout_engines() -> None:
    servers = (ROOT / "README.md").read_text().split("\nRollout servers", 1)[1].split("\n## ", 1)[0]
    sglang, vllm = (
        next(line for line in servers.splitlines() if line.startswith(f"- {n}")) for n in ("SGLang", "vLLM")
    )
    assert set(re.findall(r"\d+\.\d+\.\d+(?:\.post\d+)?", sglang.split("with SGLang's own")[0])) >= {*tested.SGLANG}
    assert set(re.findall(r"\d+\.\d+", vllm)) == {version.rpartition(".")[0] for version in tested.VLLM}


def test_the_quickstart_names_its_releases() -> None:
    page = (ROOT / "examples" / "quickstart" / "README.md").read_text()
    releases = (tested.VERL[-1], tested.MBRIDGE_CORE, tested.MBRIDGE[-1])
    assert "verl {}, megatron-core {} and mbridge {}".format(*releases) in page


def test_readme_commands_are_sessions() -> None:
    sessions = set(re.findall(r"^def (\w+)\(session", (ROOT / "noxfile.py").read_text(), re.M))
    called = set(re.findall(r"^python3\.11 noxfile\.py (\w+)", (ROOT / "README.md").read_text(), re.M))
    assert called == {"quickstart"}
    assert called <= sessions
    assert "python3.11 noxfile.py\n" in (ROOT / ".ci" / "run").read_text()


def test_nox_is_pinned_once() -> None:
    pinned = re.search(r'NOX = "(nox==[\w.]+)"', (ROOT / "noxfile.py").read_text())
    assert pinned is not None
    assert pinned[1] in (ROOT / "tests" / "requirements" / "lint.txt").read_text().splitlines()


def test_package_never_imports_its_stand_ins() -> None:
    for path in (ROOT / "verl_mtp_plugin").rglob("*.py"):
        if "testing" not in path.parts:
            assert not re.search(r"^\s*(from|import) .*testing", path.read_text(), re.M), path


def test_the_engine_knows_nothing_of_mtp() -> None:
    for path in (ROOT / "verl_mtp_plugin" / "patching").glob("*.py"):
        words = path.read_text().replace("verl_mtp", "").replace("verl-mtp", "").replace("VERL_MTP", "")
        assert not re.search(r"\bmtp\b|megatron|sglang|postprocess", words, re.I), path
