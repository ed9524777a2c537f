"""One process per pair of releases, for all cases."""

from __future__ import annotations

import tempfile
from typing import Any

from ..acceptance.processes import run
from ..answers import shared

#: verl over the engine whose rules are those of this vLLM: what each verl pins, and the one with a release of its own.
PAIRS = (("0.7.1", "0.12.0"), ("0.8.0", "0.12.0"), ("0.9.0", "0.24.0"), ("0.9.1", "0.24.0"), ("0.9.1", "0.33.0"))


@shared
def cases(verl: str, vllm: str) -> Any:
    """See :mod:`.worker`."""
    with tempfile.TemporaryDirectory() as folder:
        return run("tests.rollout.vllm.worker", vllm, folder, layers=(("verl", verl),))
