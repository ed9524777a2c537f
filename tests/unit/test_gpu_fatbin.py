"""benchmarks/gpu/stack/fatbin.py on a library of a few hundred bytes, laid out by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from benchmarks.gpu.stack import fatbin

PTX, CODE = 1, 2
BODY = 64  # bytes of each entry


def entry(kind: int, arch: int, body: bytes) -> bytes:
    header = struct.pack("<HHIQ", kind, 0x101, 64, BODY).ljust(0x1C, b"\xee") + struct.pack("<I", arch)
    return header.ljust(64, b"\xee") + body.ljust(BODY, b"\xff")


def fat(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def library(path: Path, content: bytes) -> Path:
    """An ELF file of two sections: the names, and ``.nv_fatbin`` with this content."""
    names = b"\0.shstrtab\0.nv_fatbin\0"
    start = 64 + len(names)
    table = start + len(content)
    elf = b"\x7fELF\x02\x01".ljust(0x28, b"\0") + struct.pack("<Q", table)
    elf = elf.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 2, 0)
    headers = struct.pack("<IIQQQQ", 1, 3, 0, 0, 64, len(names)).ljust(64, b"\0")
    headers += struct.pack("<IIQQQQ", 11, 1, 0, 0, start, len(content)).ljust(64, b"\0")
    path.write_bytes(elf + names + content + headers)
    return path


NEEDED = entry(CODE, 90, b"\0.text._Z7neededv\0")
SPARE = entry(CODE, 90, b"\0.text._Z5sparev\0")
OLD = entry(CODE, 80, b"\0.text._Z3oldv\0")
SOURCE = entry(PTX, 90, b".version 8.0")


def emptied(part: bytes) -> bytes:
    return part[:64] + bytes(BODY)


def test_other_architectures_and_sources_are_blanked_in_place(tmp_path: Path) -> None:
    padding = bytes(24)  # between the two binaries
    file = library(tmp_path / "lib.so", fat(OLD, NEEDED, SOURCE) + padding + fat(SPARE))
    assert fatbin.blank(file, arch=90) == (2 * BODY, 2 * BODY)
    expected = library(tmp_path / "expected.so", fat(emptied(OLD), NEEDED, emptied(SOURCE)) + padding + fat(SPARE))
    assert file.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(("unless", "kept"), [(None, 1), ("Z5spare", 2)])
def test_kernels_are_chosen_by_name(tmp_path: Path, unless: str | None, kept: int) -> None:
    file = library(tmp_path / "lib.so", fat(NEEDED, SPARE))
    assert fatbin.blank(file, arch=90, drop=("spare",), unless=unless) == (kept * BODY, (2 - kept) * BODY)
    assert file.read_bytes().count(b"needed") == 1
    assert file.read_bytes().count(b"spare") == kept - 1


def test_only_elf_files_are_touched(tmp_path: Path) -> None:
    script = tmp_path / "lib.so"
    script.write_bytes(b"#!/bin/sh" + bytes(64))
    with pytest.raises(ValueError, match="ELF"):
        fatbin.blank(script)
