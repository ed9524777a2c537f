"""Makes a process ready for rollout without a GPU, whoever starts it.

For Ray's workers: ``ray.init(runtime_env={"worker_process_setup_hook": HOOK})``. It has to run before transformers is
imported, which asks once what is installed, so ``VERL_USE_EXTERNAL_MODULES`` is too late.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Final

from ..startup import AfterImport
from . import sglang_engine

HOOK: Final = f"{__name__}.prepare"


def prepare() -> None:
    """SGLang's stand-ins now, and the file transfer when verl's checkpoint engines are imported."""
    sglang_engine.install()
    sys.meta_path.insert(0, AfterImport("verl.checkpoint_engine.base", _register_transfer))


def _register_transfer(module: ModuleType) -> None:
    importlib.import_module(f"{__package__}.file_transfer")
