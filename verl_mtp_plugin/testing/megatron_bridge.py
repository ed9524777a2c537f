"""Megatron-Bridge without a GPU, on Python 3.10 and later: what it imports and a CPU machine lacks, answered for it.

Most of that serves other models, or a training loop and checkpoints of its own that verl does not use. While it is
imported, the missing packages consist of placeholders: classes to derive from and to name in annotations, which raise
when they are called. Then they are taken away again, lest another package mistake them for the real thing. With MiMo
none is called but :data:`ANSWERS`; another model may meet one, and says so.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import typing
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

#: What Megatron-Bridge imports of NVIDIA's that has no CPU build, or no use here.
ABSENT: Final = (
    "transformer_engine",
    "transformer_engine_torch",
    "modelopt",
    "nvidia_resiliency_ext",
    "megatron.energon",
)
#: What it calls, some releases by an import of that moment: these stay.
ANSWERS: Final[dict[str, dict[str, Any]]] = {"modelopt.torch.quantization.utils": {"is_quantized": lambda model: False}}
#: What verl's engine imports of it.
MODULES: Final = ("megatron.bridge", "megatron.bridge.training.config")


class Placeholder(type):
    """A class that has every attribute, each a class like itself, and no instance."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(name, (), {"__module__": cls.__module__, "__qualname__": f"{cls.__qualname__}.{name}"})

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"{cls.__module__}.{cls.__qualname__} stands for, or derives from, what is absent here"
        )


class PlaceholderModule(ModuleType):
    """A module with every name, each a placeholder."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(name, (), {"__module__": self.__name__})


class PlaceholderFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the packages that are absent, and all modules in them."""

    def __init__(self, absent: Sequence[str]) -> None:
        self.absent = tuple(absent)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not any(f"{name}.".startswith(f"{absent}.") for absent in self.absent):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return PlaceholderModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(ANSWERS.get(module.__name__, {}))


def install() -> None:
    """Import ``megatron.bridge``. After :func:`.transformer_engine.install` and :func:`.verl_engine.install`."""
    from .transformer_engine import stand_ins

    for name, stand_in in stand_ins().items():
        stand_in.__name__ = name  # by which Megatron-Bridge knows how a layer's weights are sharded
    vars(typing).setdefault("override", lambda method: method)  # new in Python 3.12
    finder = PlaceholderFinder([name for name in ABSENT if importlib.util.find_spec(name) is None])
    sys.meta_path.append(finder)
    try:
        for name in (*MODULES, *ANSWERS):
            importlib.import_module(name)
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, PlaceholderModule)]:
            if not any(f"{answering}.".startswith(f"{name}.") for answering in ANSWERS):
                del sys.modules[name]
