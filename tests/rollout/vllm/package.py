"""A package named ``vllm``: the engine of :mod:`.engines`, and empty modules for the rest of what verl imports."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from verl_mtp_plugin.testing.stub_modules import StubModule

from . import engine_base, engines


class SamplingParams:
    def __init__(self, **values: Any) -> None:
        self.logprobs = self.prompt_logprobs = None
        vars(self).update(values)


class StatLoggerBase(ABC):
    @abstractmethod
    def __init__(self, vllm_config: Any, engine_index: int = 0) -> None: ...

    @abstractmethod
    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None: ...

    @abstractmethod
    def log_engine_initialized(self) -> None: ...


def free_memory(handle: Any) -> Any:
    """``nvmlDeviceGetMemoryInfo`` of the GPU on which the newest engine lives."""
    return SimpleNamespace(free=engine_base.engines[-1].core.free_bytes)


def contents(version: str) -> dict[str, dict[str, Any]]:
    """What stands in which module."""
    return {
        "vllm": {"__version__": version, "SamplingParams": SamplingParams},
        "vllm.inputs": {"TokensPrompt": dict},
        "vllm.v1.engine.async_llm": {"AsyncLLM": engines.GENERATIONS[version]},
        "vllm.v1.metrics.stats": {"RequestStateStats": engine_base.RequestStateStats},
        "vllm.v1.metrics.loggers": {"StatLoggerBase": StatLoggerBase},
        "vllm.third_party.pynvml": {
            "nvmlInit": lambda: None,
            "nvmlShutdown": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetMemoryInfo": free_memory,
        },
    }


class _Distribution(importlib.metadata.Distribution):
    """verl asks for the version of an installed vLLM."""

    def __init__(self, version: str) -> None:
        self._version = version

    def read_text(self, filename: str) -> str | None:
        return f"Metadata-Version: 2.1\nName: vllm\nVersion: {self._version}\n" if filename == "METADATA" else None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


class _Finder(importlib.metadata.DistributionFinder, importlib.abc.Loader):
    def __init__(self, version: str) -> None:
        self.version = version
        self.contents = contents(version)

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] != "vllm":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return StubModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self.contents.get(module.__name__, {}))
        if module.__name__ == "vllm.v1.engine.async_llm":
            for name in ("stats", "loggers"):  # which it imports
                importlib.import_module(f"vllm.v1.metrics.{name}")

    def find_distributions(self, context: Any = None) -> Iterable[importlib.metadata.Distribution]:
        return [_Distribution(self.version)] if getattr(context, "name", None) in ("vllm", None) else []


def install(version: str) -> None:
    """From now on ``import vllm`` gives this one, with the rules of ``version``."""
    sys.meta_path.insert(0, _Finder(version))
