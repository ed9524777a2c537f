"""Real mbridge and real megatron-core in a process of its own: prints what :mod:`.test_mbridge_mimo` asks for, as JSON.

``python -m tests.bridges.mimo_worker CASE FOLDER``
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart"
sys.path.insert(0, str(QUICKSTART))

import model as tiny  # noqa: E402
import torch  # noqa: E402
from sampler import TinyMiMo  # noqa: E402
from torch import Tensor  # noqa: E402

from verl_mtp_plugin.bridges.mends import mbridge_mimo  # noqa: E402
from verl_mtp_plugin.patching.engine import PatchEngine  # noqa: E402
from verl_mtp_plugin.patching.patch import Patch, PatchSet  # noqa: E402
from verl_mtp_plugin.testing import cuda, transformer_engine  # noqa: E402
from verl_mtp_plugin.testing.verl_engine import TRANSFORMER_CONFIG  # noqa: E402

CASES: dict[str, Callable[[Path], Any]] = {}


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    CASES[function.__name__] = function
    return function


def prepare() -> None:
    cuda.install()
    from megatron.core import parallel_state

    cuda.install_megatron()
    cuda.init_process_group()
    parallel_state.initialize_model_parallel()
    transformer_engine.install()
    tiny.register()


def apply(patches: Iterable[Patch | PatchSet]) -> PatchEngine:
    import mbridge  # noqa: F401  # what is patched

    engine = PatchEngine()
    engine.arm(patches)
    return engine


def decisions(engine: PatchEngine) -> dict[str, str]:
    return {record.id: str(record.decision) for record in engine.records()}


def weights() -> dict[str, Tensor]:
    """Of the tiny model, with norms and biases that leave a trace too; values that bf16 holds."""
    generator = torch.Generator().manual_seed(1)
    return {
        name: (tensor.float() + 0.1 * torch.randn(tensor.shape, generator=generator)).bfloat16()
        for name, tensor in tiny.random_weights(seed=0).items()
    }


def build(folder: Path, dtype: torch.dtype) -> tuple[Any, list[Any]]:
    """The bridge, and Megatron's model with the folder's weights."""
    from mbridge import AutoBridge
    from transformers import AutoConfig

    saved = tiny.copy_with_weights(tiny.make(folder / "tiny", seed=0), folder / "perturbed", weights())
    bridge = AutoBridge.from_config(AutoConfig.from_pretrained(saved), dtype=dtype)
    bridge.set_extra_args(**TRANSFORMER_CONFIG)
    models = bridge.get_model(weight_path=str(saved), bf16=dtype is torch.bfloat16)
    return bridge, models


def _mtp_names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters() if "mtp.layers.0." in name]


def draft_difference(folder: Path) -> dict[str, float]:
    """Largest difference between Megatron's draft logits and the sampler's, and how large the logits are."""
    _, (model,) = build(folder, torch.float32)
    model.eval()
    ids = torch.randint(5, tiny.CONFIG["vocab_size"], (2, 12), generator=torch.Generator().manual_seed(2))
    caught: list[Tensor] = []
    model.mtp.register_forward_hook(lambda module, args, output: caught.append(output))
    positions = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        model(input_ids=ids, position_ids=positions, attention_mask=None, labels=ids)
    draft_hidden = caught[0].chunk(2)[1]  # [2s, b, h]: the main model's, then the MTP layer's
    found = model.output_layer(draft_hidden)[0].detach().transpose(0, 1)
    sampler = TinyMiMo(weights(), tiny.CONFIG)
    _, hidden = sampler.main(ids, {})
    wanted = sampler.draft(hidden[:, :-1], ids[:, 1:], {})
    difference = (found[:, :-1] - wanted).abs().max()  # at the last position Megatron has no next token
    return {"difference": float(difference), "size": float(wanted.abs().max())}


@case
def plain(folder: Path) -> Any:
    try:
        build(folder, torch.bfloat16)
    except (ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"[:100]
    return None


@case
def round_trip(folder: Path) -> Any:
    engine = apply(mbridge_mimo.PATCHES)
    bridge, models = build(folder, torch.bfloat16)
    exported, wanted = dict(bridge.export_weights(models)), weights()
    return {
        "decisions": decisions(engine),
        "missing": sorted(wanted.keys() ^ exported.keys()),
        "different": [name for name in wanted if not torch.equal(wanted[name], exported[name])],
        "layer_names": sorted({name.split("mtp.layers.0.")[1].split(".")[0] for name in _mtp_names(models[0])}),
    }


@case
def drafts(folder: Path) -> Any:
    apply(mbridge_mimo.PATCHES)
    return draft_difference(folder)


@case
def drafts_without_swap(folder: Path) -> Any:
    """The same with the conversions as upstream has them: the comparison must notice."""
    apply(patch for patch in mbridge_mimo.MIMO.patches if patch.id.endswith((".layer_spec", ".names")))
    return draft_difference(folder)


@case
def fixed_upstream(folder: Path) -> Any:
    """A class that does all of it already, as mbridge's main does: nothing is to be changed."""
    apply(mbridge_mimo.PATCHES)
    from mbridge.models.mimo import MimoBridge

    def args(self: Any) -> Any:
        return self._get_transformer_layer_spec()

    MimoBridge._get_gptmodel_args = args
    before = dict(vars(MimoBridge))
    second = apply(mbridge_mimo.PATCHES)
    return {"decisions": decisions(second), "untouched": dict(vars(MimoBridge)) == before}


@case
def reverted(folder: Path) -> Any:
    import mbridge.core.util
    import mbridge.models.mimo

    owners = (mbridge.core.util, mbridge.models.mimo, mbridge.models.mimo.MimoBridge)
    before = [dict(vars(owner)) for owner in owners]
    engine = apply(mbridge_mimo.PATCHES)
    changed = [dict(vars(owner)) for owner in owners] != before
    engine.revert_all()
    return {"changed": changed, "restored": [dict(vars(owner)) for owner in owners] == before}


if __name__ == "__main__":
    name, path = sys.argv[1:]
    prepare()
    print(json.dumps(CASES[name](Path(path))))
