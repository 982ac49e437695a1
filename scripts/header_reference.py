#!/usr/bin/env python3
"""header_reference.py HEADER: the C header as Markdown, a chapter for each of its parts and an entry for each name."""

import re
import sys


def declarations(lines):
    """Yields the rules (`---- Cache ----`) and the declarations of a header, each with the comment above it."""
    comment, lines, opens_part = [], iter(lines), False
    for line in lines:
        if line.startswith("///"):
            text = line[3:].strip()
            rule = re.fullmatch(r"---- (.+) ----", text)
            if rule:
                yield "part", rule[1], []
                comment, opens_part = [], True
            else:
                comment.append(text)
            continue
        other = line.startswith("#") and not line.startswith("#define")
        if not line.strip() or other or line.startswith(("//", "}", " ", "/*", "*")):
            if comment and not line.strip():
                yield "text", "", comment
                comment = []
            continue
        body = [line]
        if line.startswith("typedef") and line.endswith("{"):
            body += until(lines, "}")
        elif line.startswith("#define"):
            while body[-1].endswith("\\"):
                body.append(next(lines))
        elif not line.endswith(";") and not line.startswith(("extern", "enum", "struct")):
            body += until(lines, ";", anywhere=True)
        if opens_part:
            about, comment = split(comment)
            yield "text", "", about
        yield "code", name(body), comment, body
        comment, opens_part = [], False


def split(comment):
    """What stands above the first declaration of a part: about the part, and about the declaration, which begins with a verb."""
    verb = re.compile(r"(Opens|Begins|Reserves|Submits|Registers|Fills|Back|Version of|Most) ")
    starts = [i for i, line in enumerate(comment) if verb.match(line) and (i == 0 or not comment[i - 1])]
    at = starts[0] if starts else len(comment)
    return comment[:at], comment[at:]


def until(lines, end, anywhere=False):
    taken = []
    for line in lines:
        taken.append(line)
        if line.rstrip().endswith(end) if anywhere else line.startswith(end):
            break
    return taken


def name(body):
    text = " ".join(body)
    if text.startswith("#define"):
        return re.match(r"#define (\w+)", text)[1]
    if text.startswith("typedef"):
        found = re.search(r"\(\*(\w+)\)|(\w+);?\s*$", text)
        return found[1] or found[2]
    found = re.search(r"(\w+)\(", text)
    return found[1] if found else ""


def paragraphs(comment):
    """The comment as Markdown: sentences on errors and per-key statuses begin a paragraph."""
    text = "\n".join(comment).strip()
    text = re.sub(r"\n(?=(?:Errors|Per key|Per block|Since):)", "\n\n", text)
    # What is no code in the header must not be taken for a tag.
    return text.replace("<", "&lt;")


def main():
    text = open(sys.argv[1], encoding="utf-8").read()
    conventions = re.search(r"/\*\n(.*?)\*/", text, re.S)[1].replace("<", "&lt;")
    lines = [line.strip().removeprefix("*").removeprefix(" ").rstrip() for line in conventions.splitlines()]
    # The nouns: an indented word, then its meaning; what goes on stands below the meaning.
    lines = [re.sub(r"^  (\w+) {2,}", r"- **\1**: ", line) for line in lines]
    print("# The header\n\nGenerated from `include/kvkeep.h`, which is the specification.\n")
    print("\n".join(lines))
    printed = set()
    for kind, title, comment, *body in declarations(text[text.index("#define") :].splitlines()):
        if kind == "part":
            print(f"\n## {title}\n")
        elif kind == "text":
            print(paragraphs(comment) + "\n")
        elif title and (comment or title.startswith("kvkeep_")):
            print(f"\n### `{title}`\n\n{paragraphs(comment)}\n\n```c")
            print("\n".join(line.rstrip() for line in body[0]))
            print("```")
            printed.add(title)
    declared = set(re.findall(r"^(?:\w+ )*\*?(kvkeep_\w+)\(", text, re.M))
    if declared - printed:
        sys.exit(f"{sys.argv[1]}: these functions were not understood: {sorted(declared - printed)}")


main()
