"""Trains a tiny model without MTP through verl's real Megatron engine, and prints a digest of all that came of it.

``python -m tests.stack.plain_training_worker FOLDER mimo|qwen2 on|off``
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "quickstart"))

import engine
import model as tiny
from data import Problems
from torch import Tensor


def as_qwen2(source: Path, folder: Path) -> Path:
    """The same model without its MTP layer: MiMo's trunk is Qwen2's."""
    weights = {name: tensor for name, tensor in tiny.load(source).items() if "mtp_layers" not in name}
    tiny.copy_with_weights(source, folder, weights)
    config = json.loads((source / "config.json").read_text())
    del config["num_nextn_predict_layers"]
    config |= {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def digest(tensors: dict[str, Tensor]) -> str:
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].float().numpy().tobytes())
    return total.hexdigest()


def main() -> None:
    folder, family, plugin = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "on"
    engine.prepare(plugin=plugin)
    tiny.register()
    model = tiny.make(folder / "mimo", seed=0)
    if family == "qwen2":
        model = as_qwen2(model, folder / "qwen2")
    trained = engine.Engine(model, train_mtp=False, with_mtp=False, steps=3)
    problems = Problems(seed=1)
    batches = [problems.take(8) for _ in range(3)]
    before = digest(trained.export())
    steps = [trained.train(batch) for batch in batches]
    log_probs = {str(i): row for i, row in enumerate(trained.log_probs(batches[0]))}
    found = {
        "plugin": "verl_mtp_plugin.runtime" in sys.modules and sys.modules["verl_mtp_plugin.runtime"].report().active,
        "losses": [step.loss for step in steps],
        "grad_norms": [step.grad_norm for step in steps],
        "before": before,
        "weights": digest(trained.export()),
        "log_probs": digest(log_probs),
    }
    print("=> " + json.dumps(found))


if __name__ == "__main__":
    main()
