#!/usr/bin/env python3
"""Builds the wheel, which carries libkvkeep.so; also the package's PEP 517 backend. Needs nothing but Python.

KVKEEP_LIBRARY names the library to pack. Without it, cargo builds it.
"""

from __future__ import annotations

import base64
import hashlib
import os
import platform
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# The same bytes give the same wheel.
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)


def library() -> Path:
    """The shared library to pack."""
    if named := os.environ.get("KVKEEP_LIBRARY"):
        return Path(named)
    subprocess.run(["cargo", "build", "--release", "--lib"], cwd=ROOT, check=True)
    return ROOT / os.environ.get("CARGO_TARGET_DIR", "target") / "release" / "libkvkeep.so"


def version() -> str:
    found = re.search(r'^KVKEEP_VERSION = "(.+)"$', (HERE / "kvkeep" / "_ffi.py").read_text(), re.M)
    assert found, "generate.py writes the version"
    return found[1]


def platform_tag(binary: bytes) -> str:
    """The oldest C library that has every symbol version the binary asks for."""
    needed = [int(minor) for minor in re.findall(rb"\0GLIBC_2\.(\d+)", binary)]
    if needed and sys.platform == "linux":
        return f"manylinux_2_{max(needed)}_{platform.machine()}"
    return re.sub(r"[-.]", "_", sysconfig.get_platform())


def contents(tag: str, binary: bytes) -> Iterator[tuple[str, bytes]]:
    for path in sorted((HERE / "kvkeep").rglob("*")):
        if path.suffix == ".py" or path.name == "py.typed":
            yield path.relative_to(HERE).as_posix(), path.read_bytes()
    yield "kvkeep/libkvkeep.so", binary
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
    binary = library().read_bytes()
    tag = f"py3-none-{platform_tag(binary)}"
    name = f"kvkeep-{version()}-{tag}.whl"
    record = ""
    with zipfile.ZipFile(Path(wheel_directory) / name, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, data in contents(tag, binary):
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
            add(wheel, path, data)
        path = f"kvkeep-{version()}.dist-info/RECORD"
        add(wheel, path, f"{record}{path},,\n".encode())
    return name


def add(wheel: zipfile.ZipFile, path: str, data: bytes) -> None:
    entry = zipfile.ZipInfo(path, ZIP_EPOCH)
    entry.external_attr = (0o755 if path.endswith(".so") else 0o644) << 16
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
