"""What SGLang's Python package imports and a machine without a GPU lacks, answered by empty modules.

The rest of SGLang is the real one. A stub is there for the imports that SGLang makes, and for those of transformers,
whose image processors SGLang registers: whoever else asks whether such a package is installed hears that it is not.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import FrameType, ModuleType
from typing import Any, Final

#: Kernels, image and audio codecs, grammars, tokenizers: imported at the top of modules whose Python runs without.
ABSENT: Final = (
    "IPython",
    "compressed_tensors",
    "gguf",
    "sentencepiece",
    "sgl_kernel",
    "soundfile",
    "torch_memory_saver",
    "torchvision",
    "tvm_ffi",
    "xgrammar",
    # SGLang 0.5.6 takes its activations from vLLM where it finds a CPU; no other module of vLLM is answered for.
    "vllm._custom_ops",
    "vllm.model_executor.layers.activation",
)
#: Packages that look into the version of what they import are content with this.
VERSION: Final = "99.0.0"


class _StubType(type):
    """A class that has every attribute, each a class like itself."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _stub(name)


class _Stub(metaclass=_StubType):
    """An object that takes every call, attribute and ``with``; a decorator without effect; a type for pydantic."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Whatever the real one takes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if args and callable(args[0]) else None

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self), name)

    def __enter__(self) -> _Stub:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to leave."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        return importlib.import_module("pydantic_core.core_schema").any_schema()


def _stub(name: str) -> Any:
    return _StubType(name, (_Stub,), {"__module__": __name__})


class StubModule(ModuleType):
    """A package with every name, each a stub."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = _stub(name)
        setattr(self, name, value)
        return value


class StubFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the absent modules, what lies above and below them, for imports that ``importers`` make."""

    def __init__(self, absent: Sequence[str], importers: Sequence[str]) -> None:
        self.absent = tuple(absent)
        self.importers = tuple(importers)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not any(f"{name}.".startswith(f"{a}.") or a.startswith(f"{name}.") for a in self.absent):
            return None
        if _importer(sys._getframe(1)) not in (*self.importers, __name__.partition(".")[0]):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__version__"] = VERSION


def _importer(frame: FrameType | None) -> str:
    """The top-level package whose code imports, past Python's own import machinery and its post-import hooks."""
    while frame is not None:
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if (
            package not in ("importlib", "_verl_mtp_startup", "wrapt", "")
            and "importlib" not in frame.f_code.co_filename
        ):
            return package
        frame = frame.f_back
    return ""


def install(importers: Sequence[str] = ("sglang", "transformers")) -> StubFinder:
    """Answer for what is really absent, from now on; a second call changes nothing."""
    for finder in sys.meta_path:
        if isinstance(finder, StubFinder):
            return finder
    absent = [name for name in ABSENT if importlib.util.find_spec(name.partition(".")[0]) is None]
    finder = StubFinder(absent, importers)
    sys.meta_path.append(finder)
    return finder
