"""Every order in which a process may import, activate, activate again and deactivate."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Run

STEPS = ("import", "activate", "activate again", "deactivate")
ORDERS = list(itertools.permutations(STEPS))

CODE = """
    import sys
    from verl_mtp_plugin import activate, deactivate, report
    from verl_mtp_plugin.runtime import _runtime
    from verl_mtp_plugin.patching import Patch, Target, around

    patch = Patch("p", Target("target", "Thing.method"), "r", "u", build=around(lambda f, self: ("patched", f(self))))
    _runtime._known_patches = lambda: [__import__("verl_mtp_plugin.patching.patch", fromlist=["x"]).as_patch_set(patch)]
    before = None
    for step in {order!r}:
        if step == "import":
            import target
        elif step == "deactivate":
            deactivate()
        else:
            activate()
    import target
    (record,) = [r for r in report().patches if r.id == "p"] or [None]
    print(target.Thing().method(), record and record.decision.value, "method" in vars(target.Thing))
    deactivate()
    method = vars(target.Thing)["method"]
    print(target.Thing().method(), method.__qualname__, hasattr(method, "__wrapped__"))
"""


def expected(order: tuple[str, ...]) -> str:
    """By hand: the last of activate and deactivate decides; a process that never heard of the patch reports nothing."""
    last = max(order.index("activate"), order.index("activate again"))
    on = last > order.index("deactivate")
    return "('patched', 'method') applied True" if on else "method reverted True"


def test_no_order_is_missing() -> None:
    assert len(ORDERS) == len(set(ORDERS)) == 24
    assert all(set(order) == set(STEPS) for order in ORDERS)


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "-".join(order).replace(" ", "_"))
def test_order(order: tuple[str, ...], run: Run, write: Callable[[str, str], Path]) -> None:
    write("target.py", "class Thing:\n    def method(self): return 'method'\n")
    first, second = run(CODE.replace("{order!r}", repr(order))).stdout.splitlines()
    assert first == expected(order)
    assert second == "method Thing.method False"
