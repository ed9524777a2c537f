"""How many MTP layers a model has, and MTP that is disabled and stays so, whatever the bridge reads.

``check_mtp_config`` is where verl's engines settle both, before the bridge makes Megatron's config.

* verl 0.7.1 knows one name of the count, ``num_nextn_predict_layers``; Qwen3.5 has ``mtp_num_hidden_layers``, in
  ``text_config`` where the model sees images (verl #5898).
* verl 0.7.1 and 0.8.0 disable MTP in verl's own copy of the Hugging Face config; Megatron-Bridge reads the file again
  and builds the layers all the same (verl #6626). The override that Megatron's config is made with has the last word.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Final

from ..models.families import FAMILIES
from ..models.lookup import promise_no_layers, promised_layers
from ..view import View

#: The name of the count that every release of verl knows.
KNOWN_COUNT: Final = "num_nextn_predict_layers"
#: Megatron's name of it, in verl's ``override_transformer_config``.
OVERRIDE: Final = "mtp_num_layers"


def check_mtp_config(original: Any, model_config: Any, engine_config: Any) -> Any:
    """verl's ``check_mtp_config``: finds MTP layers under every name, and disables them for every bridge.

    Args:
        original: verl's function, which writes to ``engine_config.override_transformer_config`` and, to disable MTP,
            to ``model_config.hf_config``.
    """
    hf_config = model_config.hf_config
    if model_config.mtp.enable:
        count = promised_layers(hf_config)
        if count and not getattr(hf_config, KNOWN_COUNT, 0):
            # Not written to the config itself, which is saved with checkpoints.
            model_config = View(model_config, hf_config=View(hf_config, **{KNOWN_COUNT: count}))
        return original(model_config, engine_config)
    promise_no_layers(hf_config)
    result = original(model_config, engine_config)
    # None, not 0: with 0 megatron-core 0.16 reads the labels of layers that are not there.
    engine_config.override_transformer_config[OVERRIDE] = None
    engine_config.override_transformer_config.pop("mtp_loss_scaling_factor", None)
    return result


# -- probes ------------------------------------------------------------------------------------------------------------


def unknown_counts(function: Any) -> list[str]:
    """The families' names of the layer count under which verl's own ``check_mtp_config`` finds no MTP layers."""
    names = dict.fromkeys(name for family in FAMILIES for name in family.num_layers_keys)
    return [name for name in names if not _finds(function, name)]


def _finds(function: Any, name: str) -> bool:
    """As Qwen3.5 has it, in the config of the text model."""
    model_config = _model_config(enable=True, text_config=SimpleNamespace(**{name: 1}))
    try:
        function(model_config, SimpleNamespace(override_transformer_config={}))
    except ValueError:  # "no mtp layer"
        return False
    return True


def stays_disabled(function: Any) -> bool:
    """Whether verl's own ``check_mtp_config`` overrides what a bridge may read, also where the count looks like 0."""
    engine_config = SimpleNamespace(override_transformer_config={})
    function(_model_config(enable=False, **{KNOWN_COUNT: 0}), engine_config)
    return engine_config.override_transformer_config.get(OVERRIDE, 0) is None


def _model_config(*, enable: bool, **hf_config: Any) -> SimpleNamespace:
    mtp = SimpleNamespace(enable=enable, enable_train=enable, mtp_loss_scaling_factor=0.1)
    return SimpleNamespace(hf_config=SimpleNamespace(**hf_config), mtp=mtp)
