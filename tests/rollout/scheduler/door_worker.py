"""A scheduler process of a verl job, which never imports verl: the start-up finder loads the plugin. Prints JSON."""

from __future__ import annotations

import json
import os
import sys

from . import engine


def main() -> None:
    if sys.argv[1] == "job":
        os.environ["VERL_MTP_PLUGIN_CHILD"] = "1"  # inherited from the process that started this one
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "auto"
    engine.prepare()
    engine.module_of(engine.RUNNER)  # with the first model
    found: dict[str, object] = {"verl": "verl" in sys.modules, "active": False, "applied": []}
    runtime = sys.modules.get("verl_mtp_plugin.runtime")
    if runtime is not None:
        report = runtime.report()
        applied = sorted(r.id for r in report.patches if r.id.startswith("rollout.") and r.decision == "applied")
        found |= {"active": report.active, "applied": applied}
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
