"""What a run is asked for; a session gets the same as its run."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

GIB: Final = 1 << 30
#: Phases of each session, in order. Those that may end the server come last.
PLUGIN: Final = (
    "memory",
    "noop",
    "throughput_before",
    "repeat",
    "throughput_after",
    "out_of_memory",
    "transfer_fails",
    "abort",
    "retract",
    "retract_logprobs",
    "retract_burst",
)
RELEASED: Final = ("noop", "out_of_memory", "repeat", "transfer_fails")
SESSIONS: Final = {"plugin": PLUGIN, "released": RELEASED}
#: Played only if named, in both sessions: its transfer buffers have to fit beside the KV pools (``--bucket-mib 256``).
#: It may end the server, so it comes last.
KEPT_CACHE: Final = "kept_cache"
#: What the GPU holds besides the KV pools and weights: contexts, CUDA graphs, workspaces; and what shall stay free.
_RESERVED_GIB: Final = 3.2
_FREE_GIB: Final = 2.5


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.weight_sync")
    parser.add_argument("--model", type=Path, help="Hugging Face folder of a MiMo with one MTP layer")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/gpu/results/weight_sync.json"))
    parser.add_argument("--sessions", default=",".join(SESSIONS), help=f"of {', '.join(SESSIONS)}")
    names = ", ".join(dict.fromkeys((*PLUGIN, *RELEASED, KEPT_CACHE)))
    parser.add_argument("--phases", default="", help=f"only these, of {names}")
    parser.add_argument("--syncs", type=int, default=50, help="in a row; a fifth of them without the plugin")
    parser.add_argument("--utilization", type=float, help="gpu_memory_utilization; by default about 2.5 GiB stay free")
    parser.add_argument("--bucket-mib", type=int, default=2048, help="update_weights_bucket_megabytes; two are held")
    parser.add_argument("--attention", default="flashinfer", help="SGLang's attention_backend")
    parser.add_argument("--sampling", default="", help="SGLang's sampling_backend; its default if empty")
    parser.add_argument("--limit", type=float, default=570.0, help="seconds for everything")
    parser.add_argument("--rehearse", action="store_true", help="without a GPU, with stand-ins; numbers mean nothing")
    parser.add_argument("--session", choices=tuple(SESSIONS), help=argparse.SUPPRESS)
    parser.add_argument("--progress", type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.model is None and not options.rehearse:
        parser.error("--model is needed")
    return options


def phases(options: argparse.Namespace, session: str) -> tuple[str, ...]:
    """Those to play in this session."""
    wanted = options.phases.split(",") if options.phases else SESSIONS[session]
    return tuple(name for name in (*SESSIONS[session], KEPT_CACHE) if name in wanted)


@dataclass(frozen=True, slots=True)
class Model:
    """What is read from a model's config.json."""

    folder: Path
    vocabulary: int
    layers: int
    drafters: int
    weights_gib: float
    special: frozenset[int]

    @classmethod
    def of(cls, folder: Path) -> Model:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        return cls(
            folder=folder.resolve(),
            vocabulary=config["vocab_size"],
            layers=config["num_hidden_layers"],
            drafters=config.get("num_nextn_predict_layers", 0),
            weights_gib=sum(path.stat().st_size for path in folder.glob("*.safetensors")) / GIB,
            special=frozenset(config.get(f"{name}_token_id", -1) for name in ("bos", "eos", "pad")),
        )

    @property
    def pools(self) -> float:
        """Size of all KV pools in sizes of the target's. SGLang sizes the target's and adds the drafter's to it."""
        return (self.layers + self.drafters) / self.layers

    def utilization(self, total_gib: float) -> float:
        """That at which so little stays free that the buffers of a transfer do not fit beside the pools."""
        pool = (total_gib - _RESERVED_GIB - _FREE_GIB - self.weights_gib) / self.pools
        return round((pool + self.weights_gib) / total_gib, 3)
