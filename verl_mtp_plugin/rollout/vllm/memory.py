"""Free memory of the GPUs that this process may use, without making a CUDA context on them."""

from __future__ import annotations

import importlib
import logging
import os
from typing import Any

logger = logging.getLogger(__name__)


def free_bytes() -> int | None:
    """Summed over ``CUDA_VISIBLE_DEVICES``, from NVIDIA's management library; None where that is not to be had."""
    devices = [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    nvml = _nvml()
    if nvml is None or not devices:
        return None
    try:
        nvml.nvmlInit()
        try:
            return sum(int(nvml.nvmlDeviceGetMemoryInfo(_handle(nvml, device)).free) for device in devices)
        finally:
            nvml.nvmlShutdown()
    except Exception as error:  # NVMLError is the library's own class; the sync does not need the number
        logger.debug("no free memory from NVML: %s", error)
        return None


def _handle(nvml: Any, device: str) -> Any:
    return nvml.nvmlDeviceGetHandleByIndex(int(device)) if device.isdigit() else nvml.nvmlDeviceGetHandleByUUID(device)


def _nvml() -> Any:
    for name in ("vllm.third_party.pynvml", "pynvml"):
        try:
            return importlib.import_module(name)
        except Exception:  # not installed, or its driver library is missing
            continue
    return None
