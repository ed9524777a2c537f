"""Third parties' packages with one fault each, as directories that look installed, and what is to be said of them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: The module whose functions the packages patch.
TARGET = "lab_target"
TARGET_BODY = "def shared(): return 0\n" + "\n".join(f"def f{number}(): return {number}" for number in range(60))

HEAD = """
    from verl_mtp_plugin.hookspecs import hookimpl
    from verl_mtp_plugin.models import ModelClass, ModelFamily, Seam
    from verl_mtp_plugin.patching.needs import Needs
    from verl_mtp_plugin.patching import Decision, Patch, PatchSet, Target, Verdict, applicable, around
    wrap = around(lambda original: ("patched", original()))
    def patch(number, id=None, **fields):
        given = {"target": Target("lab_target", f"f{number}"), "build": wrap, **fields}
        return Patch(id=id or f"lab.f{number}", reason="a test", upstream="none", **given)
"""


def hook(returned: str) -> str:
    """A package whose hook for patches returns the expression."""
    return f"    @hookimpl\n    def verl_mtp_patches(environment):\n        return {returned}\n"


def models(returned: str) -> str:
    """A package whose hook for models returns the expression."""
    return f"    @hookimpl\n    def verl_mtp_models():\n        return {returned}\n"


def family(**fields: str) -> str:
    """A package whose one model family has these fields, as expressions."""
    given = {"architectures": '("LabLM",)', "num_layers_keys": '("n",)', **fields}
    return models(f'[ModelFamily("Lab", {", ".join(f"{name}={value}" for name, value in given.items())})]')


@dataclass(frozen=True)
class Fault:
    """A package that is left out as a whole: its hooks, and what must be said of it."""

    body: str
    said: Sequence[str]
    head: str = HEAD


#: Everything for which a package as a whole is left out.
PACKAGES: dict[str, Fault] = {
    "target_is_text": Fault(hook('[patch(1, target="a.b:c")]'), ["target='a.b:c' (str)", "a Target", "Target(module"]),
    "target_with_a_colon": Fault(hook('[patch(1, target=Target("a.b:c", "f"))]'), ["module='a.b:c'", "a dotted name"]),
    "id_is_no_text": Fault(hook("[patch(1, id=7)]"), ["id=7 (int)", "a string"]),
    "reason_is_none": Fault(
        hook('[Patch("lab.x", Target("m", "f"), None, "none", build=wrap)]'), ["Patch 'lab.x'", "reason=None"]
    ),
    "build_cannot_be_called": Fault(hook('[patch(1, build="f")]'), ["build='f'", "something that can be called"]),
    "decide_cannot_be_called": Fault(hook("[patch(1, decide=True)]"), ["decide=True", "something that can be called"]),
    "critical_is_text": Fault(hook('[patch(1, critical="no")]'), ["critical='no'", "True or False"]),
    "unknown_field": Fault(hook("[patch(1, crtical=True)]"), ["crtical"]),
    "set_of_one_patch": Fault(hook('[PatchSet("lab.set", patch(1))]'), ["patches=Patch(", "a tuple of Patch"]),
    "set_with_text": Fault(hook('[PatchSet("lab.set", ("lab.f1",))]'), ["patches='lab.f1'", "a tuple of Patch"]),
    "set_is_empty": Fault(hook('[PatchSet("lab.set", ())]'), ["PatchSet 'lab.set'", "at least one Patch"]),
    "id_twice_in_a_set": Fault(
        hook('[PatchSet("lab.set", (patch(1, id="lab.x"), patch(2, id="lab.x")))]'), ["the id lab.x more than once"]
    ),
    "target_twice_in_a_set": Fault(
        hook('[PatchSet("lab.set", (patch(1, id="lab.x"), patch(1, id="lab.y")))]'), ["lab_target:f1 more than once"]
    ),
    "needs_are_text": Fault(hook('[patch(1, needs="m:f")]'), ["needs='m:f'", "a tuple of Needs"]),
    "needs_of_text": Fault(hook('[patch(1, needs=("m:f",))]'), ["needs='m:f'", "a tuple of Needs"]),
    "where_is_no_text": Fault(hook("[patch(1, needs=(Needs(7),))]"), ["Needs 7: where=7 (int)", "a string"]),
    "since_is_text": Fault(family(since='"0.7.0"'), ["ModelFamily 'Lab'", "since='0.7.0' (str)", "a mapping from"]),
    "since_of_a_misspelt_bridge": Fault(family(since='{"megatron_bridge": "0.7.0"}'), ["Write 'megatron-bridge'"]),
    "since_is_a_number": Fault(family(since='{"mbridge": 0.7}'), ["since={'mbridge': 0.7}", "a string"]),
    "architectures_are_text": Fault(family(architectures='"LabLM"'), ["architectures='LabLM'", "Write ('LabLM',)"]),
    "prefixes_are_text": Fault(family(mtp_prefixes='"mtp."'), ["mtp_prefixes='mtp.'", "a tuple of strings"]),
    "unknown_placeholder": Fault(family(mtp_prefixes='("model.{layer}.",)'), ["'model.{layer}.'", "but {layers}"]),
    "sample_is_text": Fault(family(sample='"config.json"'), ["sample='config.json'", "a mapping like config.json"]),
    "unknown_family_field": Fault(family(archs="()"), ["archs"]),
    "seam_is_text": Fault(
        hook('[ModelClass("lab_target", "GPT", "forward").patches()]'), ["seam='forward'", "FORWARD"]
    ),
    "hook_raises": Fault(hook("1 / 0"), ["verl_mtp_patches failed", "ZeroDivisionError"]),
    "hook_exits": Fault(hook("exit(3)"), ["verl_mtp_patches failed", "SystemExit: 3"]),
    "model_hook_exits": Fault(models("exit(3)"), ["verl_mtp_models failed", "SystemExit: 3"]),
    "hook_stops_with_an_odd_error": Fault(
        "    class Odd(BaseException):\n        def __str__(self): raise ValueError\n"
        + "    def odd(): raise Odd\n"
        + hook("odd()"),
        ["Odd: (its message cannot be read)"],
    ),
    "hook_says_much": Fault(
        "    def much(): raise ValueError('x' * 10_000_000)\n" + hook("much()"), ["ValueError: xxx", "x..."]
    ),
    "hook_returns_none": Fault(hook("None"), ["verl_mtp_patches that returned None", "Return []"]),
    "model_hook_returns_none": Fault(models("None"), ["verl_mtp_models that returned None", "Return []"]),
    "hook_returns_a_patch": Fault(hook("patch(1)"), ["that returned Patch(", "Put it into a list"]),
    "hook_returns_text": Fault(hook('"lab.f1"'), ["that returned 'lab.f1'", "a list of Patch or PatchSet"]),
    "hook_returns_a_mapping": Fault(hook('{"lab.f1": patch(1)}'), ["a list of Patch or PatchSet"]),
    "hook_returns_other_things": Fault(hook('[patch(1), "lab.f2"]'), ["'lab.f2' in what verl_mtp_patches returned"]),
    "hook_returns_a_class": Fault(hook('[ModelClass("lab_target", "GPT")]'), ["ModelClass(module='lab_target'"]),
    "hook_returns_an_odd_object": Fault(
        "    class Odd:\n        def __repr__(self): raise ValueError\n" + hook("[Odd()]"), ["Odd", "verl_mtp_patches"]
    ),
    "hook_never_ends": Fault(
        "    import itertools\n    same = patch(1)\n" + hook("itertools.repeat(same)"), ["more than 10000 items"]
    ),
    "hook_takes_what_there_is_not": Fault(
        "    @hookimpl\n    def verl_mtp_patches(environment, config):\n        return []\n", ["config", "hookspec"]
    ),
    "forgotten_mark": Fault(hook("[]").replace("    @hookimpl\n", ""), ["'verl_mtp_patches' without @hookimpl"]),
    "one_of_two_marks_forgotten": Fault(
        hook("[]") + models("[]").replace("    @hookimpl\n", ""), ["'verl_mtp_models' without @hookimpl"]
    ),
    "mark_of_another_project": Fault(
        "    import pluggy\n    hookimpl = pluggy.HookimplMarker('verl')\n" + hook("[]"), ["without @hookimpl"]
    ),
    "misspelt_hook": Fault(
        hook("[]").replace("verl_mtp_patches", "verl_mtp_patchs"), ["'verl_mtp_patchs'", "Call it verl_mtp_patches"]
    ),
    "misspelt_and_forgotten": Fault(
        hook("[]").replace("verl_mtp_patches", "verl_mtp_patchs").replace("    @hookimpl\n", ""),
        ["'verl_mtp_patchs' without @hookimpl", "call it verl_mtp_patches"],
    ),
    "no_hook": Fault(
        "    def patches(): return []\n", ["no hook in no_hook_hooks", "Mark its functions with @hookimpl"]
    ),
    "import_fails": Fault("", ["ModuleNotFoundError", "a_module_of_nobody"], "    import a_module_of_nobody\n"),
    "import_exits": Fault("", ["SystemExit: 2"], "    import sys\n    sys.exit(2)\n"),
    "no_python": Fault("", ["SyntaxError", "no_python_hooks.py"], "    def verl_mtp_patches(:\n"),
}

#: What becomes of one patch of a package whose other patches work on.
PATCHES: dict[str, tuple[str, str, Sequence[str]]] = {
    "decide_returns_none": (
        "patch(20, decide=lambda e, m: None)",
        "failed",
        ["decide of patch lab.f20 that returned None", "a Verdict", "applicable()"],
    ),
    "decide_returns_true": ("patch(21, decide=lambda e, m: True)", "failed", ["returned True", "a Verdict"]),
    "decide_returns_a_decision": (
        "patch(22, decide=lambda e, m: Decision.APPLIED)",
        "failed",
        ["returned <Decision.APPLIED", "a Verdict"],
    ),
    "decide_returns_text": (
        'patch(23, decide=lambda e, m: Verdict("applied"))',
        "failed",
        ["decision='applied' (str)", "Decision.APPLIED"],
    ),
    "decide_puts_off": (
        "patch(24, decide=lambda e, m: Verdict(Decision.ARMED))",
        "failed",
        ["decision=<Decision.ARMED", "A probe decides"],
    ),
    "decide_exits": ("patch(25, decide=lambda e, m: exit(4))", "failed", ["SystemExit: 4"]),
    "decide_takes_one": ("patch(26, decide=lambda e: applicable())", "failed", ["TypeError", "positional argument"]),
    "build_returns_none": (
        "patch(27, build=lambda original: None)",
        "failed",
        ["build of patch lab.f27 that returned None", "something that can be called", "a forgotten return?"],
    ),
    "build_returns_text": ('patch(28, build=lambda original: "f")', "failed", ["that returned 'f'", "can be called"]),
    "build_returns_missing": (
        'patch(29, target=Target("lab_target", "new"), creates=True, build=lambda original: original)',
        "failed",
        ["returned <missing>", "a forgotten return?"],
    ),
    "build_exits": ("patch(30, build=lambda original: exit(5))", "failed", ["SystemExit: 5"]),
    "need_is_missing": (
        'patch(38, needs=(Needs("lab_target:no"),))',
        "unsupported",
        ["lab_target:no does not exist"],
    ),
    "check_exits": (
        'patch(39, needs=(Needs("lab_target:f1", check=lambda f: exit(6)),))',
        "failed",
        ["SystemExit: 6"],
    ),
    "id_of_ours": (
        'patch(31, id="training.recompute")',
        "conflict",
        ["the id 'training.recompute' is taken by another patch", "an id of its own"],
    ),
    "set_id_of_ours": (
        'PatchSet("training.postprocess", (patch(32),))',
        "conflict",
        ["'training.postprocess' is taken"],
    ),
    "target_of_ours": (
        'patch(33, target=Target("verl.trainer.constants_ppo", "get_ppo_ray_runtime_env"))',
        "conflict",
        ["is already patched by 'job.forward_mode'"],
    ),
    "id_in_two_sets": (
        'PatchSet("lab.a", (patch(34, id="lab.same"),)), PatchSet("lab.b", (patch(35, id="lab.same"),))',
        "conflict",
        ["the id 'lab.same' is taken by another patch of plugin 'id_in_two_sets'", "lab_target:f34"],
    ),
    "id_of_another_package": (
        'patch(36, id="lab.healthy")',
        "conflict",
        ["taken by another patch of plugin 'a_healthy'"],
    ),
    "target_of_another_package": (
        'patch(37, target=Target("lab_target", "shared"))',
        "conflict",
        ["lab_target:shared is already patched by 'lab.healthy' of plugin 'a_healthy'"],
    ),
}


def install(path: Path, distribution: str, body: str, entry: str = "", value: str = "") -> None:
    """A package with one entry point, named ``entry`` or like the distribution."""
    module = f"{distribution}_hooks"
    info = path / f"{distribution}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[verl_mtp_plugin]\n{entry or distribution} = {value or module}\n")
    (path / f"{module}.py").write_text(textwrap.dedent(body))


def install_all(path: Path) -> None:
    """All of the above, and some that are in order, which must not notice; ``a_healthy`` comes first, ``z_`` last."""
    path.mkdir(parents=True, exist_ok=True)
    (path / f"{TARGET}.py").write_text(TARGET_BODY)
    healthy = HEAD + hook('[patch(0, id="lab.healthy", target=Target("lab_target", "shared"))]')
    install(path, "a_healthy", healthy + family(architectures='["HealthyLM"]'))
    for name, fault in PACKAGES.items():
        install(path, name, fault.head + fault.body)
    for name, (patches, _, _) in PATCHES.items():
        good = 40 + list(PATCHES).index(name)
        install(path, name, HEAD + hook(f"[patch({good}), {patches}]"))
    install(path, "called_like_ours", HEAD + hook("[patch(10)]"), entry="training")
    install(path, "one_name_a", HEAD + hook("[patch(11)]"), entry="one_name")
    install(path, "one_name_b", HEAD + hook("[patch(12)]"), entry="one_name")
    # An object that cannot be hashed, and asks every attribute of itself.
    odd = "    import types\n    def give(environment):\n        return [patch(13)]\n"
    odd += "    it = types.SimpleNamespace(verl_mtp_patches=hookimpl(give))\n"
    install(path, "z_unhashable", HEAD + odd, value="z_unhashable_hooks:it")
    install(path, "z_healthy", HEAD + hook("(patch(n) for n in (14, 15))"))
