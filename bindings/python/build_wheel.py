#!/usr/bin/env python3
"""Builds the wheel, which carries libkvkeep.so, the kvkeep command and kvkeep.h; also the package's PEP 517 backend. Needs nothing
but Python.

KVKEEP_LIBRARY names the library to pack, and KVKEEP_COMMAND the command where it is not beside the library. Without the first, cargo
builds both. A wheel runs where the C library is as new as the one that they were linked with: `make wheel` links with an old one.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The same bytes give the same wheel.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
# As an ELF file's e_machine says, and as wheels call it.
MACHINES = {62: "x86_64", 183: "aarch64"}


def programs() -> tuple[Path, Path]:
    """The shared library and the command to pack."""
    if named := os.environ.get("KVKEEP_LIBRARY"):
        library = Path(named).resolve()
    else:
        subprocess.run(["cargo", "build", "--release", "--locked", "--lib", "--bins"], cwd=ROOT, check=True)
        library = ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "libkvkeep.so"
    # Cargo puts the command beside the library, an installation into bin.
    places = [library.parent / "kvkeep", library.parent.parent / "bin" / "kvkeep"]
    if named := os.environ.get("KVKEEP_COMMAND"):
        places = [Path(named)]
    for command in places:
        if command.is_file():
            return library, command
    raise SystemExit(f"the kvkeep command is not at {' or '.join(map(str, places))}: set KVKEEP_COMMAND to its path")


def stripped(program: Path) -> bytes:
    """The bytes of a program without its symbols, which are nine tenths of it, where this machine has a `strip` that knows its kind."""
    strip = shutil.which("strip")
    with tempfile.TemporaryDirectory() as place:
        smaller = Path(place) / program.name
        if strip and subprocess.run([strip, "-o", smaller, program], stderr=subprocess.DEVNULL).returncode == 0:
            return smaller.read_bytes()
    return program.read_bytes()


def version() -> str:
    found = re.search(r'^KVKEEP_VERSION = "(.+)"$', (HERE / "kvkeep" / "_ffi.py").read_text(), re.M)
    assert found, "generate.py writes the version"
    return found[1]


def platform_tag(*binaries: bytes) -> str:
    """The machine that the binaries are for, and the oldest C library that has every symbol version they ask for."""
    needed = [int(minor) for binary in binaries for minor in re.findall(rb"\0GLIBC_2\.(\d+)", binary)]
    machines = {MACHINES.get(struct.unpack_from("<H", binary, 18)[0]) for binary in binaries}
    if len(machines) != 1:
        raise SystemExit("the library and the command are for different machines: build them together")
    (machine,) = machines
    if needed and machine and sys.platform == "linux":
        return f"manylinux_2_{max(needed)}_{machine}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def contents(tag: str, library: bytes, command: bytes) -> Iterator[tuple[str, bytes]]:
    for path in sorted((HERE / "kvkeep").rglob("*")):
        if path.suffix == ".py" or path.name == "py.typed":
            yield path.relative_to(HERE).as_posix(), path.read_bytes()
    yield "kvkeep/include/kvkeep.h", (ROOT / "include" / "kvkeep.h").read_bytes()
    yield "kvkeep/libkvkeep.so", library
    yield f"kvkeep-{version()}.data/scripts/kvkeep", command
    for name, data in metadata(tag).items():
        yield f"kvkeep-{version()}.dist-info/{name}", data
    yield f"kvkeep-{version()}.dist-info/LICENSE", (ROOT / "LICENSE").read_bytes()


def metadata(tag: str) -> dict[str, bytes]:
    about = [
        "Metadata-Version: 2.1",
        "Name: kvkeep",
        f"Version: {version()}",
        "Summary: A tiered store for the KV cache of language-model requests",
        "License: Apache-2.0",
        "Requires-Python: >=3.9",
        "Description-Content-Type: text/markdown",
        "",
        (HERE / "README.md").read_text(encoding="utf-8"),
    ]
    wheel = ["Wheel-Version: 1.0", "Generator: kvkeep", "Root-Is-Purelib: false", f"Tag: {tag}", ""]
    return {"METADATA": "\n".join(about).encode(), "WHEEL": "\n".join(wheel).encode()}


def build_wheel(
    wheel_directory: str,
    config_settings: Optional[dict[str, Any]] = None,
    metadata_directory: Optional[str] = None,
) -> str:
    """PEP 517: writes the wheel and returns its name."""
    library, command = map(stripped, programs())
    tag = f"py3-none-{platform_tag(library, command)}"
    name = f"kvkeep-{version()}-{tag}.whl"
    record = ""
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in contents(tag, library, command):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
            add(wheel, path, data)
        path = f"kvkeep-{version()}.dist-info/RECORD"
        add(wheel, path, f"{record}{path},,\n".encode())
    return name


def add(wheel: zipfile.ZipFile, path: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(path, ZIP_EPOCH)
    entry.external_attr = (0o100755 if path.endswith(".so") or "/scripts/" in path else 0o100644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    wheel.writestr(entry, data)


class UnsupportedOperation(Exception):
    """PEP 517's word for: not from this backend."""


def build_sdist(sdist_directory: str, config_settings: Optional[dict[str, Any]] = None) -> str:
    raise UnsupportedOperation("the library's source is the repository; build a wheel from it")


if __name__ == "__main__":
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "wheel")
    directory.mkdir(parents=True, exist_ok=True)
    print(directory / build_wheel(str(directory)))
