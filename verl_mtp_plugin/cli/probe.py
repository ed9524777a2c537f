"""Child process of ``verl-mtp doctor --probe``: imports the stack and prints what the engine decided, as JSON."""

from __future__ import annotations

import importlib
import json

from .. import activate, report
from .doctor import MARKER


def main() -> None:
    """Import every patched module; one that cannot be imported is reported, not raised."""
    errors: dict[str, str] = {}
    critical = {"verl": True}
    for record in activate().patches:
        module = record.target.partition(":")[0]
        critical[module] = critical.get(module, False) or record.critical
    for name in critical:
        try:
            importlib.import_module(name)
        except Exception as error:
            gone = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            if critical[name] or not gone:  # another release of verl may do without a module that is only wrapped
                errors[name] = f"{type(error).__name__}: {error}"
    print(MARKER, json.dumps({"errors": errors, "report": json.loads(report().to_json())}), flush=True)


if __name__ == "__main__":
    main()
