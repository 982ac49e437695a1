"""The items of llama_server.py with a real llama-server: server.py LLAMA_SERVER FRONT MODELS RUN [MODEL]...

A prompt that goes on from a state is computed in other batches than one without, and sums in another order may choose another
token of random weights. So it is compared with llama-server itself, which goes on from the same length in its own slot.
"""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from typing import Any

from check import corrupt, words
from items import Items

CHUNK, DOCUMENTS, QUESTIONS, PREDICT = 64, 4, 4, 12
WATCHDOG_S = 900


def documents() -> list[str]:
    return [f"{i} " + words(500 + i, 300 + 60 * i) for i in range(DOCUMENTS)]


def question(i: int) -> str:
    """No two begin alike, so that prompts have a document in common and no more."""
    return f"{i} " + words(600 + i, 20)


class Process:
    """A server from the line that says where it listens until the end of the block."""

    def __init__(self, command: list[str], line: str, log: pathlib.Path) -> None:
        self._log = open(log, "w+")
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self._watchdog = threading.Timer(WATCHDOG_S, self._process.kill)
        self._watchdog.start()
        self.url = ""
        assert self._process.stdout is not None
        for said in self._process.stdout:
            self._log.write(said)
            if found := re.search(line + r".*(http://[0-9.:]+)", said):
                self.url = found[1]
                break
        else:
            raise SystemExit(f"{' '.join(command)} ended before it listened: {log} has the reason")
        # Nothing else reads what it says, and a full pipe would stop it.
        self._reader = threading.Thread(target=lambda: self._log.writelines(self._process.stdout or []))
        self._reader.start()

    def ask(self, path: str, content: dict[str, Any]) -> tuple[bytes, int]:
        """The answer, and how many tokens of the prompt were restored."""
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=WATCHDOG_S) as answer:
            return answer.read(), int(answer.headers.get("X-Kvkeep-Restored-Tokens", "0"))

    def complete(self, prompt: str, predict: int) -> tuple[list[int], int, int]:
        """The answer's tokens, how many of the prompt the server did not compute, and how many were restored."""
        content = {"prompt": prompt, "n_predict": predict, "temperature": 0, "return_tokens": True, "ignore_eos": True}
        data, restored = self.ask("/completion", content)
        answer = json.loads(data)
        return answer["tokens"], answer["timings"]["cache_n"], restored

    def kill(self) -> list[int]:
        """Kills it as a lack of memory would. The processes that it had started."""
        pid = self._process.pid
        children = [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        self._process.kill()
        return children

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._watchdog.cancel()
        self._reader.join()
        self._log.close()


def until(what: str, come: Callable[[], bool]) -> None:
    end = time.monotonic() + WATCHDOG_S
    while not come():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.01)


def refusals(items: Items, front: str, program: str, run: pathlib.Path) -> None:
    cache = f"fs://{run}/none?capacity=1GiB"
    for name, url, options, status, said in [
        ("an option that the front sets", cache, ["--port", "1"], 2, "--port of llama-server is set by this program: leave it out"),
        ("a draft", cache, ["-md", "draft.gguf"], 2, "llama-server does not save a draft's context with a slot; use kvkeep-llama"),
        ("a store that does not open", "fs:///proc/none?capacity=1GiB", [], 1, "cannot open the cache: "),
        ("a model that is not there", cache, ["-m", "/none.gguf"], 1, "llama-server is not ready (status 1): its log above has the reason"),
    ]:
        command = [sys.executable, front, "--cache", url, "--port", "0", "--", program, *options]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=WATCHDOG_S)
        items.check(f"{name} is refused with the reason", (ended.returncode, said in ended.stderr), (status, True))


def main() -> int:
    program, front, models, run, *chosen = sys.argv[1:]
    items, store = Items(), pathlib.Path(run)
    refusals(items, front, program, store)
    for model in chosen or ("full", "window"):
        # All rows of a window are kept, so that a state that is longer than what is shared can be cut.
        command = [program, "-m", f"{models}/{model}.gguf", "-c", "8192", "-np", "1", "-t", "1", "--swa-full"]
        directory = store / f"slots-{model}"
        fronted = [sys.executable, front, "--cache", f"fs://{directory}?capacity=2GiB", "--chunk", str(CHUNK), "--port", "0"]
        slots = pathlib.Path(tempfile.mkdtemp(dir=store))
        fronted += ["--slots", str(slots), "--", *command]

        def start(name: str) -> Process:
            return Process(fronted, "^listening on", store / f"{model}-{name}.log")

        # What llama-server answers without a state, and from the state of the document.
        computed: list[list[int]] = []
        own: dict[tuple[int, int], list[int]] = {}
        lengths = []
        plain = [*command, "--cache-ram", "0", "--host", "127.0.0.1", "--port", "0"]
        with Process(plain, "listening on", store / f"{model}-plain.log") as server:
            computed = [server.complete(document + question(0), PREDICT)[0] for document in documents()]
            for i, document in enumerate(documents()):
                server.complete(document, 1)
                for j in range(QUESTIONS):
                    own[i, j], length, _ = server.complete(document + question(j), PREDICT)
                    lengths.append(length)
        items.check(f"{model}: an answer depends on the document", len(set(map(tuple, computed))), DOCUMENTS)
        pairs = [(i, j) for j in range(QUESTIONS) for i in range(DOCUMENTS)]
        expected_lengths = [lengths[i * QUESTIONS] for i, _ in pairs]

        def answers(server: Process) -> tuple[dict[tuple[int, int], list[int]], list[int], list[int]]:
            given = [server.complete(documents()[i] + question(j), PREDICT) for i, j in pairs]
            return dict(zip(pairs, (tokens for tokens, _, _ in given))), [kept for _, kept, _ in given], [count for _, _, count in given]

        with start("cold") as server:
            first = [server.complete(document, 1)[2] for document in documents()]
            items.check(f"{model}: nothing is restored of an empty cache", first, [0] * DOCUMENTS)
        with start("warm") as server:
            found, kept, restored = answers(server)
        items.check(f"{model}: after a restart {len(pairs)} prompts have the tokens of llama-server alone", found, own)
        items.check(f"{model}: each slot is restored up to the question", restored, expected_lengths)
        items.check(f"{model}: llama-server computes the question alone", kept, expected_lengths)

        damaged = corrupt(directory)
        with start("corrupt") as server:
            found, kept, fewer = answers(server)
        # The first question to each document: later ones go on from states of the one before.
        expected = [own[i, 0] if fewer[i] == lengths[i * QUESTIONS] else computed[i] for i in range(DOCUMENTS)]
        items.check(f"{model}: what was corrupt ({damaged} files) is not restored", sum(fewer[:DOCUMENTS]) < sum(restored[:DOCUMENTS]), True)
        items.check(f"{model}: it is computed, with the same tokens", [found[i, 0] for i in range(DOCUMENTS)], expected)

        with start("killed") as server:
            children = server.kill()
        for child in children:
            until(f"the end of process {child}", lambda: not pathlib.Path(f"/proc/{child}").exists())
        items.check(f"{model}: llama-server ends with a front that is killed", len(children), 1)
        with start("chat") as server:
            items.check(f"{model}: the next front removes its slots", len(list(slots.iterdir())), 1)
            chat = {"messages": [{"role": "user", "content": documents()[0]}], "max_tokens": 4, "temperature": 0, "stream": True}
            data, _ = server.ask("/v1/chat/completions", chat)
            items.check(f"{model}: a chat is streamed to its end", data.rstrip().endswith(b"data: [DONE]"), True)
        with start("chat-again") as server:
            restored_tokens = server.ask("/v1/chat/completions", chat)[1]
            items.check(f"{model}: a chat is restored after a restart", restored_tokens > 300, True)
    print(f"{items.passed} passed, {len(items.failed)} failed", flush=True)
    return len(items.failed)


if __name__ == "__main__":
    sys.exit(main() and 1)
