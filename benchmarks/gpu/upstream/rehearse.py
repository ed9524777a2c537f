"""An upstream script's command on a machine without a GPU: its config, data, reward and worker groups are real.

    PATH=$(python -m benchmarks.gpu.upstream.rehearse --shims DIR):$PATH  bash run_mimo_7b_mtp_megatron.sh OVERRIDES

makes ``python`` and ``python3`` in DIR, which run what they are told with the stand-ins of verl_mtp_plugin.testing:
CUDA answered by the CPU, TransformerEngine and SGLang's scheduler replaced. ``--rehearse`` of hybrid.py and
fully_async.py does that. What such a run finds are mistakes in overrides, data, reward and worker groups, before GPU
time is spent. Its responses are the tokens 0, 1, 2 and so on, and its log-probs are made up.
"""

from __future__ import annotations

import collections
import importlib
import os
import runpy
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[3]
HOOK: Final = f"{__name__ if __name__ != '__main__' else 'benchmarks.gpu.upstream.rehearse'}.prepare_worker"
ENGINE: Final = "verl.workers.engine.megatron.transformer_impl"
GPUS_VARIABLE: Final = "REHEARSED_GPUS"
LOG_PROB: Final = -1.0
#: Of SGLang's answer, with a list for each request.
LOG_PROB_FIELDS: Final = tuple(
    f"{part}_{kind}"
    for part in ("input_token_logprobs", "output_token_logprobs", "input_top_logprobs", "output_top_logprobs")
    for kind in ("val", "idx")
)


def shims(folder: Path) -> Path:
    """Make the two commands in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("python", "python3"):
        file = folder / name
        file.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m benchmarks.gpu.upstream.rehearse "$@"\n')
        file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return folder


def variables(folder: Path, gpus: int) -> dict[str, str]:
    """For a script whose commands are to be those of :func:`shims`."""
    from verl_mtp_plugin.testing import faults

    (folder / "transfer").mkdir(parents=True, exist_ok=True)
    return {
        "PATH": f"{shims(folder / 'bin')}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        GPUS_VARIABLE: str(gpus),
        faults.VARIABLE: str(folder / "transfer"),
    }


def overrides(module: str) -> list[str]:
    """Behind all others: a GPU that Ray believes in, no fused kernels, and no memory to free by moving to the CPU."""
    from verl_mtp_plugin.testing import sglang_engine, verl_engine

    actor = "actor_rollout_ref.actor.megatron.override_transformer_config"
    sglang = "+actor_rollout_ref.rollout.engine_kwargs.sglang"
    chosen = [f"++{actor}.{name}={value}" for name, value in verl_engine.TRANSFORMER_CONFIG.items()]
    chosen += [f"{sglang}.{name}={value}" for name, value in sglang_engine.ENGINE_KWARGS.items()]
    chosen += [f"actor_rollout_ref.actor.megatron.{name}_offload=False" for name in ("param", "optimizer")]
    if "fully_async" in module:  # NCCL is behind verl's own
        chosen.append("actor_rollout_ref.rollout.checkpoint_engine.backend=file")
    return [
        *chosen,
        f"+ray_kwargs.ray_init.num_gpus={os.environ.get(GPUS_VARIABLE, '1')}",
        "ray_kwargs.ray_init.num_cpus=48",
        f"+ray_kwargs.ray_init.runtime_env.worker_process_setup_hook={HOOK}",
        "+actor_rollout_ref.model.override_config.attn_implementation=eager",
    ]


def prepare_worker() -> None:
    """In every process, before anything of verl is imported."""
    from verl_mtp_plugin.startup import AfterImport
    from verl_mtp_plugin.testing import cuda, rollout_process

    sys.modules["wandb"] = None  # type: ignore[assignment]  # absent: it stumbles over SGLang's stand-ins
    cuda.install()
    rollout_process.prepare()
    _complete_scheduler()
    sys.meta_path.insert(0, AfterImport("verl_mtp_plugin.testing.file_transfer", _complete_transfer))
    sys.meta_path.insert(0, BeforeImport(ENGINE.rpartition(".")[0], _prepare_megatron))
    sys.meta_path.insert(0, AfterImport(ENGINE, _complete_engine))


class BeforeImport:
    """A meta path finder that does ``action()`` when ``name`` is looked for, and is gone then."""

    def __init__(self, name: str, action: Callable[[], None]) -> None:
        self.name, self.action = name, action

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name == self.name:
            sys.meta_path.remove(self)
            self.action()


def _complete_transfer(module: ModuleType) -> None:
    """Of several trainers the first writes the file; the others take part in the export, as verl's engines do."""
    transfer = module.FileTransfer
    transfer.wait_s = 60.0
    original = transfer.send_weights

    def init_process_group(self: Any, rank: int, **options: Any) -> None:
        self.rank = rank

    async def send_weights(self: Any, weights: Any, *args: Any, **kwargs: Any) -> None:
        if self.rank == 0:
            return await original(self, weights, *args, **kwargs)
        collections.deque(weights, maxlen=0)
        return None

    transfer.init_process_group, transfer.send_weights = init_process_group, send_weights


def _complete_scheduler() -> None:
    """What SGLang's stand-in lacks for training: tokens of the vocabulary, log-probs, answers to our questions."""
    from verl_mtp_plugin.testing import sglang_scheduler, sglang_workers

    # Its models are numbers. A tensor in shared memory can be opened once, and verl as released opens it twice.
    sglang_workers.Model.load = lambda self, named_tensors: (True, "Success")  # type: ignore[method-assign]
    sglang_scheduler.TOKENS_PER_VERSION = 0  # type: ignore[misc]
    sglang_scheduler.HANDLERS["CheckWeightsReqInput"] = ("check", ("weight_updater.check_weights", "check_weights"))
    original = vars(sglang_scheduler)["batch_output"]

    def batch_output(request: Any, **counts: int) -> Any:
        message = original(request, **counts)
        values = {"output_token_logprobs_val": [LOG_PROB] * len(request.tokens)}
        values["output_token_logprobs_idx"] = list(request.tokens)
        for name in LOG_PROB_FIELDS:
            if hasattr(message, name):
                setattr(message, name, [values.get(name, [])])
        return message

    vars(sglang_scheduler)["batch_output"] = batch_output


def _prepare_megatron() -> None:
    from verl_mtp_plugin.testing import cuda, transformer_engine

    cuda.install_megatron()
    transformer_engine.install()


def _complete_engine(module: ModuleType) -> None:
    from verl_mtp_plugin.testing import megatron_bridge, verl_engine

    verl_engine.install()
    megatron_bridge.install()


def main() -> None:
    if sys.argv[1:2] == ["--shims"]:
        print(shims(Path(sys.argv[2])))
        return
    module, arguments = sys.argv[2], sys.argv[3:]
    os.environ["PYTHONPATH"] = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    prepare_worker()
    importlib.import_module("verl")
    sys.argv = [module, *arguments, *overrides(module)]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
