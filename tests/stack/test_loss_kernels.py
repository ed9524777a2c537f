"""Without working Triton kernels PyTorch computes the loss, with one warning. The kernels: benchmarks/mtp_loss.py."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from verl_mtp_plugin.training.loss import softmax_kernels


class Broken:
    """A kernel that cannot be built, or one that writes nothing."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def __getitem__(self, grid: Any) -> Any:
        def launch(*args: Any, **kwargs: Any) -> None:
            if self.error is not None:
                raise self.error

        return launch


@pytest.mark.parametrize(
    ("error", "message"),
    [(RuntimeError("Failed to find C compiler"), "RuntimeError: Failed to find C compiler"), (None, "wrong results")],
)
def test_broken_kernels_are_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception | None, message: str
) -> None:
    monkeypatch.setattr(softmax_kernels, "_kernels", lambda: (Broken(error), Broken(error)))
    softmax_kernels.works.cache_clear()
    caplog.set_level(logging.WARNING, "verl_mtp_plugin")
    assert not softmax_kernels.works(torch.device("cpu"))
    assert not softmax_kernels.works(torch.device("cpu"))
    assert [message in record.getMessage() for record in caplog.records] == [True]
    softmax_kernels.works.cache_clear()


def test_no_triton_is_no_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(softmax_kernels, "_kernels", lambda: None)
    softmax_kernels.works.cache_clear()
    assert not softmax_kernels.works(torch.device("cpu"))
    assert not caplog.records
    softmax_kernels.works.cache_clear()
