"""llama-server's slot files in kvkeep, found by the tokens they begin with.

A state is kept whole, in pieces of 4 MiB. Each chunk of its tokens has a pointer to it, so that a prompt finds the state that
begins like it for longest, whatever comes after. The first state of a beginning stays the one that is pointed to.
"""

from __future__ import annotations

import array
import hashlib
import os
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import kvkeep

PIECE_BYTES = 4 << 20
# So many are loaded or written at once: the memory that one request takes of L1.
PIECES_AT_ONCE = 8
WAIT_S = 60.0
MAGIC, PACKED, PACKED_VERSION = 0x67677371, -1, 1
# A state's name and its bytes.
POINTER = struct.Struct("<32sQ")


class State(NamedTuple):
    name: bytes
    size: int

    def pieces(self) -> list[kvkeep.Key]:
        count = -(-self.size // PIECE_BYTES)
        return [kvkeep.Key(hashlib.sha256(self.name + i.to_bytes(4, "little")).digest(), group=1) for i in range(count)]


def say(text: str) -> None:
    print(f"kvkeep: {text}", file=sys.stderr, flush=True)


def common(some: Sequence[int], others: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    length = min(len(some), len(others))
    return next((i for i in range(length) if some[i] != others[i]), length)


def tokens_of(path: Path) -> list[int]:
    """The tokens that a slot file is the state of; ValueError where it is no such file, or has images or sound."""
    with open(path, "rb") as file:
        head = file.read(12)
        if len(head) != 12:
            raise ValueError("it is no slot file")
        magic, _, count = struct.unpack("<III", head)
        data = file.read(4 * count)
    if magic != MAGIC or len(data) != 4 * count:
        raise ValueError("it is no slot file")
    packed = array.array("i", data).tolist()
    if not packed or packed[0] != PACKED:
        return packed
    # A mark, a version, the tokens, and how many pieces of media are among them.
    if packed[1] != PACKED_VERSION or packed[3 + packed[2]] != 0:
        raise ValueError("its tokens are written in a way that is not known here, or have media among them")
    return packed[3 : 3 + packed[2]]


class SlotStore:
    """Any thread may use it. A failure of the cache is a line of the log and a miss."""

    def __init__(self, cache: kvkeep.Cache, identity: str, tenant: str, chunk: int) -> None:
        self._cache = cache
        self._space = cache.space(identity, layout="llama-server's slots", tenant=tenant, chunk_tokens=chunk)
        self._chunk = chunk

    def known(self, tokens: Sequence[int]) -> list[State]:
        """The state that is pointed to at each chunk that is known of a prompt."""
        states: list[State] = []
        try:
            with self._space.session() as session:
                chunks = session.append_tokens(tokens)
                if chunks:
                    keys = session.keys(0, chunks)
                    hits = session.prefetch(keys, extra_count=0).wait(WAIT_S).hit_chunks
                    if hits:
                        views = session.get_views(keys[:hits])
                        states = [State(*POINTER.unpack(view)) for view in views if view is not None]
        except (kvkeep.KvkeepError, struct.error) as error:
            say(f"the lookup failed, the prompt is computed: {error}")
        return states

    def load(self, states: list[State], tokens: Sequence[int], least: int, path: Path) -> int:
        """Writes into a file the state that is known for longest, if it saves more than `least` tokens, and returns how many.

        States that cannot be loaded, or are of other tokens, are deleted and the next shorter one is tried. 0: none.
        """
        chunks = len(states)
        while chunks and chunks * self._chunk > least:
            state = states[chunks - 1]
            try:
                self._read(state, path)
                length = common(tokens_of(path), tokens)
                if length >= chunks * self._chunk:
                    return length
                say("a stored state is of other tokens and is deleted")
            except (kvkeep.KvkeepError, OSError, ValueError) as error:
                say(f"a stored state cannot be loaded and is deleted: {error}")
            self._forget(states, state, tokens)
            while chunks and states[chunks - 1] == state:
                chunks -= 1
        return 0

    def store(self, path: Path, known: int) -> list[int]:
        """Keeps a slot file, pointed to from every chunk after the first `known`; returns its tokens."""
        tokens = tokens_of(path)
        # A name of its own: two computations of the same tokens may differ in their last bits and are never mixed.
        state = State(os.urandom(32), path.stat().st_size)
        keys = state.pieces()
        with self._space.session() as session, open(path, "rb") as file:
            chunks = session.append_tokens(tokens)
            if chunks <= known:
                return tokens
            for first in range(0, len(keys), PIECES_AT_ONCE):
                batch = keys[first : first + PIECES_AT_ONCE]
                left = state.size - first * PIECE_BYTES
                sizes = [min(PIECE_BYTES, left - i * PIECE_BYTES) for i in range(len(batch))]
                self._write(session, batch, sizes, [file.read(size) for size in sizes])
            pointers = session.keys(known, chunks - known)
            data = POINTER.pack(*state)
            self._write(session, list(pointers), [len(data)] * len(pointers), [data] * len(pointers), may_exist=True)
        return tokens

    def _write(
        self, session: kvkeep.Session, keys: list[kvkeep.Key], sizes: list[int], data: list[bytes], may_exist: bool = False
    ) -> None:
        views = session.reserve_write(keys, sizes)
        written = []
        for i, key in enumerate(keys):
            view = views[i]
            if view is not None:
                view[:] = data[i]
                written.append(key)
            elif not (may_exist and views.status(i) == kvkeep.Status.ERR_EXISTS):
                session.abort_write(written) if written else None
                raise OSError(f"the cache takes no more: {views.status(i).name}")
        if written:
            session.finish_write(written)

    def _read(self, state: State, path: Path) -> None:
        keys = state.pieces()
        with open(path, "wb") as file:
            for first in range(0, len(keys), PIECES_AT_ONCE):
                batch = keys[first : first + PIECES_AT_ONCE]
                with self._space.session() as session:
                    if session.prefetch(batch).wait(WAIT_S).hit_chunks != len(batch):
                        raise OSError("a piece of it is missing or corrupt")
                    views = session.get_views(batch)
                    for i in range(len(batch)):
                        view = views[i]
                        if view is None:
                            raise OSError(f"a piece of it cannot be read: {views.status(i).name}")
                        file.write(view)
        if path.stat().st_size != state.size:
            raise OSError("it has another size")

    def _forget(self, states: list[State], state: State, tokens: Sequence[int]) -> None:
        try:
            with self._space.session() as session:
                session.append_tokens(tokens)
                keys = session.keys(0, len(states))
                self._space.delete([key for key, pointed in zip(keys, states) if pointed == state] + state.pieces())
        except kvkeep.KvkeepError as error:
            say(f"a stored state cannot be deleted: {error}")
