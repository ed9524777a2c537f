"""Names of tensors that real bridges export and save of every family, without and with the plugin. Prints JSON.

    PYTHONPATH=<layers> python -m tests.bridges.names.worker mbridge|megatron-bridge RELEASE FOLDER [FAMILY...]

Each family's toy model is built with MTP and without, from a checkpoint that has its MTP layer and the copies of its
layout, its tensors spread over files that MTP tensors and others share. "Without the plugin" is with its mends of what
no bridge could build, and without all that it does to exports and folders.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from verl_mtp_plugin.bridges import hooks
from verl_mtp_plugin.bridges.weights import hooks as weights
from verl_mtp_plugin.models.families import FAMILIES
from verl_mtp_plugin.models.family import MBRIDGE, ModelFamily
from verl_mtp_plugin.patching.engine import PatchEngine
from verl_mtp_plugin.testing import cuda
from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG

from ..probes.common import as_read_by_transformers_4
from ..roundtrip.cells import Stack
from ..roundtrip.prepare import prepare, use_layout

FILES = 4
MENDS = [item for item in hooks.PATCHES if item not in weights.PATCHES]
Names = list[str]


class Vanilla:
    """mbridge."""

    def __init__(self, folder: Path, sample: dict[str, Any], *, with_mtp: bool) -> None:
        from mbridge import AutoBridge

        self.folder = folder
        self.bridge = AutoBridge.from_config(_config(folder, sample), dtype=torch.bfloat16)
        self.bridge.set_extra_args(**TRANSFORMER_CONFIG, **({} if with_mtp else {"mtp_num_layers": None}))

    def supported(self) -> bool | None:
        from verl_mtp_plugin.bridges.mbridge import probe

        return probe(self.bridge, 1).supported

    def build(self) -> Any:
        self.models = self.bridge.get_model(bf16=True)
        return self.models

    def load(self) -> None:
        self.bridge.load_weights(self.models, str(self.folder))

    def stream(self) -> Iterable[Any]:
        return self.bridge.export_weights(self.models)

    def whole(self) -> dict[str, torch.Tensor]:
        return dict(self.stream())

    def save(self, folder: Path) -> None:
        self.bridge.save_weights(self.models, str(folder))


class Newer:
    """Megatron-Bridge."""

    def __init__(self, folder: Path, sample: dict[str, Any], *, with_mtp: bool) -> None:
        from megatron.bridge import AutoBridge
        from megatron.core.transformer.enums import AttnBackend

        self.folder, self.sample = folder, sample
        self.bridge = AutoBridge.from_hf_pretrained(str(folder), trust_remote_code=False)
        as_read_by_transformers_4(self.bridge.hf_pretrained.config, sample)
        self.provider = self.bridge.to_megatron_provider(load_weights=False)
        overrides = {
            "variable_seq_lengths": True,
            "moe_token_dispatcher_type": "alltoall",
            "attention_backend": AttnBackend.flash,
            **TRANSFORMER_CONFIG,
            **({} if with_mtp else {"mtp_num_layers": None}),
        }
        if hasattr(self.provider, "apply_overrides_and_finalize"):
            self.provider.apply_overrides_and_finalize(dtype=torch.bfloat16, overrides=overrides)
            return
        for name, value in {"params_dtype": torch.bfloat16, "fp16": False, "bf16": True, **overrides}.items():
            setattr(self.provider, name, value)
        self.provider.finalize()

    def supported(self) -> bool | None:
        from verl_mtp_plugin.bridges.megatron_bridge import probe

        return probe(self.bridge, self.provider, 1).supported

    def build(self) -> Any:
        options = {"wrap_with_ddp": False, "ddp_config": None, "fp16": False, "bf16": True}
        self.models = self.provider.provide_distributed_model(**options)
        return self.models

    def load(self) -> None:
        """Names are asked for alone."""

    def stream(self) -> Iterable[Any]:
        return self.bridge.export_hf_weights(self.models, show_progress=False)

    def whole(self) -> dict[str, torch.Tensor]:
        """Also what no checkpoint is known to have; before 0.5, which export by a checkpoint alone, names only."""
        from megatron.bridge import AutoBridge

        config = _config(self.folder, self.sample)
        try:
            return dict(AutoBridge.from_hf_config(config).export_hf_weights(self.models, show_progress=False))
        except (AttributeError, TypeError, ValueError):
            tasks = self.bridge.get_conversion_tasks(self.models)
            mapped = [task.mapping.hf_param for task in tasks if task is not None]
            names = [name for hf in mapped for name in ([hf] if isinstance(hf, str) else hf.values())]
            return {name: torch.zeros(2) for name in names}

    def save(self, folder: Path) -> None:
        self.bridge.save_hf_weights(self.models, str(folder), show_progress=False)


def _config(folder: Path, sample: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    return as_read_by_transformers_4(AutoConfig.from_pretrained(folder), sample)


def _register(model_type: str) -> None:
    """Let transformers read a model type that published models bring the class of."""
    from transformers import PretrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        CONFIG_MAPPING.register(model_type, type("SampleConfig", (PretrainedConfig,), {"model_type": model_type}))


def attempt(do: Any) -> Any:
    """What it returns, or its error as text."""
    try:
        return do()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).strip()}"[:200]


def saved(folder: Path, save: Any) -> Names:
    shutil.rmtree(folder, ignore_errors=True)
    save(folder)
    found: Names = []
    for file in folder.rglob("*.safetensors"):
        with safe_open(file, framework="pt") as opened:
            found.extend(opened.keys())
    return sorted(found)


def copies(family: ModelFamily, layers: int) -> Iterator[tuple[str, str]]:
    """What the layout keeps twice, and of which tensor."""
    for ending in family.copies:
        of = "model.embed_tokens.weight" if "embed" in ending else "lm_head.weight"
        yield f"{family.mtp_prefixes[0].format(layers=layers)}{ending}", of


def write(folder: Path, sample: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**sample, "pad_token_id": 0}))
    places: dict[str, str] = {}
    for number in range(FILES):
        file = f"model-{number}.safetensors"
        part = {name: tensors[name].detach().cpu().clone() for name in sorted(tensors)[number::FILES]}
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def source(kind: Any, folder: Path, family: ModelFamily, sample: dict[str, Any]) -> set[str]:
    """Write the family's checkpoint, and one without copies beside it; which of its tensors are MTP's.

    Where the bridge builds no MTP, a stand-in for the layer's tensors: nothing reads more of it than the name.
    """
    # Elsewhere: Megatron-Bridge remembers what a folder has.
    sketch = folder.with_name(f"{folder.name}-sketch")
    write(sketch, sample, {"lm_head.weight": torch.zeros(2), **dict.fromkeys(family.sample_tensors, torch.zeros(2))})
    use_layout(1)
    built = kind(sketch, sample, with_mtp=True)
    if not built.supported():
        built = kind(sketch, sample, with_mtp=False)
    built.build()
    tensors = built.whole()
    layers = int((sample.get("text_config") or sample)["num_hidden_layers"])
    prefix = family.mtp_prefixes[0].format(layers=layers)
    if not any(name.startswith(prefix) for name in tensors):
        tensors[f"{prefix}enorm.weight"] = torch.zeros(2)
    twice = {name: tensors[of] for name, of in copies(family, layers) if of in tensors}
    tensors |= twice
    write(folder, sample, tensors)
    if twice:
        write(without_copies(folder), sample, {name: t for name, t in tensors.items() if name not in twice})
    return {name for name in tensors if name.startswith(prefix)}


def without_copies(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}-without-copies")


def outcome(kind: Any, folder: Path, family: ModelFamily, engine: PatchEngine) -> dict[str, Any]:
    sample = dict(family.sample or {})
    _register(str(sample["model_type"]))
    mtp = attempt(lambda: source(kind, folder, family, sample))
    if isinstance(mtp, str):
        return {"source": mtp}
    found: dict[str, Any] = {"source": None, "mtp": sorted(mtp)}
    for name, with_mtp in (("enabled", True), ("disabled", False)):
        places = {name: folder, f"{name}, no copies": without_copies(folder)}
        for title, place in places.items():
            if place.exists():
                found[title] = attempt(
                    lambda place=place, with_mtp=with_mtp: cell(kind, place, sample, engine, with_mtp=with_mtp)
                )
    return found


def cell(kind: Any, folder: Path, sample: dict[str, Any], engine: PatchEngine, *, with_mtp: bool) -> dict[str, Any]:
    use_layout(1)
    bridge = kind(folder, sample, with_mtp=with_mtp)
    if with_mtp and not bridge.supported():
        return {"refused": True}
    bridge.build()
    bridge.load()
    found: dict[str, Any] = {}
    for name in ("without", "with"):
        if name == "with":
            engine.arm(weights.PATCHES)
        found[name] = {
            "export": attempt(lambda: sorted(item[0] for item in bridge.stream())),
            "saved": attempt(lambda name=name: saved(folder / name, bridge.save)),
        }
    engine.revert_all()
    engine.arm(MENDS)
    return found


def main() -> None:
    bridge, release, folder, *only = sys.argv[1:]
    prepare(Stack(bridge, release, ""))
    engine = PatchEngine()
    engine.arm(MENDS)
    kind = Vanilla if bridge == MBRIDGE else Newer
    with open(os.devnull, "w") as nowhere:
        out, sys.stdout = sys.stdout, nowhere
        found = {
            family.name: outcome(kind, Path(folder) / family.name.replace(" ", "-"), family, engine)
            for family in FAMILIES
            if family.sample and family.mtp_prefixes and (not only or family.name in only)
        }
        sys.stdout = out
    print("=> " + json.dumps(found))
    cuda.end_process()


if __name__ == "__main__":
    main()
