"""Blanks the GPU code in a shared library that one architecture cannot run.

CUDA libraries carry their kernels in ELF sections as *fat binaries*: a header, then entries, each PTX or machine code
for one architecture. The unwanted entries are overwritten with zeros and stay where they are, so that every offset in
the library remains valid, and a compressor takes the zeros away: 1.1 GB of sglang-kernel become about 25 MB.

    python fatbin.py LIBRARY... [--arch 90] [--drop REGEX]... [--unless REGEX]

``--drop`` blanks entries of the wanted architecture too: those with a kernel whose (mangled) name matches, unless
another of its kernels matches ``--unless``.
"""

from __future__ import annotations

import argparse
import mmap
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FATBIN_MAGIC = 0xBA55ED50
MACHINE_CODE = 2  # the kind of an entry: 1 is PTX
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
KERNEL = re.compile(rb"\.text\.(_Z\w+)")


@dataclass(frozen=True)
class Entry:
    """One piece of GPU code; ``start`` and ``end`` bound its body in the file, in bytes, without its header."""

    kind: int
    arch: int
    start: int
    end: int


def sections(image: mmap.mmap) -> Iterator[tuple[int, int]]:
    """The bounds of the sections with GPU code, read from the section headers of a 64-bit little-endian ELF file."""
    if image[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", image, 0x28)
    size, count, names = struct.unpack_from("<HHH", image, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", image, table + i * size) for i in range(count)]
    strings = headers[names][4]
    for name, _, _, _, offset, length in headers:
        start = strings + name
        if image[start : image.find(b"\0", start)].decode() in SECTIONS:
            yield offset, offset + length


def entries(image: mmap.mmap) -> Iterator[Entry]:
    for at, end in sections(image):
        while at + 16 <= end:
            magic, _, header, length = struct.unpack_from("<IHHQ", image, at)
            if magic != FATBIN_MAGIC:  # padding between two fat binaries
                at += 8
                continue
            body, stop = at + header, at + header + length
            while body + 64 <= stop:
                kind, _, own, size = struct.unpack_from("<HHIQ", image, body)
                (arch,) = struct.unpack_from("<I", image, body + 0x1C)
                yield Entry(kind, arch, body + own, body + own + size)
                body += own + size
            at = stop


def blank(library: Path, arch: int = 90, drop: tuple[str, ...] = (), unless: str | None = None) -> tuple[int, int]:
    """Blanks the library in place; returns the bytes of GPU code kept and blanked."""
    kept = blanked = 0
    with library.open("r+b") as file, mmap.mmap(file.fileno(), 0) as image:
        for entry in list(entries(image)):
            wanted = entry.kind == MACHINE_CODE and entry.arch == arch
            if wanted and drop:
                kernels = b" ".join(set(KERNEL.findall(image[entry.start : entry.end])))
                matches = any(re.search(pattern.encode(), kernels) for pattern in drop)
                wanted = not matches or bool(unless and re.search(unless.encode(), kernels))
            if wanted:
                kept += entry.end - entry.start
            else:
                image[entry.start : entry.end] = bytes(entry.end - entry.start)
                blanked += entry.end - entry.start
    return kept, blanked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("libraries", nargs="+", type=Path)
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--drop", action="append", default=[], metavar="REGEX")
    parser.add_argument("--unless", metavar="REGEX")
    args = parser.parse_args()
    for library in args.libraries:
        kept, blanked = blank(library, args.arch, tuple(args.drop), args.unless)
        print(f"{library}: {kept / 1e6:.1f} MB of GPU code kept, {blanked / 1e6:.1f} MB blanked")


if __name__ == "__main__":
    main()
