"""Packs what was compiled at run time (Triton, FlashInfer, TVM-FFI, Inductor), for the next bare machine.

    python3 caches.py FOLDER     # writes FOLDER/jitcache.tar.xz; unpack.py puts it back, where it lies beside archives

Paths and releases have to be the same there: put the stack into the same folder.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path

from unpack import CACHES

#: under the home directory
FOLDERS = (
    ".cache/flashinfer", ".cache/tvm-ffi", ".cache/sglang", ".cache/deep_gemm", ".cache/torchinductor",
    ".cache/torch_extensions", ".triton",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    home = Path.home()
    found = [name for name in FOLDERS if (home / name).is_dir()]
    if not found:
        print("nothing was compiled")
        return
    tar = ["tar", "-C", str(home), "-I", "xz -6 -T0", "-cf", str(folder / CACHES)]
    subprocess.run([*tar, *found], check=True)
    print(f"{folder / CACHES}: {(folder / CACHES).stat().st_size / 2**20:.1f} MiB from {', '.join(found)}")


if __name__ == "__main__":
    main()
