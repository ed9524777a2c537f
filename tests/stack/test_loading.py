"""Every door, in every process that matters, on the real verl releases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.contract.stacks import VERL

from .conftest import RunStack, results

PROCESSES = """
    import multiprocessing, subprocess, sys

    def state():
        import verl
        runtime = sys.modules.get("verl_mtp_plugin.runtime")
        return (verl.__version__, runtime.report().banner() if runtime and runtime.report().active else "not loaded")

    def child(queue):
        queue.put(state())

    if __name__ == "__main__":
        print("=> driver", *state())
        context = multiprocessing.get_context("spawn")
        queue = context.Queue()
        process = context.Process(target=child, args=(queue,))
        process.start()
        print("=> spawned", *queue.get(timeout=120))
        process.join()

        import ray
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

        @ray.remote
        class Actor:
            def state(self):
                return state()

        print("=> actor", *ray.get(Actor.remote().state.remote()))
        print("=> task", *ray.get(ray.remote(state).remote()))
        ray.shutdown()
"""


@pytest.mark.parametrize("verl", VERL)
def test_driver_children_ray_actors_and_tasks(run_stack: RunStack, verl: str) -> None:
    lines = results(run_stack(PROCESSES, verl=verl))
    assert [line.split()[:2] for line in lines] == [[who, verl] for who in ("driver", "spawned", "actor", "task")]
    for line in lines:
        assert "verl-mtp-plugin 0.1.0 (auto)" in line


DOORS = """
    import sys
    import verl
    if {external_lib!r}:
        from verl.utils.import_utils import import_external_libs
        import_external_libs({external_lib!r})
    runtime = sys.modules.get("verl_mtp_plugin.runtime")
    print("=>", bool(runtime and runtime.report().active))
    print("=>", runtime.report().to_json() if runtime else "null")
"""


@pytest.mark.parametrize("verl", VERL)
@pytest.mark.parametrize(
    ("environ", "external_lib", "active"),
    [
        ({"VERL_USE_EXTERNAL_PLUGINS": "none"}, "", False),
        ({"VERL_USE_EXTERNAL_PLUGINS": "none"}, "verl_mtp_plugin", True),
        ({"VERL_USE_EXTERNAL_PLUGINS": "none", "VERL_USE_EXTERNAL_MODULES": "verl_mtp_plugin"}, "", True),
        ({"VERL_USE_EXTERNAL_PLUGINS": "verl_mtp"}, "", True),
        ({"VERL_MTP_PLUGIN": "off"}, "", False),
        ({"VERL_MTP_PLUGIN": "off"}, "verl_mtp_plugin", False),
    ],
    ids=["none", "external_lib", "external_modules", "named", "off", "off-external_lib"],
)
def test_doors(run_stack: RunStack, verl: str, environ: dict[str, str], external_lib: str, active: bool) -> None:
    code = DOORS.format(external_lib=external_lib)
    state, report = results(run_stack(code, verl=verl, **environ))
    assert state == str(active)
    if environ.get("VERL_MTP_PLUGIN") == "off":
        decisions = {patch["id"]: patch["decision"] for patch in json.loads(report)["patches"]}
        kept = {id for id, decision in decisions.items() if decision != "skipped"}
        assert kept == {id for id in decisions if id.startswith(("job.forward_mode", "job.config_flag"))}


FORWARD = """
    import os
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    os.environ["VERL_MTP_PLUGIN"] = "MODE"  # set for the driver alone: the node is running already
    from verl.trainer.constants_ppo import get_ppo_ray_runtime_env

    ray.init(address=cluster.address, runtime_env=get_ppo_ray_runtime_env(), log_to_driver=False)

    @ray.remote
    def mode():
        import verl, sys, os
        runtime = sys.modules.get("verl_mtp_plugin.runtime")
        return os.environ.get("VERL_MTP_PLUGIN"), runtime and runtime.settings().mode.value

    print("=>", *ray.get(mode.remote()))
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.parametrize("mode", ["strict", "off"])
@pytest.mark.parametrize("verl", [VERL[0], VERL[-1]])
def test_the_mode_reaches_workers_of_another_node(run_stack: RunStack, verl: str, mode: str) -> None:
    assert results(run_stack(FORWARD.replace("MODE", mode), verl=verl)) == [f"{mode} {mode}"]


def test_without_the_plugin_the_mode_stays_with_the_driver(run_stack: RunStack) -> None:
    """What the patch job.forward_mode is for."""
    done = run_stack(FORWARD.replace("MODE", "strict"), verl=VERL[-1], VERL_USE_EXTERNAL_PLUGINS="none")
    assert results(done) == ["None None"]


SERVER = """
    import verl  # as verl's own server modules do

    class Server:
        def ping(self, name):
            return f"pong {name}"
"""
HOOKS = """
    from verl_mtp_plugin.hookspecs import hookimpl
    from verl_mtp_plugin.patching import Patch, Target, around

    @hookimpl
    def verl_mtp_patches(environment):
        ping = lambda original, self, name: "patched " + original(self, name)
        return [Patch("lab.ping", Target("lab_server", "Server.ping"), "a test", "none", build=around(ping))]
"""
ACTOR = """
    import ray
    import lab_server
    import verl_mtp_plugin

    verl_mtp_plugin.require("lab.ping")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)

    def seen(self):
        import verl_mtp_plugin
        verl_mtp_plugin.require("lab.ping")
        return verl_mtp_plugin.report().to_json()

    # As verl's replicas do: a subclass made on the fly, exported by value.
    remote = ray.remote(type("Exported", (lab_server.Server,), {"seen": seen}))
    actor = remote.remote()
    print("=>", ray.get(actor.ping.remote("a")))
    print("=>", ray.get(actor.seen.remote()))
"""


def test_a_third_partys_patch_of_an_actor_class_arrives_in_the_actor(run_stack: RunStack, tmp_path: Path) -> None:
    """A package on the path registers by entry point; the patch is there in another process, once and not stripped."""
    import textwrap

    lab = tmp_path / "lab"
    (lab / "lab-1.0.dist-info").mkdir(parents=True)
    (lab / "lab-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1.0\n")
    (lab / "lab-1.0.dist-info" / "entry_points.txt").write_text("[verl_mtp_plugin]\nlab = lab_hooks\n")
    (lab / "lab_server.py").write_text(textwrap.dedent(SERVER))
    (lab / "lab_hooks.py").write_text(textwrap.dedent(HOOKS))
    pong, report = results(run_stack(ACTOR, verl=VERL[-1], paths=(lab,)))
    assert pong == "patched pong a"
    plugins = {plugin["name"]: plugin["source"] for plugin in json.loads(report)["plugins"]}
    assert plugins["lab"] == "lab_hooks (lab 1.0)"
