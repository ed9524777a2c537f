"""verl's real Megatron engine over a model folder, and what is measured of it."""

from __future__ import annotations

import contextlib
import importlib
import time
from argparse import Namespace
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import batches
from .options import MAIN, SMALL


def prepare(*, plugin: bool, rehearse: bool) -> None:
    """Import verl, and the plugin with it or not; a process group of this process alone."""
    if rehearse:
        from verl_mtp_plugin.testing import cuda

        cuda.install()
    importlib.import_module("verl")
    if plugin:
        importlib.import_module("verl_mtp_plugin").activate()  # again, where it is installed
    if not rehearse:
        torch.cuda.set_device(0)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")  # as verl's trainers do
        importlib.import_module("verl.workers.engine.megatron.transformer_impl")
        return
    from verl_mtp_plugin.testing import megatron_bridge, transformer_engine, verl_engine

    cuda.install_megatron()
    cuda.init_process_group()
    transformer_engine.install()
    verl_engine.install()
    megatron_bridge.install()


class Bench:
    """The engine with an optimizer, and batches for it."""

    def __init__(self, folder: Path, options: Namespace, *, mtp: bool) -> None:
        self.options, self.seed = options, 0
        self.engine = build(folder, mtp=mtp, rehearse=options.rehearse)
        self.vocabulary = int(self.engine.model_config.hf_config.vocab_size)
        self.parameters = sum(p.numel() for chunk in self.engine.module for p in chunk.parameters())
        self.marks: dict[str, Any] = {}
        self.known: set[str] = set()
        core = self.engine.module[0]
        core.register_forward_pre_hook(lambda *_: self._mark("forward"))
        core.register_forward_hook(lambda *_: self._mark("forward_end"))
        step = self.engine.optimizer_step

        def marked_step() -> Any:
            self._mark("optimizer")
            return step()

        self.engine.optimizer_step = marked_step

    def _mark(self, name: str) -> None:
        """When the GPU gets here (a rehearsal: the CPU); once for each micro-batch."""
        mark: Any = time.perf_counter()
        if not self.options.rehearse:
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.setdefault(name, []).append(mark)

    def _between(self, first: str, last: str) -> float:
        """Milliseconds."""
        one, two = self.marks[first][0], self.marks[last][0]
        return float(1e3 * (two - one) if self.options.rehearse else one.elapsed_time(two))

    def batch(self, series: str) -> Any:
        """A new one, but for ``same``."""
        from verl.utils import tensordict_utils

        self.seed += 1
        shortest, longest = self.options.lengths
        seed = 0 if series == "same" else self.seed
        found = batches.batch(self.options.tokens, shortest, longest, self.vocabulary, seed)
        limit = SMALL if series == "small" else 2 * self.options.tokens
        tensordict_utils.assign_non_tensor(found, max_token_len_per_gpu=limit)
        if series == "recompute":
            tensordict_utils.assign_non_tensor(found, calculate_entropy=True, compute_loss=False)
        return found

    def run(self, series: str, batch: Any) -> Any:
        """One training step, or one recompute."""
        from verl.workers.utils.losses import sft_loss

        if series == "recompute":
            return self.engine.infer_batch(batch, loss_function=None)
        return self.engine.train_batch(batch, loss_function=partial(sft_loss, config=None))

    @contextlib.contextmanager
    def mode(self, series: str) -> Iterator[None]:
        with self.engine.eval_mode() if series == "recompute" else self.engine.train_mode():
            yield

    def sample(self, series: str) -> dict[str, float]:
        """Milliseconds of one step, and of its parts by the GPU's clock where it has one micro-batch."""
        batch = self.batch(series)
        self.marks = {}
        torch.cuda.synchronize()
        begun = time.perf_counter()
        self._mark("begin")
        self.run(series, batch)
        self._mark("end")
        torch.cuda.synchronize()
        found = {"ms": 1e3 * (time.perf_counter() - begun)}
        parts = {"before": ("begin", "forward"), "forward": ("forward", "forward_end")}
        if series == "recompute":
            parts["after"] = ("forward_end", "end")
        else:
            parts |= {"backward": ("forward_end", "optimizer"), "optimizer": ("optimizer", "end")}
        if len(self.marks.get("forward", ())) == 1:
            for name, (first, last) in parts.items():
                found[name] = self._between(first, last)
        return found

    def measure(self, series: str) -> dict[str, Any]:
        """Samples of one round, after some that do not count, and bytes at the peak while they were taken."""
        first = series not in self.known
        self.known.add(series)
        each = self.options.each if series in MAIN else (self.options.each + 1) // 2
        with self.mode(series):
            for _ in range(2 if first else 1):
                self.sample(series)
            torch.cuda.reset_peak_memory_stats()
            samples = [self.sample(series) for _ in range(each)]
        peak = {"peak_bytes": torch.cuda.max_memory_allocated(), "reserved_bytes": torch.cuda.max_memory_reserved()}
        torch.cuda.empty_cache()  # the others have their turns
        return {"samples": samples, **peak}


def build(folder: Path, *, mtp: bool, rehearse: bool) -> Any:
    """The engine as verl's SFT trainer makes it: Megatron-Bridge, distributed optimizer, TransformerEngine."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import HFModelConfig, McoreEngineConfig, McoreOptimizerConfig
    from verl.workers.config.model import MtpConfig
    from verl.workers.engine import EngineRegistry

    transformer: dict[str, Any] = {"attention_backend": "auto", "gradient_accumulation_fusion": False}
    if rehearse:
        from verl_mtp_plugin.testing import verl_engine

        transformer = dict(verl_engine.TRANSFORMER_CONFIG)
    contents = ["model", "optimizer", "extra"]
    engine = EngineRegistry.new(
        model_type="language_model",
        backend="megatron",
        model_config=HFModelConfig(
            path=str(folder),
            trust_remote_code=True,
            use_remove_padding=True,
            override_config={"attn_implementation": "eager"},
            mtp=MtpConfig(enable=mtp, enable_train=mtp, detach_encoder=True, mtp_loss_scaling_factor=0.3),
        ),
        engine_config=McoreEngineConfig(
            use_mbridge=True,
            vanilla_mbridge=False,
            use_remove_padding=True,
            use_distributed_optimizer=True,
            tensor_model_parallel_size=1,
            dtype="bfloat16",
            override_transformer_config=transformer,
        ),
        optimizer_config=McoreOptimizerConfig(
            lr=1e-5, lr_warmup_steps=0, lr_decay_steps=1000, lr_decay_style="constant", total_training_steps=1000,
            clip_grad=1.0, weight_decay=0.01,
        ),
        checkpoint_config=CheckpointConfig(save_contents=contents, load_contents=contents),
    )  # fmt: skip
    engine.initialize()
    return engine
