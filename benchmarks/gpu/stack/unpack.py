"""Unpacks archives of the bundle side by side; those of a second transfer may follow while the first still unpack.

    python3 unpack.py FOLDER... [--stack ~/stack]

Needs Python's standard library, xz and tar. Returns when every archive of these folders is unpacked.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

CACHES = "jitcache.tar.xz"  # of caches.py: belongs under the home directory
DONE = ".unpacked"


def unpack(archive: Path, target: Path) -> subprocess.Popen[bytes]:
    target.mkdir(parents=True, exist_ok=True)
    extract = 'set -o pipefail; xz -dc -- "$0" | tar --sparse -xf - -C "$1"'
    return subprocess.Popen(["bash", "-c", extract, str(archive), str(target)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--stack", type=Path, default=Path.home() / "stack")
    args = parser.parse_args()
    began = time.monotonic()
    archives = sorted(archive for folder in args.folders for archive in folder.glob("*.tar.xz"))
    if not archives:
        sys.exit(f"no archives in {', '.join(map(str, args.folders))}")
    running = {archive: unpack(archive, Path.home() if archive.name == CACHES else args.stack) for archive in archives}
    failed = [archive.name for archive, process in running.items() if process.wait()]
    for archive in archives:
        if archive.name not in failed:
            (args.stack / f"{archive.name}{DONE}").touch()
    print(f"unpacked {len(archives) - len(failed)} archives in {time.monotonic() - began:.1f} s")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
