"""The one list of releases that are tested: tests, noxfile.py, benchmarks, the doctor and the README read it.

It labels a stack as tested or untested; no decision depends on it. Nothing is imported here but the standard library,
and nothing of this package: noxfile.py reads this file where no requirement of the plugin is installed.
"""

from __future__ import annotations

from typing import Final

# Each tuple goes from the oldest to the newest, so [-1] is the newest release of all.
VERL: Final = ("0.7.1", "0.8.0", "0.9.0", "0.9.1")
MEGATRON_CORE: Final = ("0.15.3", "0.16.1", "0.17.1", "0.18.2", "0.19.2")
MBRIDGE: Final = ("0.15.1",)
#: The newest megatron-core on which mbridge works as it was released; on later ones the plugin mends it.
MBRIDGE_CORE: Final = "0.16.1"
#: Each Megatron-Bridge with the megatron-core that it imports with.
BRIDGE_CORES: Final = {"0.3.1": "0.16.1", "0.4.2": "0.17.1", "0.5.1": "0.18.2", "0.6.2": "0.19.2"}
MEGATRON_BRIDGE: Final = tuple(BRIDGE_CORES)
#: The SGLang that each verl pins: 0.9.0 as 0.8.0; 0.9.1 pins 0.5.12, and 0.5.12.post1 differs from it in files of
#: DeepSeek-V4 and of data-parallel attention, and by a warm-up of models in the model runner.
SGLANG_PINS: Final = {"0.7.1": "0.5.6", "0.8.0": "0.5.8", "0.9.1": "0.5.12.post1"}
#: Those that came after the last pin.
SGLANG_LATER: Final = ("0.5.21", "0.5.22", "0.5.23")
#: The first of them, and the first with weight-update sessions.
SGLANG_SESSIONS: Final = SGLANG_LATER[0]
#: With verl's and SGLang's own server code, on the CPU.
SGLANG: Final = (*SGLANG_PINS.values(), *SGLANG_LATER)
#: The newest vLLM that each verl allows, or had when it came out.
VLLM_PINS: Final = {"0.7.1": "0.12.0", "0.8.0": "0.12.0", "0.9.0": "0.24.0", "0.9.1": "0.24.0"}
#: With verl's own server, on an engine that stands in with the rules of these; no vLLM is installed in any test.
VLLM: Final = (*dict.fromkeys(VLLM_PINS.values()), "0.33.0")  # the last releases the KV cache alone

TESTED: Final = {
    "verl": VERL,
    "megatron-core": MEGATRON_CORE,
    "mbridge": MBRIDGE,
    "megatron-bridge": MEGATRON_BRIDGE,
    "sglang": SGLANG,
    "vllm": VLLM,
}
#: Of these, what is tested is a stand-in with the release's rules, and the doctor says so.
STOOD_IN: Final = frozenset({"vllm"})
