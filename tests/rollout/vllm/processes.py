"""One process per pair of releases, for all cases."""

from __future__ import annotations

import tempfile
from typing import Any

from tests.contract import stacks

from ..acceptance.processes import run
from ..answers import shared

#: verl over the engine whose rules are those of this vLLM: the newest that each verl allows, and the newest, which has
#: a release of its own.
PAIRS = (*stacks.VLLM_PINS.items(), (stacks.VERL[-1], stacks.VLLM[-1]))


@shared
def cases(verl: str, vllm: str) -> Any:
    """See :mod:`.worker`."""
    with tempfile.TemporaryDirectory() as folder:
        return run("tests.rollout.vllm.worker", vllm, folder, layers=(("verl", verl),))
