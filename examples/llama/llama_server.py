#!/usr/bin/env python3
"""llama-server over kvkeep, unpatched: a front that saves and restores its slots.

    llama_server.py --cache 'fs:///var/cache/kvkeep?capacity=50GiB' --port 8080 -- llama-server -m model.gguf -c 16384 -np 4

It starts llama-server with what follows `--`, on a port of its own, and serves its API. Before a completion, the slot is
restored (`POST /slots/ID?action=restore`) if kvkeep knows more of the prompt than any free slot holds. After it, the slot is
saved if it holds more than kvkeep knows. Everything else is passed on as it is.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import functools
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Optional

import kvkeep
from slot_store import SlotStore, common, say

COMPLETIONS = {"/completion", "/completions", "/v1/completions"}
CHATS = {"/chat/completions", "/v1/chat/completions"}
# Requests that hold other states than the tokens' own, or need several slots.
NOT_CACHED = ("lora", "id_slot", "n", "n_cmpl", "image_data")
# Options of llama-server that change no byte of a state, and take a value.
NO_MATTER = {"-t", "--threads", "-tb", "--threads-batch", "-np", "--parallel", "-c", "--ctx-size", "--api-key", "--cache-ram"}
RESTORED = "X-Kvkeep-Restored-Tokens"
START_S = 3600.0
LIBC = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Has the kernel end this process when the front dies, however it dies."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def slot_directory(parent: Optional[Path]) -> Path:
    """A directory that is locked for as long as this process lives. Removes those of processes that died."""
    directory = Path(tempfile.mkdtemp(prefix="kvkeep-slots-", dir=parent))
    fcntl.flock(os.open(directory, os.O_RDONLY), fcntl.LOCK_EX)
    for other in directory.parent.glob("kvkeep-slots-*"):
        try:
            descriptor = os.open(other, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(other, ignore_errors=True)
        except OSError:
            pass
        finally:
            os.close(descriptor)
    return directory if directory.exists() else slot_directory(parent)


class Server:
    """The llama-server that was started, and requests to it."""

    def __init__(self, command: Sequence[str], slots: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        own = ["--host", "127.0.0.1", "--port", str(self.port), "--slot-save-path", str(slots)]
        # Its own cache in memory would hold the same states once more.
        own += [] if "--cache-ram" in command else ["--cache-ram", "0"]
        self.process = subprocess.Popen([*command, *own], preexec_fn=end_with_parent)

    def request(self, method: str, path: str, body: Optional[bytes], headers: dict[str, str]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port)
        connection.request(method, path, body, {**headers, "Connection": "close"})
        return connection.getresponse()

    def ask(self, path: str, content: Optional[dict[str, Any]], headers: dict[str, str]) -> Any:
        """A JSON answer; OSError where the server refuses."""
        body = None if content is None else json.dumps(content).encode()
        headers = {**headers, "Content-Type": "application/json"}
        with self.request("GET" if body is None else "POST", path, body, headers) as answer:
            data = answer.read()
            if answer.status != 200:
                raise OSError(f"llama-server answers {path} with {answer.status}: {data[:200].decode(errors='replace')}")
        return json.loads(data)

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.ask("/health", None, {})
                return
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
        raise SystemExit(f"llama-server is not ready (status {self.process.poll()}): its log above has the reason")


class Slot:
    def __init__(self, id: int) -> None:
        self.id, self.busy, self.used = id, False, 0.0
        # At least these are in it.
        self.tokens: list[int] = []


class Slots:
    """Lends each slot to one request at a time."""

    def __init__(self, count: int) -> None:
        self._slots = [Slot(i) for i in range(count)]
        self._freed = threading.Condition()

    def take(self, tokens: Sequence[int]) -> Slot:
        """The free slot that holds most of a prompt, else the one unused for longest. Waits for one."""
        with self._freed:
            self._freed.wait_for(lambda: any(not slot.busy for slot in self._slots))
            free = (slot for slot in self._slots if not slot.busy)
            slot = max(free, key=lambda slot: (common(slot.tokens, tokens), -slot.used))
            slot.busy = True
            return slot

    def give_back(self, slot: Slot) -> None:
        with self._freed:
            slot.busy, slot.used = False, time.monotonic()
            self._freed.notify()


class Front:
    def __init__(self, server: Server, store: SlotStore, slots: Slots, directory: Path, chunk: int) -> None:
        self.server, self.store, self.slots = server, store, slots
        self._directory, self._chunk = directory, chunk

    def tokens(self, path: str, content: Any, headers: dict[str, str]) -> Optional[list[int]]:
        """A request's tokens; None where it is passed on as it is."""
        if not isinstance(content, dict) or content.get("cache_prompt") is False:
            return None
        if any(content.get(name) not in (None, 1, -1) for name in NOT_CACHED):
            return None
        if path in CHATS:
            contents = [message.get("content") for message in content.get("messages", []) if isinstance(message, dict)]
            if not all(text is None or isinstance(text, str) for text in contents):
                return None
            prompt = self.server.ask("/apply-template", content, headers)["prompt"]
        else:
            prompt = content.get("prompt")
        if isinstance(prompt, list) and all(isinstance(token, int) for token in prompt):
            return prompt
        if not isinstance(prompt, str):
            return None
        asked = {"content": prompt, "add_special": True, "parse_special": True}
        tokens: list[int] = self.server.ask("/tokenize", asked, headers)["tokens"]
        return tokens

    def restore(self, slot: Slot, tokens: list[int], headers: dict[str, str]) -> tuple[int, int]:
        """The tokens that were restored, and the chunks that kvkeep knows."""
        states = self.store.known(tokens)
        file = self._file(slot)
        restored = 0
        try:
            held = common(slot.tokens, tokens)
            length = self.store.load(states, tokens, held, file)
            if length:
                # Whatever comes of it, the slot does not hold what it held.
                slot.tokens = []
                self.server.ask(f"/slots/{slot.id}?action=restore", {"filename": file.name}, headers)
                slot.tokens, restored = tokens[:length], length
        except (OSError, http.client.HTTPException) as error:
            say(f"a slot was not restored, the prompt is computed: {error}")
        finally:
            file.unlink(missing_ok=True)
        return restored, len(states)

    def save(self, slot: Slot, known: int, about: int, headers: dict[str, str]) -> None:
        """Keeps a slot that holds about so many tokens, if that is a chunk more than is known."""
        if about // self._chunk <= known:
            return
        file = self._file(slot)
        try:
            self.server.ask(f"/slots/{slot.id}?action=save", {"filename": file.name}, headers)
            slot.tokens = self.store.store(file, known)
        except (OSError, ValueError, http.client.HTTPException, kvkeep.KvkeepError) as error:
            say(f"a slot was not saved: {error}")
        finally:
            file.unlink(missing_ok=True)

    def _file(self, slot: Slot) -> Path:
        return self._directory / f"slot-{slot.id}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    front: Front

    def serve(self) -> None:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            self.send_error(411, "a request needs a Content-Length")
            return
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
        path = self.path.partition("?")[0]
        if self.command == "POST" and path == "/lora-adapters":
            self.send_error(501, "adapters cannot change while states are kept: start again with --lora-scaled")
            return
        if self.command == "POST" and path in COMPLETIONS | CHATS and body:
            headers = {name: value for name in ("Authorization", "X-Api-Key") if (value := self.headers.get(name))}
            try:
                content = json.loads(body)
                tokens = self.front.tokens(path, content, headers)
            except (ValueError, KeyError, OSError, http.client.HTTPException):
                # llama-server says what is wrong with it.
                tokens = None
            if tokens:
                self._complete(content, tokens, headers)
                return
        self._pass_on(body, {})

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_HEAD = do_PATCH = serve

    def _complete(self, content: dict[str, Any], tokens: list[int], headers: dict[str, str]) -> None:
        front = self.front
        slot = front.slots.take(tokens)
        try:
            restored, known = front.restore(slot, tokens, headers)
            body = json.dumps({**content, "id_slot": slot.id, "cache_prompt": True}).encode()
            predicted = self._pass_on(body, {RESTORED: str(restored)})
            if predicted is not None:
                slot.tokens = tokens
                front.save(slot, known, len(tokens) + predicted, headers)
        finally:
            front.slots.give_back(slot)

    def _pass_on(self, body: Optional[bytes], more: dict[str, str]) -> Optional[int]:
        """About how many tokens came; None where the request failed."""
        dropped = {"host", "connection", "content-length", "transfer-encoding", "keep-alive", "date", "server"}
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        self.close_connection = True
        try:
            answer = self.front.server.request(self.command, self.path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.send_error(502, f"llama-server does not answer: {error}")
            return None
        with answer:
            self.send_response(answer.status)
            for name, value in [*answer.getheaders(), *more.items()]:
                if name.lower() not in dropped:
                    self.send_header(name, value)
            self.send_header("Connection", "close")
            self.end_headers()
            events, tail = 0, b""
            try:
                while part := answer.read1(1 << 16):
                    self.wfile.write(part)
                    self.wfile.flush()
                    events += part.count(b"data: ")
                    tail = (tail + part)[-(1 << 16) :]
            except (OSError, http.client.HTTPException) as error:
                say(f"a request ended early: {error}")
                return 0
        counted = re.findall(rb'"(?:tokens_predicted|completion_tokens)":\s*(\d+)', tail)
        return (int(counted[-1]) if counted else events) if answer.status == 200 else None

    def log_message(self, format: str, *arguments: Any) -> None:
        """llama-server logs requests."""


@functools.cache
def digest(path: Path) -> str:
    """Of a file's bytes, and of the files that a model is split into."""
    sha = hashlib.sha256()
    split = re.fullmatch(r"(.*)-\d{5}-of-(\d{5})\.gguf", path.name)
    parts = sorted(path.parent.glob(f"{split[1]}-*-of-{split[2]}.gguf")) if split else [path]
    for part in parts:
        with open(part, "rb") as file:
            while data := file.read(4 << 20):
                sha.update(data)
    return sha.hexdigest()


def identity(command: Sequence[str], model: Path) -> str:
    """What a state's bytes depend on: the model, and every option that is not known not to matter, files by their bytes."""
    parts, skip = [digest(model.resolve())], False
    for argument in command[1:]:
        if skip or argument in NO_MATTER:
            skip = not skip and argument in NO_MATTER
            continue
        file = Path(argument).resolve()
        parts.append(digest(file) if file.is_file() else argument)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="llama-server over kvkeep", usage="%(prog)s --cache URL [options] -- llama-server ...")
    parser.add_argument("--cache", required=True, help="a backend of kvkeep (fs:///directory?capacity=50GiB), or a daemon (unix:///run/kvkeep.sock)")
    parser.add_argument("--l1", type=int, default=1 << 30, help="bytes of memory of the cache, but for a daemon's (default 1 GiB)")
    parser.add_argument("--chunk", type=int, default=256, help="tokens by which beginnings are known (default 256)")
    parser.add_argument("--tenant", default="", help="keeps apart what tenants store")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080, help="0: any, which is printed")
    parser.add_argument("--slots", type=Path, default="/dev/shm" if os.path.isdir("/dev/shm") else None, help="where slots pass through (default /dev/shm)")
    parser.add_argument("command", nargs="+", help="llama-server and its options, after --")
    given = parser.parse_args()
    for option in ("--slot-save-path", "--port", "--host"):
        if option in given.command:
            parser.error(f"{option} of llama-server is set by this program: leave it out after --")
    for option in ("-md", "--model-draft", "--spec-draft-model"):
        if option in given.command:
            parser.error(f"{option}: llama-server does not save a draft's context with a slot; use kvkeep-llama, or no draft")
    return given


def stop(*_: object) -> None:
    """SIGTERM ends it as Ctrl-C does, so that what was stored is written."""
    raise KeyboardInterrupt


def main() -> int:
    given = arguments()
    signal.signal(signal.SIGTERM, stop)
    try:
        if given.cache.startswith("unix:"):
            cache = kvkeep.Cache(connect=given.cache)
        else:
            cache = kvkeep.Cache(given.l1, backends=[given.cache], store_wait=10)
    except kvkeep.KvkeepError as error:
        say(f"cannot open the cache: {error}")
        return 1
    directory = slot_directory(given.slots)
    server = Server(given.command, directory)
    try:
        server.wait_ready()
        key = given.command[given.command.index("--api-key") + 1] if "--api-key" in given.command else ""
        properties = server.ask("/props", None, {"Authorization": f"Bearer {key}"} if key else {})
        store = SlotStore(cache, identity(given.command, Path(properties["model_path"])), given.tenant, given.chunk)
        Handler.front = Front(server, store, Slots(properties["total_slots"]), directory, given.chunk)
        with ThreadingHTTPServer((given.host, given.port), Handler) as front:

            def end_with_server() -> None:
                server.process.wait()
                front.shutdown()

            threading.Thread(target=end_with_server, daemon=True).start()
            print(f"listening on http://{given.host}:{front.server_port}", flush=True)
            front.serve_forever()
        say(f"llama-server ended with status {server.process.wait()}")
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        server.process.terminate()
        server.process.wait()
        cache.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
