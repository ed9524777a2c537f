"""What the bundle is made of: trees of packages, what is left out of them, and the archives they travel in."""

from __future__ import annotations

#: tree -> what pip puts there: names of files in requirements/, or packages
TREES: dict[str, tuple[str, ...]] = {
    "training": ("training.txt",),
    "serving": ("serving.txt",),
    "spare": ("spare.txt",),
    "transformer-engine": ("transformer-engine.txt",),
    "core/0.16.1": ("megatron-core==0.16.1",),
    "core/0.17.1": ("megatron-core==0.17.1",),
    "core/0.18.2": ("megatron-core==0.18.2",),
    "core/0.19.2": ("megatron-core==0.19.2",),
    "mbridge": ("mbridge==0.15.1",),
    "bridge/0.4.2": ("megatron-bridge==0.4.2",),
    "bridge/0.5.1": ("megatron-bridge==0.5.1",),
    "bridge/0.6.2": ("megatron-bridge==0.6.2",),
    "bridge/needs": ("nvidia-modelopt==0.44.0", "pulp==2.9.0"),  # Megatron-Bridge imports them
}

#: archive -> its trees. The first transfer is enough to train, the second adds rollout.
ARCHIVES: dict[str, tuple[str, ...]] = {
    "training.tar.xz": ("training",),
    "megatron.tar.xz": ("transformer-engine", "core", "mbridge", "bridge"),
    "spare.tar.xz": ("spare",),
    "kernels.tar.xz": ("serving/sgl_kernel",),
    "serving.tar.xz": ("serving",),
}

#: in which of two transfers an archive goes
TRANSFERS: dict[str, tuple[str, ...]] = {
    "first": ("training.tar.xz", "megatron.tar.xz", "spare.tar.xz"),
    "second": ("kernels.tar.xz", "serving.tar.xz"),
}

#: left out: nothing that training, SGLang's language models or Ray's core imports
PRUNED = (
    "**/__pycache__", "*/bin", "core/*/bin", "bridge/*/bin", "*/share", "*/include", "*/lib", "*/lib64", "*/tests",
    "*/test", "*/tools", "*/recipe", "*/scripts", "*/tutorial", "**/*.a",
    *(f"training/ray/{part}" for part in ("jars", "rllib", "cpp", "tune", "llm", "serve", "air", "dashboard/client")),
    "training/*/tests", "serving/*/tests", "serving/IPython/*/tests",
    "serving/_mscclpp*", "serving/build_*.py", "serving/sgl_kernel/sm100", "serving/sgl_kernel/flashmla_ops*",
    "serving/sglang/multimodal_gen", "serving/sglang/jit_kernel/tests",
    "serving/flashinfer/data/cccl/python", "serving/torchao/*.so", "serving/xgrammar/include",
    "serving/pycountry/locales", "serving/jedi/third_party", "transformer-engine/transformer_engine/jax",
    "bridge/needs/pulp/solverdir",
)  # fmt: skip

#: libraries with GPU code, and the kernels among them that are not needed: (drop, unless)
GPU_CODE: dict[str, tuple[tuple[str, ...], str | None]] = {
    "transformer-engine/transformer_engine/wheel_lib/*.so": ((), None),
    "serving/sgl_kernel/sm90/*.so": ((), None),
    # FlashAttention 3's forward kernels for Hopper in bfloat16 with heads of 64 or 128; all its helpers
    "serving/sgl_kernel/flash_ops*.so": (("CollectiveMainloop",), r"FwdSm90.*Li(64|128)ENS_10bfloat16_t"),
}
