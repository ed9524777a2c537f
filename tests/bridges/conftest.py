"""The same fresh interpreters as in tests/stack."""

from __future__ import annotations

from tests.stack.conftest import run_stack

__all__ = ["run_stack"]
