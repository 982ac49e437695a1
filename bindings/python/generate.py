#!/usr/bin/env python3
"""Writes kvkeep/_ffi.py from include/kvkeep.h; with --check, fails where the two differ."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
HEADER = HERE.parents[1] / "include" / "kvkeep.h"
OUTPUT = HERE / "kvkeep" / "_ffi.py"

SCALARS = {
    "char": "c_char",
    "int": "c_int",
    "size_t": "c_size_t",
    **{f"{sign}int{bits}_t": f"c_{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}


class HeaderError(Exception):
    """The header says something that this parser does not know."""


class Header:
    """The declarations of one C header, in its order."""

    def __init__(self, text: str) -> None:
        self.defines: dict[str, str] = {}
        self.enums: dict[str, list[tuple[str, str]]] = {}
        self.structs: dict[str, list[tuple[str, str]]] = {}
        self.callbacks: dict[str, str] = {}
        self.functions: dict[str, tuple[str, list[str]]] = {}
        self.opaque: set[str] = set()
        for declaration in split(self.strip(text)):
            self.declare(declaration)

    def strip(self, text: str) -> str:
        """Takes comments and preprocessor lines out, and the defines in."""
        text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S).replace("\\\n", " ")
        text = re.sub(r"#ifdef __cplusplus.*?#endif", "", text, flags=re.S)
        for name, value in re.findall(r'^#define (\w+) +("[^"\n]*"|[-\w() <|+*]+?) *$', text, flags=re.M):
            self.defines[name] = value
        return re.sub(r"^#.*$|^KVKEEP_API\b", "", text, flags=re.M)

    def declare(self, text: str) -> None:
        if found := re.fullmatch(r"typedef struct (\w+) (\w+)", text):
            self.opaque.add(found[2])
        elif found := re.fullmatch(r"typedef enum (?:\w+ )?\{(.*)\} (\w+)", text):
            pairs = [item.split("=") for item in found[1].split(",") if item.strip()]
            self.enums[found[2]] = [(name.strip(), value.strip()) for name, value in pairs]
        elif found := re.fullmatch(r"typedef struct (?:\w+ )?\{(.*)\} (\w+)", text):
            self.structs[found[2]] = [self.variable(item) for item in split(found[1])]
        elif found := re.fullmatch(r"typedef (.+\(\*\w+\)\(.*\))", text):
            name, ctype = self.variable(found[1])
            self.callbacks[name] = ctype
        elif found := re.fullmatch(r"(.+?)(kvkeep_\w+)\((.*)\)", text):
            self.functions[found[2]] = (self.ctype(found[1]), self.parameters(found[3]))
        else:
            raise HeaderError(f"not understood: {text}")

    def variable(self, text: str) -> tuple[str, str]:
        """Name and ctypes type of a field, a parameter or a function pointer."""
        if found := re.fullmatch(r"(.+?)\(\*(\w+)\)\((.*)\)", text):
            return found[2], f"CFUNCTYPE({', '.join([self.ctype(found[1]), *self.parameters(found[3])])})"
        if found := re.fullmatch(r"(.*\W)(\w+)((?:\[\w+\])?)", text.strip()):
            ctype = self.ctype(found[1])
            return found[2], f"{ctype} * {found[3][1:-1]}" if found[3] else ctype
        raise HeaderError(f"not a variable: {text}")

    def parameters(self, text: str) -> list[str]:
        return [] if text.strip() in ("", "void") else [self.variable(item)[1] for item in text.split(",")]

    def ctype(self, text: str) -> str:
        words = re.findall(r"\w+|\*", text)
        base, stars = [w for w in words if w not in ("const", "struct", "*")], words.count("*")
        if len(base) != 1:
            raise HeaderError(f"not a type: {text}")
        name = base[0]
        # ctypes has types of its own for the pointers that need no element type.
        if stars and name in ("void", "char", *self.opaque):
            ctype, stars = "c_char_p" if name == "char" else "c_void_p", stars - 1
        elif name == "void":
            ctype = "None"
        elif name in self.enums:
            ctype = "c_int"
        elif name in SCALARS:
            ctype = SCALARS[name]
        elif name in self.structs or name in self.callbacks:
            ctype = name
        else:
            raise HeaderError(f"unknown type: {text}")
        return "POINTER(" * stars + ctype + ")" * stars


def split(text: str) -> list[str]:
    """The declarations in `text`: what stands before each semicolon that is in no braces."""
    parts, depth, start = [], 0, 0
    for position, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if char == ";" and depth == 0:
            parts.append(" ".join(text[start:position].split()))
            start = position + 1
    if text[start:].strip():
        raise HeaderError(f"text after the last declaration: {text[start:].strip()}")
    return parts


def annotation(ctype: str) -> str:
    # A field may be called bytes.
    if ctype == "c_char_p":
        return "Optional[builtins.bytes]"
    if " * " in ctype:
        return "builtins.bytes" if ctype.startswith("c_char *") else "Any"
    return "int" if ctype in SCALARS.values() else "Any"


def class_name(name: str) -> str:
    return "".join(word.capitalize() for word in name.split("_")[1:])


def render(header: Header) -> str:
    body = [f"{name} = {value}" for name, value in header.defines.items()]
    for name, members in header.enums.items():
        # The words that all members share, less the word that tells them apart.
        words = [member.split("_") for member, _ in members]
        common = 0
        while all(len(w) > common + 1 and w[common] == words[0][common] for w in words):
            common += 1
        body += ["", "", f"class {class_name(name)}(enum.IntEnum):"]
        body += [f"    {'_'.join(w[common:])} = {value}" for w, (_, value) in zip(words, members)]
    blocks = {name: [f"{name} = {ctype}"] for name, ctype in header.callbacks.items()}
    for name, fields in header.structs.items():
        blocks[name] = [f"class {name}(Structure):"]
        blocks[name] += [f"    {field}: {annotation(ctype)}" for field, ctype in fields]
        blocks[name] += ["    _fields_ = ["] + [f'        ("{field}", {ctype}),' for field, ctype in fields] + ["    ]"]
    for name in ordered(blocks):
        body += ["", "", *blocks[name]]
    body += ["", "", "FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {"]
    for name, (result, parameters) in header.functions.items():
        body += [f'    "{name}": (', f"        {result},", "        ("]
        body += [f"            {parameter}," for parameter in parameters] + ["        ),", "    ),"]
    used = sorted(set(re.findall(r"\b(?:c_\w+|CFUNCTYPE|POINTER|Structure)\b", "\n".join(body))))
    head = [
        '"""The C ABI as ctypes sees it. Generated from include/kvkeep.h by generate.py: do not edit."""',
        "",
        "from __future__ import annotations",
        "",
        "import builtins",
        "import enum",
        *["from ctypes import (", *[f"    {name}," for name in used], ")"],
        "from typing import Any, Optional",
        "",
    ]
    return "\n".join([*head, *body, "}", ""])


def ordered(blocks: dict[str, list[str]]) -> list[str]:
    """The names in `blocks`, each after those it mentions."""
    done: list[str] = []
    while len(done) < len(blocks):
        ready = [
            name
            for name, lines in blocks.items()
            if name not in done
            and not any(re.search(rf"\b{other}\b", "\n".join(lines)) for other in blocks if other not in (name, *done))
        ]
        if not ready:
            raise HeaderError("declarations that need each other")
        done += ready
    return done


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--check", action="store_true", help="write nothing; fail where _ffi.py is not up to date")
    check = arguments.parse_args().check
    fresh = render(Header(HEADER.read_text(encoding="utf-8")))
    if not check:
        OUTPUT.write_text(fresh, encoding="utf-8")
        return 0
    committed = OUTPUT.read_text(encoding="utf-8") if OUTPUT.exists() else ""
    sys.stdout.writelines(
        difflib.unified_diff(committed.splitlines(True), fresh.splitlines(True), "committed", "from the header")
    )
    return int(committed != fresh)


if __name__ == "__main__":
    sys.exit(main())
