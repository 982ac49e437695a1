"""python3 -m kvkeep: the kvkeep command of this environment, and a daemon with backends that are written in Python.

    python3 -m kvkeep serve --l1 8GiB --socket /run/kvkeep.sock --backend my_module:MyStore
    python3 -m kvkeep stat|top|explain|...

`serve` runs here. Engines connect to it as to `kvkeep serve` (connect = "unix:///run/kvkeep.sock"). SIGTERM or SIGINT writes out
what was accepted, and ends. All else is run by the command, which the wheel has brought along.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shutil
import signal
import sys
import sysconfig
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union
from urllib.parse import parse_qsl, quote, urlencode

from . import _ffi
from ._library import lib
from .backend import Backend
from .cache import Cache
from .errors import KvkeepError

UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def size(text: str) -> tuple[int, int]:
    """Bytes, or percents of the memory, and the flag that says which."""
    if found := re.fullmatch(r"(\d+)%", text):
        return int(found[1]), _ffi.KVKEEP_FLAG_L1_PERCENT
    if found := re.fullmatch(r"(\d+) ?([KMGT]?)(?:i?B)?", text, re.IGNORECASE):
        return int(found[1]) << UNITS[found[2].upper()], 0
    raise argparse.ArgumentTypeError(f"{text!r} is no size; write 8GiB or 70%%")


def backend(text: str) -> Backend:
    """The store that module:Class?name=value names."""
    place, _, query = text.partition("?")
    module, _, name = place.partition(":")
    if not module or not name:
        raise argparse.ArgumentTypeError(f"{text!r} names no class; write module:Class or module:Class?name=value")
    # As python3 -m does for its own program.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        kind: Any = getattr(importlib.import_module(module), name)
        store = kind(**dict(parse_qsl(query, keep_blank_values=True)))
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {type(error).__name__}: {error}") from None
    if not isinstance(store, Backend):
        raise argparse.ArgumentTypeError(f"{text!r} is no kvkeep.Backend; derive it from that class")
    return store


def command() -> str:
    """The kvkeep command: the one that is named, else that of this environment, else that of the build tree, else any."""
    if named := os.environ.get("KVKEEP_COMMAND"):
        return named
    library = Path(lib._name)
    # One that the system found has no path, and the working directory is no place to run programs from.
    places = [library.parent, library.parent.parent / "bin"] if library.is_absolute() else []
    places.insert(0, Path(sysconfig.get_path("scripts")))
    for place in places:
        if os.access(place / "kvkeep", os.X_OK) and (place / "kvkeep").is_file():
            return str(place / "kvkeep")
    if found := shutil.which("kvkeep"):
        return found
    raise SystemExit(
        f"the kvkeep command is not in {places[0]}: install the wheel, or set KVKEEP_COMMAND to its path "
        "(`python3 -m kvkeep serve` needs none)"
    )


def parser() -> argparse.ArgumentParser:
    arguments = argparse.ArgumentParser(
        prog="python3 -m kvkeep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    serve = arguments.add_subparsers(dest="command", required=True).add_parser(
        "serve",
        help="serve one cache to many processes",
        epilog="Example: python3 -m kvkeep serve --l1 8GiB --socket /run/kvkeep.sock "
        "--backend 'kvkeep.mooncake:MooncakeBackend?master=10.0.0.1:50051'",
    )
    serve.add_argument("--l1", required=True, type=size, metavar="SIZE", help="size of L1, like 8GiB or 70%%")
    serve.add_argument("--socket", required=True, metavar="PATH", help="the Unix socket that engines connect to")
    serve.add_argument("--socket-mode", metavar="OCTAL", help="mode of the socket (default: 0600)")
    serve.add_argument("--http", metavar="ADDRESS:PORT", help="where to answer HTTP; not given: nowhere")
    backends: dict[str, Any] = {"action": "append", "default": [], "dest": "backends"}
    serve.add_argument("--l2", metavar="URL", help="a backend by its URL; give it again for more, in their order", **backends)
    serve.add_argument(
        "--backend", type=backend, metavar="MODULE:CLASS", help="a backend in Python, with ?name=value for its arguments", **backends
    )
    serve.add_argument("--backend-timeout-ms", type=int, default=0, metavar="MS", help="deadline of one request (default: 30000)")
    serve.add_argument("--log", choices=["error", "warn", "info"], default="info", help="how much to log (default: info)")
    return arguments


def log(level: _ffi.LogLevel, line: str) -> None:
    print(f"{level.name.lower():<5} {line}", file=sys.stderr, flush=True)


def serve(options: argparse.Namespace) -> int:
    parameters = {"mode": options.socket_mode, "http": options.http}
    query = urlencode({name: value for name, value in parameters.items() if value is not None})
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    l1_bytes, flags = options.l1
    backends: Sequence[Union[str, Backend]] = options.backends
    cache: Optional[Cache] = None
    try:
        cache = Cache(
            l1_bytes,
            flags=flags,
            listen=f"unix://{quote(os.path.abspath(options.socket))}{'?' if query else ''}{query}",
            backend_timeout=options.backend_timeout_ms / 1000,
            log=log,
            log_level=_ffi.LogLevel[options.log.upper()],
        )
        for place in backends:
            cache.add_backend(place)
        cache.serve_clients()
    except Exception as error:
        print(f"kvkeep: {error}", file=sys.stderr)
        if cache is not None:
            cache.close()
        return 2
    ended.wait()
    try:
        cache.flush()
    except KvkeepError as error:
        log(_ffi.LogLevel.ERROR, f"not everything was written: {error}")
        return 1
    finally:
        cache.close()
    return 0


def main(arguments: list[str]) -> int:
    if arguments[:1] in ([], ["serve"], ["-h"], ["--help"]):
        return serve(parser().parse_args(arguments))
    program = command()
    try:
        os.execv(program, [program, *arguments])
    except OSError as error:
        raise SystemExit(f"{program} cannot be run: {error.strerror}; set KVKEEP_COMMAND to the path of the command") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
