"""``torch.cuda`` on the CPU: what megatron-core asks of a CUDA device, answered by the processor.

Megatron places tensors by ``torch.cuda.current_device()`` or ``device="cuda"``, orders work by streams and events, and
keeps the generator states of its parallel regions in CUDA generators. Each has a plain meaning on a CPU: tensors are
where they are, work is already in order, and the one generator is the CPU's. Megatron's own code stays untouched, its
random-state tracker included.

Order matters::

    cuda.install()                  # before megatron is imported: it copies some torch.cuda names at import
    import megatron.core
    cuda.install_megatron()         # before a model is built
    cuda.init_process_group()       # gloo

This proves control flow, shapes, masks and gradients. It says nothing about kernels, bf16 speed or NCCL.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import multiprocessing
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

CPU = torch.device("cpu")

#: Factories that Megatron calls with ``device="cuda"`` (or the current device) and, on some paths, pinned memory.
FACTORIES = (
    "arange", "empty", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like", "rand", "randint",
    "randn", "randn_like", "randperm", "tensor", "zeros", "zeros_like",
)  # fmt: skip
#: Tensor methods that take a device.
PLACING_METHODS = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "to")
#: Legacy tensor types. Megatron builds such tensors and tests membership in tuples of them.
TENSOR_TYPES = (
    "BFloat16Tensor", "BoolTensor", "ByteTensor", "DoubleTensor", "FloatTensor", "HalfTensor", "IntTensor",
    "LongTensor",
)  # fmt: skip
#: Generator states that Megatron's parallel regions fork, with seeds that only have to differ from each other.
RNG_NAMES = {"model-parallel-rng": 2718, "expert-parallel-rng": 3742, "data-parallel-rng": 1234}

_installed: set[str] = set()


class Stream:
    """Work on a CPU is in order already, so waiting, recording and synchronizing have nothing to do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device = CPU

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...
    def synchronize(self) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event if event is not None else Event()

    def query(self) -> bool:
        return True


class Event:
    """An event that has always happened."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, stream: Any = None) -> None: ...
    def wait(self, stream: Any = None) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Any) -> float:
        return 0.0


_STREAM = Stream()  # the only one: Megatron compares streams by identity to see whether it is on a side stream


def is_cuda(device: Any) -> bool:
    """Whether a ``device`` argument, whatever its form, names a CUDA device."""
    return isinstance(device, (str, torch.device)) and str(device).startswith("cuda")


def _placed_on_cpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Send what was meant for the GPU to the CPU. Pinned memory needs a GPU driver, so it is left out."""

    @functools.wraps(function)
    def on_cpu(*args: Any, **kwargs: Any) -> Any:
        if is_cuda(kwargs.get("device")):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return function(*(CPU if is_cuda(arg) else arg for arg in args), **kwargs)

    return on_cpu


def _install_placement() -> None:
    for name in FACTORIES:
        setattr(torch, name, _placed_on_cpu(getattr(torch, name)))
    for name in PLACING_METHODS:
        setattr(torch.Tensor, name, _placed_on_cpu(getattr(torch.Tensor, name)))
    torch.nn.Module.to = _placed_on_cpu(torch.nn.Module.to)
    for owner, name in ((torch.Tensor, "cuda"), (torch.Tensor, "pin_memory"), (torch.nn.Module, "cuda")):
        setattr(owner, name, lambda self, *args, **kwargs: self)
    torch.Tensor.record_stream = lambda self, stream: None


def _install_types() -> None:
    """Legacy types, and type names: Megatron's optimizers sort parameters by ``param.type()`` being a CUDA one."""
    for name in TENSOR_TYPES:
        setattr(torch.cuda, name, getattr(torch, name))
    original = torch.Tensor.type

    @functools.wraps(original)
    def type_(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        if dtype is None:
            return original(self).replace("torch.", "torch.cuda.", 1)
        if isinstance(dtype, str):
            dtype = dtype.replace("torch.cuda.", "torch.", 1)
        return original(self, dtype, *args, **kwargs)

    torch.Tensor.type = type_


def _install_device() -> None:
    """The device, its streams, its generator (the CPU's) and its memory (none).

    Every name gets a function object of its own: torch.compile keeps rules by object and refuses to share one.
    """

    def answer(value: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: value

    @contextlib.contextmanager
    def on_stream(stream: Any) -> Iterator[Any]:
        yield stream

    fake: dict[str, Any] = {
        "Stream": Stream,
        "Event": Event,
        "stream": on_stream,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "set_rng_state": lambda state, device=None: torch.set_rng_state(state),
        # not torch.manual_seed, which seeds the CUDA devices as well and would come back here
        "manual_seed": lambda seed: torch.default_generator.manual_seed(seed),
        "manual_seed_all": lambda seed: torch.default_generator.manual_seed(seed),
    }
    for name in ("current_stream", "default_stream"):
        fake[name] = answer(_STREAM)
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "set_stream", "synchronize"):
        fake[name] = answer(None)
    for name in ("max_memory_allocated", "max_memory_reserved", "memory_allocated", "memory_reserved"):
        fake[name] = answer(0)
    fake |= {
        "current_device": answer(CPU),
        "get_device_capability": answer((0, 0)),
        "get_device_name": answer("cpu"),
        "is_current_stream_capturing": answer(False),
        "mem_get_info": answer((0, 1)),
    }
    for name, value in fake.items():
        setattr(torch.cuda, name, value)
    torch.cuda.random.get_rng_state = fake["get_rng_state"]
    torch.cuda.random.set_rng_state = fake["set_rng_state"]
    torch.cuda.nvtx.range_push, torch.cuda.nvtx.range_pop = answer(None), answer(None)


def install() -> None:
    """Make ``torch.cuda`` mean the CPU. Once per process, before megatron is imported."""
    if "torch" in _installed:
        return
    if torch.cuda.is_available():
        raise RuntimeError("this machine has CUDA: verl_mtp_plugin.testing.cuda would hide it")
    _install_placement()
    _install_types()
    _install_device()
    _installed.add("torch")


def complete_without_transformer_engine() -> None:
    """Define what megatron-core names without having imported it if TransformerEngine is missing; on GPUs too."""
    nothing: dict[str, dict[str, Any]] = {
        "megatron.core.transformer.moe.moe_utils": {"te_general_gemm": None},
        "megatron.core.tensor_parallel.random": {
            "FP8GlobalStateManager": types.SimpleNamespace(is_fp8_enabled=lambda: False),
            "activation_recompute_forward": lambda **_: contextlib.nullcontext(),
            "fp8_autocast": lambda **_: contextlib.nullcontext(),
        },
    }
    for name, missing in nothing.items():
        defined = vars(importlib.import_module(name))
        for attribute, value in missing.items():
            defined.setdefault(attribute, value)
    # megatron-core 0.20 asks every MTP projection whether it is one of these, which derive from TransformerEngine's.
    layers = vars(sys.modules.get("megatron.core.tensor_parallel.inference_layers", types))
    for attribute in ("InferenceColumnParallelLinear", "InferenceLayerNormColumnParallelLinear"):
        if attribute in layers and not isinstance(layers[attribute], type):
            layers[attribute] = type(attribute, (), {})  # of which nothing is an instance


def install_megatron() -> None:
    """What can only be done once megatron.core is importable. Once per process, before a model is built."""
    if "megatron" in _installed:
        return
    install()
    random: Any = importlib.import_module("megatron.core.tensor_parallel.random")

    def set_state(new_state: torch.Tensor, device: Any = -1, graph_safe: bool = False) -> None:
        torch.set_rng_state(new_state)

    # Megatron writes its states through torch's CUDA generator objects, of which there are none here.
    random._set_cuda_rng_state = set_state
    # Its tracker warns when a GPU region draws from the CPU generator, which here is what it should do.
    logging.getLogger(random.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())
    tracker = random.get_cuda_rng_tracker()
    for name, seed in RNG_NAMES.items():  # so that nothing has to be seeded; model_parallel_cuda_manual_seed still may
        if name not in tracker.get_states():
            tracker.add(name, seed)
    complete_without_transformer_engine()
    _installed.add("megatron")


def init_process_group() -> None:
    """A gloo group as torchrun describes it, or of this one process on a free port."""
    if torch.distributed.is_initialized():
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        defaults = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    defaults |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    torch.distributed.init_process_group("gloo")


def end_process() -> NoReturn:
    """End this process now, with status 0: the last line of a test's program that is one of several.

    Gloo's threads may be waiting for a peer that has left, or want the interpreter while Python takes it down, which
    aborts the process after all its work is done. Its own children are ended too: they hold its output open.
    """
    for child in multiprocessing.active_children():
        child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
