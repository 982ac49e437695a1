#!/usr/bin/env python3
"""Prefill and decode on two nodes that share only a store, behind a proxy that tells the decode side too early.

    prefill_decode.py fs:///tmp/objects            a directory that both nodes mount
    prefill_decode.py mooncake:127.0.0.1:50051     a Mooncake master

The decode side asks for the prompt's KV cache before the prefill side has written it. Its job asks the store again, in the
background, until the objects are there; meanwhile its scheduler goes on. A prompt that nobody prefills is a clean miss when
the time is up.
"""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import kvkeep

CHUNK_TOKENS, CHUNK_BYTES, CHUNKS = 256, 1 << 20, 16
PREFILL_SECONDS = 1.0
LOOKUP_TIMEOUT_MS = 30_000


def open_cache(store: str) -> kvkeep.Cache:
    cache = kvkeep.Cache(l1_bytes=64 << 20)
    kind, _, place = store.partition(":")
    if kind == "mooncake":
        from kvkeep.mooncake import MooncakeBackend

        cache.add_backend(MooncakeBackend(place, segment_bytes=256 << 20))
    else:
        cache.add_backend(store)
    return cache


def begin(cache: kvkeep.Cache, prompt: int) -> tuple[Any, kvkeep.Keys]:
    """A session of a prompt, and the keys of its chunks: the same on both nodes."""
    session = cache.space("llama-8b", layout="bf16 tp1", chunk_tokens=CHUNK_TOKENS).session(f"prompt {prompt}")
    session.append_tokens([prompt * 1000 + position for position in range(CHUNKS * CHUNK_TOKENS)])
    return session, session.keys(0, CHUNKS)


def kv_of(prompt: int, chunk: int) -> bytes:
    """Stands for the KV cache that the model computes."""
    return bytes([(prompt * 31 + chunk) % 251]) * CHUNK_BYTES


def prefill(cache: kvkeep.Cache, prompt: int) -> None:
    time.sleep(PREFILL_SECONDS)  # the forward pass
    session, keys = begin(cache, prompt)
    with session:
        for chunk, view in enumerate(session.reserve_write(keys, CHUNK_BYTES)):
            view[:] = kv_of(prompt, chunk)
        session.finish_write(keys)
    cache.flush()


def decode(cache: kvkeep.Cache, prompt: int, timeout_ms: int) -> str:
    session, keys = begin(cache, prompt)
    with session:
        began, steps = time.monotonic(), 0
        job = session.prefetch(keys, lookup_timeout=timeout_ms / 1000, lookup_interval=0.02, notify=kvkeep.Notify.POLL)
        asked = time.monotonic() - began
        while not job.done():
            steps += 1  # the scheduler serves other requests
            time.sleep(0.001)
        result = job.query()
        assert result is not None
        views = session.get_views(keys[: result.hit_chunks]) if result.hit_chunks else []
        right = all(view == kv_of(prompt, chunk) for chunk, view in enumerate(views))
        return (
            f"prompt {prompt}: {result.hit_chunks} of {CHUNKS} chunks after {time.monotonic() - began:.2f} s, "
            f"{steps} steps of the scheduler meanwhile, {asked * 1000:.1f} ms in the call, bytes {'right' if right else 'WRONG'}"
        )


def node(role: str, store: str) -> None:
    """One node: serves the proxy's lines, each a prompt and a timeout."""
    with open_cache(store) as cache:
        print("ready", flush=True)
        for line in sys.stdin:
            prompt, timeout_ms = map(int, line.split())
            if role == "prefill":
                prefill(cache, prompt)
            print(f"prefilled {prompt}" if role == "prefill" else decode(cache, prompt, timeout_ms), flush=True)


def start(role: str, store: str) -> subprocess.Popen[str]:
    command = [sys.executable, __file__, store, role]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    if not line:
        raise SystemExit(f"a node ended early with status {process.wait()}")
    return line


def tell(process: subprocess.Popen[str], prompt: int, timeout_ms: int = 0) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{prompt} {timeout_ms}\n")
    process.stdin.flush()


def proxy(store: str) -> int:
    # Another prompt each time: a store may still have those of an earlier run.
    prompt = time.time_ns() // 1_000_000 % 1_000_000
    prefiller, decoder = start("prefill", store), start("decode", store)
    said(prefiller), said(decoder)
    tell(decoder, prompt, LOOKUP_TIMEOUT_MS)  # too early
    tell(prefiller, prompt)
    hit = said(decoder)
    print(hit)
    print(said(prefiller))
    tell(decoder, prompt + 1, 500)
    miss = said(decoder)
    print(miss)
    for process in (prefiller, decoder):
        assert process.stdin is not None
        process.stdin.close()
        process.wait()
    good = f" {CHUNKS} of {CHUNKS} " in hit and "WRONG" not in hit and f" 0 of {CHUNKS} " in miss
    print("the decode side hit what was written after it had asked, and missed what was not" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    if len(sys.argv) == 3:
        node(sys.argv[2], sys.argv[1])
    elif len(sys.argv) == 2:
        sys.exit(proxy(sys.argv[1]))
    else:
        sys.exit(__doc__)
