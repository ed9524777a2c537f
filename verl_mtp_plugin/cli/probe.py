"""Child process of ``verl-mtp doctor --probe``: imports the stack and prints what the engine decided, as JSON."""

from __future__ import annotations

import importlib
import json

from .. import activate, report, runtime
from ..errors import said
from .doctor import IMPORTING, MARKER

#: What everything else stands on, in the order in which it must be there.
ROOTS = ("torch", "verl", "megatron.core")


def main() -> None:
    """Import every patched module; one that cannot be imported is reported, not raised."""
    critical: dict[str, bool] = {}
    for record in activate().patches:
        module = record.target.partition(":")[0]
        critical[module] = critical.get(module, False) or record.critical
    runtime.models()  # a package may be at fault in that hook, too
    roots = _import_roots()
    errors: dict[str, str] = {}
    for name in critical if "torch" not in roots else ():
        if any(name.startswith(f"{root}.") for root in roots):
            continue
        error = _import(name)
        gone = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        # Another release of verl may do without a module that is only wrapped.
        if error is not None and (critical[name] or not gone) and said(error) not in roots.values():
            errors[name] = said(error)
    found = {"roots": roots, "errors": errors, "report": json.loads(report().to_json())}
    print(f"\n{MARKER} {json.dumps(found)}", flush=True)


def _import_roots() -> dict[str, str]:
    """What is wrong with those that cannot be imported; without torch the others are not tried."""
    found: dict[str, str] = {}
    for name in ROOTS:
        error = _import(name) if "torch" not in found else None
        if error is not None:
            found[name] = said(error)
    return found


def _import(name: str) -> BaseException | None:
    """Import a module; whatever it raises, be it an exit."""
    print(f"\n{IMPORTING} {name}", flush=True)  # the last one is named if the process ends
    try:
        importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return error
    return None


if __name__ == "__main__":
    main()
