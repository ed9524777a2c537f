"""The switch in verl's real config, the gates, and real torch.distributed processes that differ."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract import stacks
from tests.contract.stacks import MBRIDGE, VERL

from .conftest import RunStack, results

COMPOSE = """
    import os, sys, verl
    from hydra import compose, initialize_config_dir
    from verl.utils.config import omega_conf_to_dataclass

    folder = os.path.join(os.path.dirname(verl.__file__), "trainer", "config")
    with initialize_config_dir(folder, version_base=None):
        overrides = ["actor_rollout_ref.rollout.name=sglang", *{overrides!r}]
        config = compose("ppo_megatron_trainer", overrides=overrides)
    print("=>", config.actor_rollout_ref.model.mtp.get("plugin"))
    mtp = omega_conf_to_dataclass(config.actor_rollout_ref.model.mtp)
    print("=>", type(mtp).__module__, mtp.enable, mtp.plugin)
    rollout = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    print("=>", rollout.mtp.plugin)
    report = sys.modules["verl_mtp_plugin.runtime"].report()
    print("=>", report.mode, report.active)
"""
ENABLE = "actor_rollout_ref.model.mtp.enable=True"
FLAG = "+actor_rollout_ref.model.mtp.plugin="


@pytest.mark.parametrize("verl", VERL)
@pytest.mark.parametrize(
    ("flag", "mode", "active"), [("", "auto", True), ("strict", "strict", True), ("off", "off", False)]
)
def test_flag_in_verls_own_config(run_stack: RunStack, verl: str, flag: str, mode: str, active: bool) -> None:
    overrides = [ENABLE, *([FLAG + flag] if flag else [])]
    lines = results(run_stack(COMPOSE.format(overrides=overrides), verl=verl))
    shown = flag or "None"
    assert lines == [shown, f"verl.workers.config.model True {shown}", shown, f"{mode} {active}"]


@pytest.mark.parametrize("verl", VERL)
def test_options_in_verls_own_config(run_stack: RunStack, verl: str) -> None:
    """Options lie beside the mode under the same key, and reach the settings of the process."""
    options = {"loss": "total_variation", "loss_chunk_tokens": "2048", "clip_grad": "0.5"}
    overrides = [ENABLE, *(f"{FLAG[:-1]}.{name}={value}" for name, value in options.items())]
    code = COMPOSE.format(overrides=overrides) + '    print("=>", report.options, report.banner())\n'
    last = results(run_stack(code, verl=verl))[-1]
    assert last.startswith(str(options))
    assert "(auto, loss=total_variation, loss_chunk_tokens=2048, clip_grad=0.5)" in last


def test_misspelt_option(run_stack: RunStack) -> None:
    overrides = [ENABLE, FLAG[:-1] + ".los=total_variation"]
    done = run_stack(COMPOSE.format(overrides=overrides), verl=VERL[-1], check=False)
    assert (
        "found actor_rollout_ref.model.mtp.plugin.los; expected one of mode, loss, loss_chunk_tokens, clip_grad, "
        "missing_weights, sync_requests, "
    ) in done.stderr


def test_misspelt_flag(run_stack: RunStack) -> None:
    done = run_stack(COMPOSE.format(overrides=[ENABLE, FLAG + "strickt"]), verl=VERL[-1], check=False)
    assert "found actor_rollout_ref.model.mtp.plugin='strickt'; expected one of auto, strict, off." in done.stderr


def test_without_the_plugin_verl_rejects_the_flag(run_stack: RunStack) -> None:
    """What the patch set job.config_flag is for."""
    code = COMPOSE.format(overrides=[ENABLE, FLAG + "auto"])
    done = run_stack(code, verl=VERL[-1], check=False, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode != 0
    assert "unexpected keyword argument 'plugin'" in done.stderr


def test_the_kill_switch_wins_over_the_flag(run_stack: RunStack) -> None:
    code = COMPOSE.format(overrides=[ENABLE, FLAG + "strict"])
    lines = results(run_stack(code, verl=VERL[-1], VERL_MTP_PLUGIN="off"))
    assert lines == ["strict", "verl.workers.config.model True strict", "strict", "off False"]


DOORS = """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from verl_mtp_plugin.errors import SettingsError
    from verl_mtp_plugin.settings import OPTION_VARIABLES, Settings

    parser = OverridesParser.create()
    TEXTS = "5 +5 5.0 1e3 1E+3 1_000 .5 1.5 0 1 -1 1e9 1e12 010 0x10 0b1 1:30 nan inf .inf -inf 1__0 _1 60s".split()
    TEXTS += "true True TRUE false yes no on off Off y null auto strict joint Total_Variation random retract".split()
    TEXTS += ["'5'", "'true'", "'off'", "\uff19", "9" * 40]

    def typed(text):
        return parser.parse_override(f"+a={text}").value()

    def outcome(read):
        try:
            return repr(read())
        except (SettingsError, HydraException):
            return "refused"

    differ, same = set(), 0
    for name, variable in {"mode": "VERL_MTP_PLUGIN", **OPTION_VARIABLES}.items():
        for text in TEXTS:
            found = [
                outcome(lambda: getattr(Settings.from_environment({variable: text.strip("'")}), name)),
                outcome(lambda: getattr(Settings().with_config(OmegaConf.create(f"{name}: {text}")), name)),
                outcome(lambda: getattr(Settings().with_config({name: typed(text)}), name)),
            ]
            same += len(set(found)) == 1
            differ |= set() if len(set(found)) == 1 else {text}
    print("=>", sorted(differ))
    print("=>", same > 400)
"""


def test_environment_yaml_and_command_line_are_read_alike(run_stack: RunStack) -> None:
    """Each option by each door. What differs is YAML's own notation of numbers, which it reads before we do."""
    assert results(run_stack(DOORS)) == ["['010', '0b1', '0x10', '1:30', '1__0']", "True"]


SEVERAL = """
    import verl
    from verl.workers.config.model import MtpConfig
    from verl_mtp_plugin import runtime

    def show(make):
        try:
            made = make()
        except Exception as error:
            made = type(error).__name__, "(auto, loss=total_variation) and the other for (strict)" in str(error)
        print("=>", runtime.settings(), *(made if isinstance(made, tuple) else ()))
        return made

    show(lambda: MtpConfig(enable=True, plugin={"loss": "total_variation"}) and None)
    show(lambda: MtpConfig(enable=True) and None)
    actor = show(lambda: MtpConfig(enable=True, plugin={"loss": "total_variation"}))
    reference = show(lambda: MtpConfig(enable=False))  # as verl's workers make one
    critic = show(lambda: MtpConfig(enable=False, plugin={"los": 1}))
    show(lambda: MtpConfig(enable=True, plugin="strict"))
"""


@pytest.mark.parametrize("verl", [VERL[0], VERL[-1]])
def test_several_configs_in_one_process(run_stack: RunStack, verl: str) -> None:
    """tests/unit/test_switch.py has the whole table; here verl's own class, of which we must know when it is gone."""
    ours = "auto, loss=total_variation"
    assert results(run_stack(SEVERAL, verl=verl)) == [ours, "auto", ours, ours, ours, f"{ours} SettingsError True"]


MISTAKES = {"VERL_MTP_PLUGIN_LOS": "total_variation", "VERL_MTP_PLUGIN": "atuo"}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_environment_on_verls_own_config(run_stack: RunStack, name: str) -> None:
    """Off in the config works beside it, without MTP nobody minds, and a job with MTP ends by its name."""
    code = COMPOSE.format(overrides=[ENABLE, FLAG + "off"])
    code += """
    from verl.workers.config.model import MtpConfig
    MtpConfig(enable=False)
    try:
        MtpConfig(enable=True)
    except Exception as error:
        print("=>", type(error).__name__, error)
    """
    done = run_stack(code, verl=VERL[-1], **{name: MISTAKES[name]})
    *lines, refused = results(done)
    assert lines == ["off", "verl.workers.config.model True off", "off", "off False"]
    assert refused.startswith("SettingsError verl-mtp-plugin: found ")
    assert name in refused
    assert done.stderr.count("Until then verl works as released here") == 1


OFF_LATE = """
    import megatron.core.models.gpt.gpt_model as gpt
    before = dict(vars(gpt.GPTModel))
    import verl, verl_mtp_plugin
    from verl.workers.config.model import MtpConfig
    print("=>", before == dict(vars(gpt.GPTModel)))
    MtpConfig(enable=True, plugin="off")
    print("=>", before == dict(vars(gpt.GPTModel)))
"""


def test_flag_off_takes_back_what_was_patched_before_it_was_read(run_stack: RunStack) -> None:
    done = run_stack(OFF_LATE, verl=VERL[-1], megatron_core="0.16.1")
    assert results(done) == ["False", "True"]


BANNER = """
    import verl
    from verl.workers.config.model import MtpConfig
    MtpConfig(enable=False)
    import sys; print("--- enabled", file=sys.stderr)
    MtpConfig(enable=True); MtpConfig(enable=True)
"""


def test_one_line_and_only_where_mtp_is_used(run_stack: RunStack) -> None:
    before, after = run_stack(BANNER, verl=VERL[-1]).stderr.split("--- enabled")
    assert "verl-mtp-plugin" not in before
    assert after.count("verl-mtp-plugin") == 1


BROKEN = """
    import verl
    from verl_mtp_plugin.training import hooks
    import megatron.core.models.gpt.gpt_model as gpt
    from verl.workers.config.model import MtpConfig
    MtpConfig(enable=False)
    print("=> disabled is fine")
    MtpConfig(enable=True)
"""


@pytest.mark.parametrize("mode", ["auto", "strict"])
def test_a_critical_patch_that_cannot_be_applied_stops_a_job_with_mtp(
    run_stack: RunStack, tmp_path: Path, mode: str
) -> None:
    """A megatron-core whose seam has drifted: the real one, with the parameter renamed in a site-wide hook."""
    drift = tmp_path / "drift"
    drift.mkdir()
    (drift / "sitecustomize.py").write_text(
        "import verl_mtp_plugin.training.hooks as h\nh.NEEDED = h.NEEDED | {'parameter_that_no_release_has'}\n"
    )
    done = run_stack(BROKEN, verl=VERL[-1], megatron_core="0.18.2", paths=(drift,), check=False, VERL_MTP_PLUGIN=mode)
    assert results(done) == ["disabled is fine"]
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("verl_mtp_plugin.errors.PatchRequiredError")
    assert "megatron-core 0.18.2 whose GPTModel._postprocess takes no parameter_that_no_release_has" in last
    assert "Run `verl-mtp doctor`" in last


PASSED_OVER = """
    import torch, verl
    from verl.models.mcore.mtp_patch import patch_postprocess

    class HybridModel(torch.nn.Module):
        pass

    patch_postprocess(HybridModel())
"""


def test_a_model_that_verl_passes_over_is_an_error(run_stack: RunStack) -> None:
    done = run_stack(PASSED_OVER, verl=VERL[-1], megatron_core="0.16.1", check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert "found a HybridModel in which verl found no GPTModel to train MTP on" in last


RANK = """
    import os
    import sys
    if "plugin" in sys.argv:
        import verl
    import torch.distributed as dist
    dist.init_process_group("gloo")
    if "plugin" in sys.argv:
        import megatron.core.models.gpt.gpt_model
        from verl_mtp_plugin.job import cluster, gate
        cluster.compare_processes.__kwdefaults__["timeout_s"] = 30.0
        gate.enter_training()
        print("=> passed")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # while Python ends, gloo's threads may abort the process
"""


def launch(tmp_path: Path, ranks: list[tuple[str, bool]], mode: str) -> list[subprocess.CompletedProcess[str]]:
    """One real process per rank: (its releases besides verl and megatron-core, whether it has the plugin)."""
    import textwrap

    script = tmp_path / "rank.py"
    script.write_text(textwrap.dedent(RANK))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for number, (extra, plugin) in enumerate(ranks):
        paths = [stacks.layer("verl", VERL[-1]), stacks.layer("megatron-core", "0.16.1")]
        paths += [stacks.layer("mbridge", extra)] if extra else []
        env = {k: v for k, v in os.environ.items() if not k.startswith("VERL_")}
        env |= {"PYTHONPATH": os.pathsep.join(map(str, paths)), "VERL_MTP_PLUGIN": mode}
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env |= {"RANK": str(number), "WORLD_SIZE": str(len(ranks)), "LOCAL_RANK": str(number)}
        command = [sys.executable, str(script), *(["plugin"] if plugin else [])]
        processes.append(subprocess.Popen(command, env=env, stdout=-1, stderr=-1, text=True))
    done = []
    for process in processes:
        out, err = process.communicate(timeout=240)
        done.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return done


def test_even_ranks_pass_in_strict_mode(tmp_path: Path) -> None:
    done = launch(tmp_path, [(MBRIDGE[-1], True), (MBRIDGE[-1], True)], "strict")
    assert [results(d) for d in done] == [["passed"], ["passed"]], done
    assert "differ" not in done[0].stderr + done[1].stderr
    first, second = (sum("at the start of training" in line for line in d.stderr.splitlines()) for d in done)
    assert (first, second) == (1, 0)


def test_a_node_that_differs_is_named_in_one_warning(tmp_path: Path) -> None:
    done = launch(tmp_path, [(MBRIDGE[-1], True), (MBRIDGE[-1], True), ("", True)], "auto")
    assert [results(d) for d in done] == [["passed"]] * 3, done
    warnings = [line for d in done for line in d.stderr.splitlines() if "processes of this job differ" in line]
    assert len(warnings) == 1
    assert "rank 2 on " in warnings[0]
    assert f"mbridge missing (others {MBRIDGE[-1]})" in warnings[0]


def test_a_node_that_differs_stops_a_strict_job(tmp_path: Path) -> None:
    done = launch(tmp_path, [(MBRIDGE[-1], True), ("", True)], "strict")
    assert [d.returncode != 0 for d in done] == [True, True]
    assert all("UnevenClusterError" in d.stderr for d in done)


def test_a_node_without_the_plugin_is_named_and_nobody_hangs(tmp_path: Path) -> None:
    done = launch(tmp_path, [("", False), ("", True)], "auto")
    assert [d.returncode for d in done] == [0, 0], done
    assert "rank(s) 0 did not answer within 30 s: the plugin may be missing there" in done[1].stderr
