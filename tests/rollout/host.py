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
from pathlib import Path
from typing import Any

from tests.contract import stacks

from .stacks import Stack

#: Limits for processes that hang; a machine that is busy with others needs a multiple of the usual time.
START_S, PLAY_S = 300.0, 180.0


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
        ready, _, _ = select.select([self._answers], [], [], timeout_s)
        line = self._answers.readline() if ready else ""
        answer = json.loads(line) if line else {"error": "no answer" if ready else f"not done after {timeout_s:g} s"}
        if not line:
            self._broken = scenario
        if not ready:
            self._process.send_signal(signal.SIGUSR1)
            time.sleep(1)
        if "error" in answer:
            printed = self.log.read_text()[-6000:]
            raise ScenarioError(f"{self.stack}, {scenario}: {answer['error']}\n--- printed last:\n{printed}")
        return answer["value"]

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
            answer(value=await getattr(module, name)(state, **arguments))
        except BaseException:
            answer(error=traceback.format_exc())


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
