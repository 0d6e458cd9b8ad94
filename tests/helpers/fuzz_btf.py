"""Coverage-guided fuzzing of `fastmap.btf` and `fastmap.btf.elf`, by hand (`pip install atheris`).

    PYTHONPATH=src:tests/helpers:tests/btf python \\
        tests/helpers/fuzz_btf.py -max_total_time=600 -timeout=30 CORPUS_FOLDER

The corpus folder is filled with good BTF first. The first byte of an input says what the others
are: a blob, types and strings that get a header here, an ELF file.
"""

from __future__ import annotations

import contextlib
import io
import struct
import sys
from pathlib import Path

import atheris
import numpy as np

with atheris.instrument_imports(include=["fastmap.btf", "fastmap.btf.parse", "fastmap.btf.elf",
                                         "fastmap.btf.special", "fastmap.btf.encoder"]):
    from fastmap.btf import Btf, elf, encode

from clang_types import OBJECT
from test_btf import DTYPES
from test_btf_reading import exercise


def one(data: bytes) -> None:
    mode, rest = data[0] % 3 if data else 0, data[1:]
    if mode == 1 and len(rest) > 4:
        split = struct.unpack_from("=H", rest)[0] % len(rest) & ~3
        types, strings = rest[4 : 4 + split], b"\0" + rest[4 + split :] + b"\0"
        rest = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types),
                           len(strings)) + types + strings
    elif mode == 2:
        with contextlib.suppress(ValueError):
            rest = elf.section(io.BytesIO(rest), ".BTF") or b""
    exercise(rest)


def seed(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    blobs = [encode(None, np.dtype(spec), bpftool_safe=safe)[0]
             for spec in DTYPES[:-3] + DTYPES[-1:] for safe in (False, True)]
    blobs.append(elf.section(io.BytesIO(OBJECT), ".BTF") or b"")
    for number, blob in enumerate(blobs):
        Btf(blob)
        types = struct.unpack_from("=I", blob, 12)[0]
        (folder / f"raw{number}").write_bytes(b"\0" + blob)
        words = struct.pack("=HH", types, 0)
        (folder / f"types{number}").write_bytes(b"\1" + words + blob[24:])
    (folder / "elf").write_bytes(b"\2" + OBJECT)


if __name__ == "__main__":
    seed(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
