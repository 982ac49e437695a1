"""The items of `make e2e-llama`: check.py KVKEEP_LLAMA KVKEEP MODELS REPORT RUN.

MODELS has full.gguf, window.gguf and draft.gguf. The table and the plot of times are written into REPORT. RUN is an empty directory
for sockets and stores. Ends with an error unless every item passes.
"""

import json
import os
import pathlib
import random
import statistics
import subprocess
import sys
import time
from typing import Any, Sequence

from items import Items
from plot import bars

Answer = dict[str, Any]

CHUNK = 64
PREDICT = 24
WORDS = "the a of and key value token cache prompt server model layer window state daemon page store load".split()


def words(seed: int, length: int) -> str:
    choose = random.Random(seed)
    out = ""
    while len(out) < length:
        out += choose.choice(WORDS) + " "
    return out[:length]


def prompts() -> list[str]:
    """50 prompts: five documents of about 500 bytes, ten questions to each."""
    documents = [words(100 + i, 400 + 60 * i) for i in range(5)]
    return [documents[i % 5] + words(200 + i, 20 + 7 * (i % 13)) for i in range(50)]


class Machine:
    def __init__(self, program: str, kvkeep: str, models: pathlib.Path, run: pathlib.Path) -> None:
        self.program, self.kvkeep, self.models, self.run = program, kvkeep, models, run

    def start(self, model: str, cache: str | None, texts: Sequence[str], *more: str) -> "subprocess.Popen[str]":
        count = len(list(self.run.glob("*.txt")))
        file = self.run / f"prompts-{count}.txt"
        file.write_text("\n".join(texts) + "\n")
        command = [self.program, "--model", str(self.models / f"{model}.gguf"), "--prompts", str(file), "--json"]
        command += ["--chunk", str(CHUNK), "--predict", str(PREDICT), "--threads", "1", "--l1", str(256 << 20), *more]
        if cache:
            command += ["--cache", cache]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finish(self, process: "subprocess.Popen[str]") -> tuple[list[Answer], str]:
        out, log = process.communicate(timeout=1800)
        if process.returncode != 0:
            raise SystemExit(f"kvkeep-llama ended with {process.returncode}:\n{log}")
        return [json.loads(line) for line in out.splitlines()], log

    def answers(self, model: str, cache: str | None, texts: Sequence[str], *more: str) -> list[Answer]:
        return self.finish(self.start(model, cache, texts, *more))[0]


def tokens(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer["tokens"] for answer in answers]


def lengths(answers: Sequence[Answer]) -> list[int]:
    return [answer["restored_tokens"] for answer in answers]


def restored(answers: Sequence[Answer]) -> int:
    return sum(lengths(answers))


def whole(answers: Sequence[Answer]) -> list[int]:
    """What is restored where everything is there: all chunks before the last token."""
    return [(answer["prompt_tokens"] - 1) // CHUNK * CHUNK for answer in answers]


def shared(texts: Sequence[str], answers: Sequence[Answer]) -> list[int]:
    """Tokens that each prompt has in common with one before it, in whole chunks, by hand (full attention only)."""
    out: list[int] = []
    for i, text in enumerate(texts):
        best = 0
        for earlier in texts[:i]:
            common = os.path.commonprefix([text, earlier])
            # The tokenizer puts a character of three bytes in place of a space, and a token before the first byte.
            best = max(best, 1 + len(common) + 2 * common.count(" "))
        out.append(min(best, answers[i]["prompt_tokens"] - 1) // CHUNK * CHUNK)
    return out


def corrupt(directory: pathlib.Path) -> int:
    """Flips a bit in the last byte of every fourth object."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.stat().st_size > 4096)
    for path in files[::4]:
        with open(path, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            last = file.read(1)[0]
            file.seek(-1, os.SEEK_END)
            file.write(bytes([last ^ 1]))
    return len(files[::4])


def model_items(machine: Machine, items: Items, model: str, texts: list[str], times: dict[str, list[float]]) -> None:
    directory = machine.run / f"store-{model}"
    url = f"fs://{directory}?capacity=2GiB"
    without = machine.answers(model, None, texts)
    items.check(f"{model}: {len(texts)} prompts are answered without a cache", sum(len(answer["tokens"]) > 0 for answer in without), len(texts))
    # Of no use if an answer did not depend on what is restored.
    far = [words(900 + i, 200) + text[200:] for i, text in enumerate(texts[:5])]
    changed = machine.answers(model, None, far)
    items.check(f"{model}: an answer depends on the beginning", [a == b for a, b in zip(tokens(changed), tokens(without))], [False] * 5)

    first = machine.answers(model, url, texts)
    items.check(f"{model}: same tokens with an empty cache", tokens(first), tokens(without))
    if model == "full":
        items.check(f"{model}: every shared prefix is found", lengths(first), shared(texts, first))
    else:
        items.check(f"{model}: shared prefixes are found", sum(length > 0 for length in lengths(first)) >= len(texts) - 10, True)
    again = machine.answers(model, url, texts)
    items.check(f"{model}: same tokens after a restart", tokens(again), tokens(without))
    items.check(f"{model}: all but the last chunk is restored after a restart", lengths(again), whole(again))
    times[f"{model}, no cache"] = [answer["first_token_ms"] for answer in without]
    times[f"{model}, from files"] = [answer["first_token_ms"] for answer in again]

    count = corrupt(directory)
    damaged = machine.answers(model, url, texts)
    items.check(f"{model}: same tokens with {count} corrupt files", tokens(damaged), tokens(without))
    items.check(f"{model}: what was corrupt is computed again", count > 0 and restored(damaged) < restored(again), True)
    print(f"{model}: {restored(first)} tokens restored while the cache filled, {restored(again)} after a restart, {restored(damaged)} with corrupt files")


def process_items(machine: Machine, items: Items, model: str, texts: list[str], without: list[Answer]) -> None:
    """Two at once over one directory, then one after the other over a daemon."""
    url = f"fs://{machine.run / 'store-shared'}?capacity=2GiB"
    processes = [machine.start(model, url, half) for half in (texts, texts[::-1])]
    ends = [tokens(machine.finish(process)[0]) for process in processes]
    items.check(f"{model}: two processes over one directory", ends, [tokens(without), tokens(without[::-1])])

    socket = machine.run / "s"
    with open(machine.run / "daemon.log", "w") as log:
        daemon = subprocess.Popen([machine.kvkeep, "serve", "--l1", "512MiB", "--socket", str(socket)], stdout=log, stderr=log)
    try:
        address = f"unix://{socket}?wait_ms=30000&patience_ms=60000"
        cold = machine.answers(model, address, texts)
        warm = machine.answers(model, address, texts)
        items.check(f"{model}: two processes over a daemon", [tokens(cold), tokens(warm)], [tokens(without)] * 2)
        items.check(f"{model}: the second restores what the first stored", lengths(warm), whole(warm))
        daemon.kill()
        daemon.wait()
        gone = machine.start(model, f"unix://{socket}", texts[:2])
        _, said = gone.communicate(timeout=600)
        items.check(f"{model}: without its daemon it ends and says why", (gone.returncode, "cannot open the cache" in said), (1, True))
    finally:
        daemon.kill()
        daemon.wait()


def draft_items(machine: Machine, items: Items, texts: list[str]) -> None:
    draft = ("--draft", str(machine.models / "draft.gguf"))
    url = f"fs://{machine.run / 'store-draft'}?capacity=2GiB"
    without = machine.answers("full", None, texts, *draft)
    machine.answers("full", url, texts, *draft)
    again = machine.answers("full", url, texts, *draft)
    items.check("draft: same tokens with the draft's context restored", tokens(again), tokens(without))
    items.check("draft: everything is restored", lengths(again), whole(again))


def main() -> int:
    program, kvkeep, models, report, run = sys.argv[1:]
    machine, items = Machine(program, kvkeep, pathlib.Path(models), pathlib.Path(run)), Items()
    texts = prompts()
    times: dict[str, list[float]] = {}
    begin = time.monotonic()
    for model in ("full", "window"):
        model_items(machine, items, model, texts, times)
        short = texts[:15]
        process_items(machine, items, model, short, machine.answers(model, None, short))
    draft_items(machine, items, texts[:15])

    rows = ["| milliseconds to the first token, 50 prompts | median | p90 |", "|---|---|---|"]
    for name, values in times.items():
        rows.append(f"| {name} | {statistics.median(values):.1f} | {statistics.quantiles(values, n=10)[-1]:.1f} |")
    table = "\n".join(rows) + "\n"
    print(table)
    target = pathlib.Path(report)
    (target / "first_token.md").write_text(table)
    medians = {name: statistics.median(values) for name, values in times.items()}
    (target / "first_token.svg").write_text(bars("Milliseconds to the first token (median of 50 prompts)", medians))
    print(f"{items.passed} passed, {len(items.failed)} failed, {time.monotonic() - begin:.0f} s")
    return len(items.failed)


if __name__ == "__main__":
    sys.exit(main() and 1)
