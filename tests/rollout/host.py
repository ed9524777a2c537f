"""A process with one stack of releases that plays scenarios for many tests: importing verl and SGLang takes seconds.

A scenario is ``async def name(state, **arguments)`` in a module whose ``async def start()`` makes the state. What it
returns comes back as JSON. Standard output and error go to a file, since the packages under test print as they please.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from tests.contract import stacks

from .stacks import Stack

#: Limits for processes that hang; a machine that is busy with others needs a multiple of the usual time.
START_S, PLAY_S = 300.0, 180.0
#: How often it is looked whether somebody has died; and how long a scenario may go on after its scheduler has.
POLL_S, GRACE_S = 0.5, 5.0


class ScenarioError(AssertionError):
    """A scenario raised, or did not end in time."""


class Host:
    """The process, seen from a test."""

    def __init__(self, stack: Stack, module: str, folder: Path, **environ: str) -> None:
        self.stack, self.log = stack, folder / f"{stack}.log"
        self._broken = ""  # the scenario whose answer may still come
        answers, theirs = os.pipe()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("VERL_") or k == stacks.LAYERS_VARIABLE}
        env = {
            **kept,
            "PYTHONPATH": os.pathsep.join(filter(None, (stack.path, os.environ.get("PYTHONPATH")))),
            "PYTHONWARNINGS": "ignore",
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TOKENIZERS_PARALLELISM": "false",
            "ROLLOUT_TEST_FOLDER": str(folder),
            **environ,
        }
        command = [sys.executable, "-m", __name__, module, str(theirs)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command,
                env=env,
                cwd=stacks.ROOT,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                pass_fds=[theirs],
                start_new_session=True,
            )
        os.close(theirs)
        self._answers = os.fdopen(answers)
        try:
            self._read("start", START_S)
        except ScenarioError:
            self.close()
            raise

    def play(self, scenario: str, /, timeout_s: float = PLAY_S, **arguments: Any) -> Any:
        """Play a scenario; what it returned.

        Raises:
            ScenarioError: with what the process has printed last.
        """
        if self._broken:
            raise ScenarioError(f"{self.stack}, {scenario}: not played, since {self._broken} before it did not end")
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([scenario, arguments]) + "\n")
        self._process.stdin.flush()
        return self._read(scenario, timeout_s)

    def _read(self, scenario: str, timeout_s: float) -> Any:
        end = time.monotonic() + timeout_s
        ready: list[Any] = []
        while not ready and self._process.poll() is None and time.monotonic() < end:
            ready, _, _ = select.select([self._answers], [], [], POLL_S)
        # What was written before it ended may still be there.
        ready = ready or select.select([self._answers], [], [], 0)[0]
        line = self._answers.readline() if ready else ""
        answer = json.loads(line) if line else {"error": self._silence(timeout_s)}
        if not line:
            self._broken = scenario
        if "error" in answer:
            printed = self.log.read_text()[-6000:]
            raise ScenarioError(f"{self.stack}, {scenario}: {answer['error']}\n--- printed last:\n{printed}")
        return answer["value"]

    def _silence(self, timeout_s: float) -> str:
        """Why there is no answer."""
        try:
            return f"its process ended with code {self._process.wait(1)}"
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGUSR1)  # it prints what it waits for
            time.sleep(1)
            return f"not done after {timeout_s:g} s"

    def close(self) -> None:
        """End it and all that it has started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._answers.close()


async def _serve(module: Any, answers: int) -> None:
    def answer(**outcome: Any) -> None:
        os.write(answers, (json.dumps(outcome) + "\n").encode())

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, _print_tasks)
    try:
        state = await module.start()
        answer(value=None)
    except BaseException:
        answer(error=traceback.format_exc())
        return
    while line := await asyncio.to_thread(sys.stdin.readline):
        name, arguments = json.loads(line)
        try:
            answer(value=await _outlived(getattr(module, name)(state, **arguments)))
        except BaseException:
            answer(error=traceback.format_exc())


async def _outlived(scenario: Coroutine[Any, Any, Any]) -> Any:
    """The scenario's value, unless a scheduler of this process dies and the scenario waits for it.

    Raises:
        ScenarioError: it does, with the scheduler's traceback.
    """
    begin, task = time.monotonic(), asyncio.ensure_future(scenario)
    while not (await asyncio.wait({task}, timeout=POLL_S))[0]:
        standing_in = sys.modules.get("verl_mtp_plugin.testing.sglang_engine")
        died = [death for death in getattr(standing_in, "deaths", ()) if death.at >= begin]
        if died and time.monotonic() - died[0].at > GRACE_S:
            _print_tasks()
            task.cancel()
            raise ScenarioError(f"it waits for a scheduler that died {GRACE_S:g} s ago:\n{died[0].traceback}")
    return task.result()


def _print_tasks() -> None:
    """What everybody waits for, when a scenario does not end."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)


def main() -> None:
    # A shell that starts tests in the background has it ignored, and SGLang's dying scheduler ends its server by it.
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    module, answers = importlib.import_module(sys.argv[1]), int(sys.argv[2])
    asyncio.run(_serve(module, answers))
    finish = getattr(module, "finish", None)
    if finish is not None:
        finish()
    os._exit(0)  # threads that stand for processes run on


if __name__ == "__main__":
    main()
