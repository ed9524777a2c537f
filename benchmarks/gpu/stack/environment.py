"""Makes a virtual environment out of the unpacked bundle and of the packages of the Python that runs this.

    python3 environment.py NAME [--core 0.18.2] [--bridge 0.5.1] [--plugin REPOSITORY] [--stack ~/stack]
    . ~/stack/envs/NAME/env.sh

It is a real environment: the plugin is pip-installed into it as a user would do it, so that its start-up line and its
entry points work, also in Ray's workers. Several may stand side by side (other releases, with and without the plugin).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

from unpack import DONE

TRAINING = ("training.tar.xz", "megatron.tar.xz")
SERVING = ("kernels.tar.xz", "serving.tar.xz")


def await_archives(stack: Path, names: tuple[str, ...], seconds: float = 120.0) -> None:
    """Until ``unpack.py`` has finished with these, perhaps in the background."""
    end = time.monotonic() + seconds
    while missing := [name for name in names if not (stack / f"{name}{DONE}").exists()]:
        if time.monotonic() > end:
            sys.exit(f"not unpacked after {seconds:.0f} s: {', '.join(missing)}")
        time.sleep(0.2)


def create(home: Path, trees: list[Path], spare: Path) -> Path:
    """An environment that sees the trees, then what the running Python sees, then ``spare``; returns its Python."""
    venv.EnvBuilder(system_site_packages=True, symlinks=True, with_pip=False, clear=True).create(home)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site_packages = home / "lib" / version / "site-packages"
    missing = [str(tree) for tree in trees if not tree.is_dir()]
    if missing:
        sys.exit(f"not in the bundle: {', '.join(missing)}")
    # The running Python may be that of an environment, whose packages a new environment does not inherit.
    inherited = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    inherit = [f"import site; site.addsitedir({path!r})" for path in dict.fromkeys(inherited)]
    lines = [*map(str, trees), *inherit, f"import sys; sys.path.append({str(spare)!r})"]
    (site_packages / "stack.pth").write_text("\n".join(lines) + "\n")
    libraries = Path(sysconfig.get_path("purelib"), "nvidia")  # TransformerEngine looks for cuDNN beside site-packages
    if libraries.is_dir():
        (site_packages / "nvidia").symlink_to(libraries)
    return home / "bin" / "python"


def settings(home: Path) -> str:
    """What a shell needs; ``LD_LIBRARY_PATH`` must not name cuDNN's folder, or TransformerEngine fails to load it."""
    path = os.pathsep.join([str(home / "bin"), sysconfig.get_path("scripts"), "/usr/local/cuda/bin", "$PATH"])
    caches = Path.home() / ".cache"
    return f"""unset LD_LIBRARY_PATH PYTHONPATH
export VIRTUAL_ENV={home} PATH={path}
export CUDA_HOME=${{CUDA_HOME:-/usr/local/cuda}} PYTHONUNBUFFERED=1
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export TORCHINDUCTOR_CACHE_DIR={caches}/torchinductor TRITON_CACHE_DIR={Path.home()}/.triton/cache
export RAY_memory_monitor_refresh_ms=0 RAY_DEDUP_LOGS=0 CUDA_DEVICE_MAX_CONNECTIONS=1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--core", default="0.18.2", help="release of megatron-core")
    parser.add_argument("--bridge", default="0.5.1", help="release of Megatron-Bridge, or 'none'")
    parser.add_argument("--plugin", type=Path, help="repository (or wheel) of the plugin; without it, verl alone")
    parser.add_argument("--no-serving", action="store_true", help="without SGLang")
    parser.add_argument("--stack", type=Path, default=Path.home() / "stack")
    args = parser.parse_args()
    stack = args.stack.resolve()
    await_archives(stack, TRAINING if args.no_serving else TRAINING + SERVING)
    trees = [stack / "transformer-engine", stack / "core" / args.core, stack / "mbridge"]
    if args.bridge != "none":
        trees += [stack / "bridge" / args.bridge, stack / "bridge" / "needs"]
    trees += [stack / "training", *([] if args.no_serving else [stack / "serving"])]
    home = stack / "envs" / args.name
    python = create(home, trees, stack / "spare")
    (home / "env.sh").write_text(settings(home))
    if args.plugin:
        options = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        subprocess.run([python, "-m", "pip", "install", "-q", *options, str(args.plugin.resolve())], check=True)
    print(f". {home}/env.sh")


if __name__ == "__main__":
    main()
