"""Make a process ready for a cell's checks: stand-ins or CUDA, the plugin, verl, Megatron, in this order."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING

from .stacks import ROOT

if TYPE_CHECKING:
    from .world import World


class WrongCellError(RuntimeError):
    """What was imported is not what was asked for."""


def prepare(verl: str, megatron_core: str, *, plugin: bool, device: str) -> tuple[World, dict[str, str], str | None]:
    """A process made ready: what the checks run in, the imported versions, and why verl is missing if it is."""
    os.environ["VERL_MTP_PLUGIN"] = "auto" if plugin else "off"
    # The plugin comes by its own activate() or not at all, never because it happens to be installed here.
    os.environ["VERL_USE_EXTERNAL_PLUGINS"] = "none"
    prepare_device(device)
    if plugin:
        importlib.import_module("verl_mtp_plugin").activate()
    mtp_patch, verl_error = import_verl(verl)
    prepare_megatron(device)
    versions = imported_versions(verl if mtp_patch else "none", megatron_core)

    import torch

    from .world import World

    numbers = tuple(int(part) for part in re.findall(r"\d+", megatron_core)[:3])  # "0.20.0rc0" of a checkout, too
    return World(torch.device(device), numbers, mtp_patch, plugin), versions, verl_error


def stand_ins() -> ModuleType:
    """``verl_mtp_plugin.testing.cuda``, loaded by path: without the plugin its package must not be imported."""
    name = "contract_stand_ins"
    if name not in sys.modules:
        path = ROOT / "verl_mtp_plugin" / "testing" / "cuda.py"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise WrongCellError(f"{path} cannot be loaded")
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def prepare_device(device: str) -> None:
    """On the CPU the stand-ins for torch.cuda; on CUDA nothing but kernels that give the same bits twice."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.set_num_threads(1)
    if device == "cpu":
        stand_ins().install()
    else:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.use_deterministic_algorithms(True, warn_only=True)


def import_verl(version: str) -> tuple[ModuleType | None, str | None]:
    """verl's patch module, or why it cannot be imported beside this megatron-core."""
    if version == "none":
        return None, None
    try:
        importlib.import_module("verl")
        return importlib.import_module("verl.models.mcore.mtp_patch"), None
    except Exception as error:  # whatever it is, it is reported in the result
        return None, f"{type(error).__name__}: {error}"


def prepare_megatron(device: str) -> None:
    """Process groups of one process, and Megatron's generators."""
    import torch
    from megatron.core import parallel_state, tensor_parallel

    if device == "cpu":
        stand_ins().install_megatron()
        stand_ins().init_process_group()
    else:
        for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}.items():
            os.environ.setdefault(name, value)
        torch.distributed.init_process_group("nccl")
        stand_ins().complete_without_transformer_engine()
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(1)


def imported_versions(verl: str, megatron_core: str) -> dict[str, str]:
    """The versions of what is in ``sys.modules``, from the modules themselves.

    Raises:
        WrongCellError: another verl or megatron-core than asked for, or its metadata belongs to another copy.
    """
    import megatron.core
    import torch

    found = {"python": sys.version.split()[0], "torch": torch.__version__, "megatron-core": megatron.core.__version__}
    if verl != "none":
        found["verl"] = sys.modules["verl"].__version__
    for name, wanted in {"verl": verl, "megatron-core": megatron_core}.items():
        if wanted == "none":
            continue
        installed = importlib.metadata.version(name)
        if found[name] != wanted or installed != wanted:
            raise WrongCellError(f"asked for {name} {wanted}, imported {found[name]} with metadata of {installed}")
    return found
