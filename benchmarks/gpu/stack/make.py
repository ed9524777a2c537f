"""Makes the offline bundle: the stack of requirements/ for one GPU architecture, in archives small enough to carry.

    python make.py --torch-extension transformer_engine_torch-2.12.0-*.whl --out bundle

Needs pip, xz, tar, strip and 6 GB of disk; takes minutes. transformer_engine_torch has no wheels: see README.md.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from bundle import ARCHIVES, GPU_CODE, PRUNED, TRANSFERS, TREES
from fatbin import blank

HERE = Path(__file__).resolve().parent
PYTHON = ("--python-version", "3.12", "--implementation", "cp")
#: pip takes platform names literally: every glibc that the wheels of the stack were built for
GLIBC = (5, 12, 17, 24, 26, 27, 28, 31, 34, 35, 39)
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in GLIBC) + tuple(
    f"manylinux{year}_x86_64" for year in ("1", "2010", "2014")
)
#: published as source only, and in Python only
NO_WHEEL = ("antlr4-python3-runtime",)


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", *arguments], check=True)


def requirements(tree: str) -> list[str]:
    """The pinned packages of a tree."""
    found: list[str] = []
    for entry in TREES[tree]:
        lines = (HERE / "requirements" / entry).read_text().splitlines() if entry.endswith(".txt") else [entry]
        found += [line for line in lines if line and not line.startswith("#")]
    return found


def install(tree: str, target: Path, wheels: Path) -> None:
    """Wheels for the GPU machine, whatever this machine is; kept in ``wheels`` for the next time."""
    wheels.mkdir(parents=True, exist_ok=True)
    packages = requirements(tree)
    built = [package for package in packages if not package.startswith(NO_WHEEL)]
    foreign = ["--only-binary=:all:", *PYTHON, *(f"--platform={name}" for name in PLATFORMS)]
    pip("download", "--no-deps", "--find-links", str(wheels), *foreign, "--dest", str(wheels), *built)
    options = ["--no-deps", "--no-compile", "--find-links", str(wheels), "--target", str(target)]
    pip("install", "--no-index", *foreign, *options, *built)
    for package in packages:
        if package.startswith(NO_WHEEL):
            pip("install", "--upgrade", *options, package)


def prune(root: Path) -> None:
    for pattern in PRUNED:
        for path in list(root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def shrink(root: Path) -> None:
    """Takes GPU code of other architectures and symbol tables out of what is large."""
    for pattern, (drop, unless) in GPU_CODE.items():
        for library in root.glob(pattern):
            kept, blanked = blank(library, drop=drop, unless=unless)
            print(f"{library.name}: {kept / 1e6:.0f} MB of GPU code kept, {blanked / 1e6:.0f} MB blanked")
    # A process that sees no GPU when it imports sglang-kernel looks for the libraries of another architecture.
    other = root / "serving" / "sgl_kernel" / "sm100"
    other.mkdir(exist_ok=True)
    for library in (root / "serving" / "sgl_kernel" / "sm90").glob("*.so"):
        (other / library.name).symlink_to(Path("..") / "sm90" / library.name)
    ray = root / "training" / "ray" / "core" / "src" / "ray"
    for binary in [*root.rglob("*.so*"), ray / "raylet" / "raylet", ray / "gcs" / "gcs_server"]:
        if binary.is_file() and not binary.is_symlink() and binary.stat().st_size > 200_000:
            subprocess.run(["strip", "--strip-unneeded", str(binary)], check=False, stderr=subprocess.DEVNULL)


def members(root: Path, archive: str) -> list[Path]:
    """Files of an archive, those of one name and size side by side: releases share most of theirs."""
    elsewhere = [root / tree for other, trees in ARCHIVES.items() if other != archive for tree in trees]
    trees = [root / tree for tree in ARCHIVES[archive]]
    skipped = [tree for tree in elsewhere if any(mine in tree.parents for mine in trees)]
    files = [
        path
        for tree in trees
        for path in tree.rglob("*")
        if (path.is_file() or path.is_symlink()) and not any(tree in path.parents for tree in skipped)
    ]
    return sorted(files, key=lambda path: (path.suffix, path.name, path.lstat().st_size, path))


def pack(root: Path, archive: Path, effort: str) -> None:
    names = "\n".join(str(path.relative_to(root)) for path in members(root, archive.name))
    tar = ["tar", "-C", str(root), "--no-recursion", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]
    tar += ["--sparse", "--hole-detection=raw"]
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.open("wb") as out:
        first = subprocess.Popen([*tar, "-cf", "-", "-T", "/dev/stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        second = subprocess.Popen(["xz", f"-{effort}", "-T1"], stdin=first.stdout, stdout=out)
        assert first.stdin is not None
        first.stdin.write(names.encode())
        first.stdin.close()
        if first.wait() or second.wait():
            raise SystemExit(f"packing {archive} failed")
    print(f"{archive}: {archive.stat().st_size / 2**20:.1f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-extension", type=Path, help="the built transformer_engine_torch wheel")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--build", type=Path, default=Path("build"), help="wheels and trees")
    parser.add_argument("--effort", default="9e", help="of xz")
    parser.add_argument("--only", nargs="*", choices=ARCHIVES, help="pack these again, from the trees of the last time")
    args = parser.parse_args()
    root = args.build / "trees"
    if not args.only:
        shutil.rmtree(root, ignore_errors=True)
        for tree in TREES:
            install(tree, root / tree, args.build / "wheels")
        prune(root)
        shrink(root)
    if args.torch_extension:
        zipfile.ZipFile(args.torch_extension).extractall(root / "transformer-engine")
    for transfer, archives in TRANSFERS.items():
        for archive in archives:
            if not args.only or archive in args.only:
                pack(root, args.out / transfer / archive, args.effort)


if __name__ == "__main__":
    main()
