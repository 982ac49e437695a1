"""Counts of what an end-to-end check found."""

from __future__ import annotations


class Items:
    """Counts what passes."""

    def __init__(self) -> None:
        self.failed: list[str] = []
        self.passed = 0

    def check(self, name: str, found: object, expected: object) -> None:
        if found == expected:
            self.passed += 1
            print(f"PASS {name}", flush=True)
        else:
            self.failed.append(name)
            print(f"FAIL {name}\n  found    {found}\n  expected {expected}", flush=True)
