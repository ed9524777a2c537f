"""The doors, with a package named verl made for the purpose. tests/stack does the same with the real releases."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import ROOT, Run

Write = Callable[[str, str], Path]

CONFIG = """
    from dataclasses import dataclass
    class Base:
        def get(self, key, default=None): return getattr(self, key, default)
    @dataclass
    class MtpConfig(Base):
        enable: bool = False
"""

#: Prints whether the plugin is active after ``import verl``.
STATE = """
    import sys
    {before}
    import verl
    runtime = sys.modules.get("verl_mtp_plugin.runtime")
    print(bool(runtime and runtime.report().active))
"""


@pytest.fixture
def verl(write: Write) -> None:
    """A package named verl with the module that holds MtpConfig."""
    for package in ("verl", "verl/workers", "verl/workers/config"):
        write(f"{package}/__init__.py", "")
    write("verl/workers/config/model.py", CONFIG)


@pytest.fixture
def startup(write: Write) -> str:
    """The line of the ``.pth`` file, with its module importable, as in an installed environment."""
    folder = ROOT / "verl_mtp_plugin" / "startup"
    shutil.copy(folder / "_verl_mtp_startup.py", write("_verl_mtp_startup.py", ""))
    return (folder / "verl_mtp_plugin.pth").read_text().strip()


@pytest.mark.parametrize(
    ("environ", "active"),
    [
        ({}, True),
        ({"VERL_USE_EXTERNAL_PLUGINS": "auto"}, True),
        ({"VERL_USE_EXTERNAL_PLUGINS": "none"}, False),
        ({"VERL_USE_EXTERNAL_PLUGINS": "other"}, False),
        ({"VERL_USE_EXTERNAL_PLUGINS": "other, verl_mtp"}, True),
        ({"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "x,verl_mtp_plugin"}, True),
        ({"VERL_MTP_PLUGIN": "off"}, False),
        ({"VERL_MTP_PLUGIN": "strict"}, True),
    ],
    ids=str,
)
def test_startup_file_honours_the_switches(
    verl: None, startup: str, run: Run, environ: dict[str, str], active: bool
) -> None:
    assert run(STATE.format(before=startup), **environ).stdout.strip() == str(active)


def test_startup_line_imports_nothing_else(startup: str, run: Run) -> None:
    code = f"""
        import sys
        sys.modules.pop("_verl_mtp_startup", None)  # where the plugin is installed it has run already
        before = set(sys.modules)
        {startup}
        import colorsys  # a name that is none of its business
        print(sorted(set(sys.modules) - before))
    """
    assert run(code).stdout.strip() == "['_verl_mtp_startup', 'colorsys']"


def test_startup_line_twice_is_once(startup: str, run: Run) -> None:
    """Python 3.11 executes the ``.pth`` files of a virtual environment twice."""
    code = f"""
        import sys
        {startup}
        {startup}
        print([getattr(finder, "__name__", "") for finder in sys.meta_path].count("VerlMtpStartup"))
    """
    assert run(code).stdout.strip() == "1"


def test_startup_line_is_one_that_site_executes(startup: str) -> None:
    """Only lines that begin with ``import`` are."""
    assert startup.startswith("import ")
    assert "\n" not in startup


def test_modules_are_as_without_it(verl: None, startup: str, run: Run) -> None:
    code = f"""
        {startup}
        import verl, importlib
        print(type(verl.__loader__).__name__, type(verl.__spec__.loader).__name__, len(verl.__path__))
        print(importlib.util.find_spec("verl.workers").name, importlib.util.find_spec("verl_of_nobody"))
        importlib.reload(verl)
        print(type(verl.__loader__).__name__)
    """
    lines = ["SourceFileLoader SourceFileLoader 1", "verl.workers None", "SourceFileLoader"]
    assert run(code).stdout.splitlines() == lines


def test_a_failing_import_of_verl_is_not_hidden(write: Write, startup: str, run: Run) -> None:
    write("verl/__init__.py", "raise ImportError('verl is broken')")
    done = run(f"{startup}\nimport verl", check=False)
    assert "ImportError: verl is broken" in done.stderr
    assert "could not be loaded" not in done.stderr


def test_scheduler_children_are_reached_without_verl(write: Write, startup: str, run: Run) -> None:
    """An SGLang scheduler is spawned by a process of the job, and imports SGLang only."""
    for package in ("sglang", "sglang/srt", "sglang/srt/managers"):
        write(f"{package}/__init__.py", "")
    write("sglang/srt/managers/scheduler.py", "")
    code = f"""
        import sys
        {startup}
        import sglang.srt.managers.scheduler
        print("verl" in sys.modules, "verl_mtp_plugin.runtime" in sys.modules)
    """
    assert run(code, VERL_MTP_PLUGIN_CHILD="1").stdout.strip() == "False True"
    assert run(code).stdout.strip() == "False False"


def test_importing_the_package_in_a_verl_process_activates(verl: None, run: Run) -> None:
    """What VERL_USE_EXTERNAL_MODULES and model.external_lib do."""
    code = "import {}; import verl_mtp_plugin; print(verl_mtp_plugin.report().active)"
    assert run(code.format("verl")).stdout.strip() == "True"
    assert run(code.format("sys")).stdout.strip() == "False"


def test_every_door_is_idempotent(verl: None, startup: str, run: Run) -> None:
    code = f"""
        {startup}
        import verl, verl_mtp_plugin, verl_mtp_plugin.autoload as autoload
        from verl.workers.config.model import MtpConfig
        before = dict(vars(MtpConfig))
        autoload.load(); verl_mtp_plugin.activate(); autoload.load()
        print(before == dict(vars(MtpConfig)), "plugin" in before)
    """
    assert run(code).stdout.strip() == "True True"


#: What a requirement does when it is imported, and what is said of it.
FAILURES = {
    "raise ImportError('No module named wrapt')": "No module named wrapt",
    "raise OSError('libwrapt.so is missing')": "libwrapt.so is missing",
    "raise SystemExit(3)": "SystemExit: 3",
}


@pytest.mark.parametrize("body", FAILURES)
@pytest.mark.parametrize("config_first", [False, True])
def test_a_failure_to_load_warns_once_and_refuses_mtp(
    verl: None, startup: str, write: Write, run: Run, body: str, config_first: bool
) -> None:
    reason = FAILURES[body]
    write("wrapt.py", body)
    early = "import verl.workers.config.model" if config_first else ""
    code = f"""
        {"" if config_first else startup}
        import verl
        {early}
        import verl_mtp_plugin.autoload
        verl_mtp_plugin.autoload.load()
        from verl.workers.config.model import MtpConfig
        MtpConfig(enable=False)
        print("imported")
        MtpConfig(enable=True, plugin="off")  # the switch works all the same
        MtpConfig(enable=True, plugin={{"mode": False}})
        MtpConfig(enable=True)
    """
    done = run(code, check=False)
    assert done.stdout.strip() == "imported"
    assert done.stderr.count("could not be loaded") == 2  # the one warning, and the refusal
    assert done.stderr.strip().splitlines()[-1].startswith("RuntimeError: verl-mtp-plugin: found mtp.enable=True")
    assert reason in done.stderr


@pytest.mark.parametrize("off", ["off", " OFF ", "0", "false", "no"])
def test_a_plugin_that_cannot_be_loaded_is_off_where_it_is_off(
    verl: None, startup: str, write: Write, run: Run, off: str
) -> None:
    write("wrapt.py", "raise ImportError")
    code = f"""
        {startup}
        import verl
        from verl.workers.config.model import MtpConfig
        MtpConfig(enable=True)
    """
    assert run(code, VERL_MTP_PLUGIN=off).stderr == ""


def test_misspelt_mode_says_what_to_do(run: Run) -> None:
    done = run("import verl_mtp_plugin; verl_mtp_plugin.activate()", check=False, VERL_MTP_PLUGIN="atuo")
    assert done.stderr.strip().splitlines()[-1] == (
        "verl_mtp_plugin.errors.SettingsError: verl-mtp-plugin: found VERL_MTP_PLUGIN='atuo'; expected one of auto, "
        "strict, off. Correct VERL_MTP_PLUGIN or leave it out (the default is auto)."
    )


def test_importing_the_package_is_light(run: Run) -> None:
    heavy = {"torch", "megatron", "sglang", "pydantic", "asyncio", "verl", "ray", "rich", "pluggy", "wrapt"}
    code = f"""
        import sys
        before = set(sys.modules)
        import verl_mtp_plugin
        print(sorted({heavy!r} & (set(sys.modules) - before)))
    """
    assert run(code).stdout.strip() == "[]"


def test_activating_imports_nothing_of_the_stack(run: Run) -> None:
    # asyncio comes with wrapt; by the time verl has been imported, torch and ray have long brought it
    heavy = {"torch", "megatron", "sglang", "pydantic", "verl", "ray", "rich"}
    code = f"import sys, verl_mtp_plugin; verl_mtp_plugin.activate(); print(sorted({heavy!r} & set(sys.modules)))"
    assert run(code).stdout.strip() == "[]"


def test_python_without_site_works(run: Run) -> None:
    assert sys.version_info >= (3, 10)
    assert run("import verl_mtp_plugin; print(verl_mtp_plugin.__version__)").stdout.strip().count(".") == 2
