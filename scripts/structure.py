#!/usr/bin/env python3
"""Prints what can be counted of the code's structure and of the documents' language.

Usage: structure.py [--circles] [--doubles] [--impls] [--docs]
Each option lists what its number counts. Imports are read from `use` lines and paths; test files are left out.
"""
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TYPE = re.compile(r"^(?:pub(?:\([^)]*\))? )?(?:struct|enum|trait) (\w+)", re.M)
IMPL = re.compile(r"^impl(?:<[^>]*>)? (\w+)(?:<[^{]*>)? (?:where[^{]*)?\{", re.M)
PATH = re.compile(r"(?<![\w:])(?:crate|super|self)(?:::\w+)+(?:::\{)?")


def is_test(path):
    return "tests" in path.parts or path.name == "tests.rs"


def module(path):
    parts = list(path.relative_to(ROOT / "src").with_suffix("").parts)
    return tuple(parts[:-1] if parts[-1] in ("mod", "lib", "main") else parts)


def code(text):
    """The text without comments, and without what is only compiled for tests."""
    lines = [line.split("//")[0] for line in text.splitlines()]
    for at, line in enumerate(lines):
        if line.strip() == "mod tests {":
            return "\n".join(lines[:at])
    return "\n".join(lines)


def use_paths(tree, prefix=()):
    """The full paths of a `use` tree."""
    tree = tree.strip()
    group = re.fullmatch(r"((?:\w+::)*)\{(.*)\}", tree, re.S)
    if not group:
        yield prefix + tuple(part for part in tree.split(" as ")[0].strip().split("::") if part)
        return
    prefix += tuple(part for part in group[1].split("::") if part)
    depth, item = 0, ""
    for char in group[2] + ",":
        depth += (char == "{") - (char == "}")
        if char == "," and depth == 0:
            if item.strip():
                yield from use_paths(item, prefix)
            item = ""
        else:
            item += char


def imports(path, files):
    """The files that `path` imports from."""
    here, text = module(path), code(path.read_text())
    children = {name[-1] for name in files if len(name) == len(here) + 1 and name[:-1] == here}
    used = [p for found in re.findall(r"^\s*(?:pub(?:\([^)]*\))? )?use ([^;]+);", text, re.M) for p in use_paths(found)]
    rest = re.sub(r"^\s*(?:pub(?:\([^)]*\))? )?use [^;]+;", "", text, flags=re.M)
    rest = re.sub(r"pub\(in [^)]*\)", "", rest)
    used += [tuple(found.split("::")) for found in re.findall(r"(?<![\w:])(?:\w+::)+\w+", rest)]
    targets = set()
    for parts in used:
        if parts[0] == "crate":
            full = parts[1:]
        elif parts[0] in ("super", "self"):
            base = list(here)
            while parts and parts[0] in ("super", "self"):
                base = base[:-1] if parts[0] == "super" else base
                parts = parts[1:]
            full = tuple(base) + parts
        elif parts[0] in children:
            full = here + parts
        else:
            continue
        while full and full not in files:
            full = full[:-1]
        if full != here and full in files:
            targets.add(files[full])
    return targets


def circles(graph):
    """Groups of files that import each other (strongly connected components, Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in graph[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            at = stack.index(node)
            group = stack[at:]
            del stack[at:]
            if len(group) > 1:
                found.append(sorted(group))

    sys.setrecursionlimit(10_000)
    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def sentences(text):
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = "\n".join(line for line in text.splitlines() if not line.startswith(("|", "#")))
    return [s for s in re.split(r"(?<=[.!?:])\s+|\n\n|\n- ", text) if len(s.split()) > 1]


def main():
    src = sorted((ROOT / "src").rglob("*.rs"))
    library = [p for p in src if "bin" not in p.relative_to(ROOT / "src").parts[:1] and not is_test(p)]
    files = {module(p): p.relative_to(ROOT / "src").as_posix() for p in library}
    # lib.rs only declares the modules.
    files.pop((), None)
    graph = {files[module(p)]: imports(p, files) for p in library if module(p) in files}
    groups = circles(graph)
    types, impls, short = defaultdict(list), defaultdict(set), []
    for path in (p for p in src if not is_test(p)):
        text, name = path.read_text(), path.relative_to(ROOT).as_posix()
        for found in TYPE.findall(text):
            types[found].append(name)
        for found in IMPL.findall(text):
            impls[found].add(name)
        lines = [line.strip() for line in text.splitlines()]
        around = zip([""] + lines, lines, lines[1:] + [""])
        alone = [b[4:] for a, b, c in around if b.startswith("/// ") and not a.startswith("///") and not c.startswith("///")]
        short += [f"{name}: {doc}" for doc in alone if len(doc.split()) < 4]
    doubles = {name: where for name, where in types.items() if len(where) > 1}
    spread = {name: where for name, where in impls.items() if len(where) > 3}
    architecture = sentences((ROOT / "ARCHITECTURE.md").read_text())
    words = sum(len(s.split()) for s in architecture) / len(architecture)
    rows = [
        ("files in src", len(src)),
        ("lines in src", sum(len(p.read_text().splitlines()) for p in src)),
        ("files in import circles", sum(map(len, groups))),
        ("import circles", len(groups)),
        ("type names that occur twice", len(doubles)),
        ("types implemented in more than three files", len(spread)),
        ("files with `impl L1` or of its state", len(impls["L1"] | impls["State"] | impls["L1State"])),
        ("doc comments of fewer than four words", len(short)),
        ("words in README.md", len((ROOT / "README.md").read_text().split())),
        ("words a sentence in ARCHITECTURE.md", f"{words:.1f}"),
    ]
    for name, value in rows:
        print(f"{name:45} {value:>8}")
    lists = {
        "--circles": ["  ".join(group) for group in groups],
        "--doubles": [f"{name}: {'  '.join(where)}" for name, where in sorted(doubles.items())],
        "--impls": [f"{name}: {'  '.join(sorted(where))}" for name, where in sorted(spread.items())],
        "--docs": short,
    }
    for option in sys.argv[1:]:
        print(f"\n{option[2:]}:")
        print("\n".join(lists[option]))


if __name__ == "__main__":
    main()
