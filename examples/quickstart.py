"""The quickstart in Python: two requests that share a prefix, then a new process that finds both below L1.

    quickstart.py DIRECTORY            the first run: computes, stores, and hits in memory
    quickstart.py DIRECTORY again      a later process, also one in another language: hits on disk

In place of a directory it takes the URL of another backend, or the socket of a daemon, "unix:///tmp/kvkeep.sock".
"""

import sys

import kvkeep

CHUNK_TOKENS, CHUNK_BYTES = 256, 256 * 1024


def compute_chunk(key: kvkeep.Key) -> bytes:
    """Stands for the engine's forward pass: the KV bytes of a chunk depend on all tokens up to its end, as its key does."""
    return bytes((byte + row) % 256 for row in range(256) for byte in key.hash) * (CHUNK_BYTES // 8192)


def serve(space: kvkeep.Space, name: str, tokens: list[int]) -> None:
    """What an engine does with one request."""
    with space.session(name) as session:
        count = session.append_tokens(tokens)
        keys = session.keys(0, count)

        # One job looks up every tier and loads. An engine would await it, or be told by a callback.
        result = session.prefetch(keys).wait(timeout=10)
        hits = result.hit_chunks
        if hits:
            # The session holds a share of each hit: its bytes stay where they are until the share is returned.
            for key, view in zip(keys, session.get_views(keys[:hits])):
                assert view == compute_chunk(key), f"a chunk of {name} is wrong"
            session.finish_read(keys[:hits])

        if hits < count:
            # A chunk without a view was stored by somebody else meanwhile, or found no room: either way, go on without.
            for key, view in zip(keys[hits:], session.reserve_write(keys[hits:], CHUNK_BYTES)):
                if view is not None:
                    view[:] = compute_chunk(key)
            session.finish_write(keys[hits:])
        memory, below = result.tier_keys[0], sum(result.tier_keys[1:])
        print(f"{name}: {hits} of {count} chunks were right ({memory} from memory, {below} from below)")


def main() -> None:
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["again"]):
        sys.exit("usage: quickstart.py DIRECTORY|URL|unix:///SOCKET [again]")
    place, again = sys.argv[1], len(sys.argv) == 3
    if place.startswith("unix:"):
        cache = kvkeep.Cache(connect=place)
    else:
        cache = kvkeep.Cache(64 << 20, backends=[place if "://" in place else f"fs://{place}?capacity=1GiB"])
    with cache:
        space = cache.space("example-8b@main", "bf16 layers=32 heads=8 dim=128 tp=1", chunk_tokens=CHUNK_TOKENS)
        # Both prompts begin with the same 8 chunks, say a system prompt and a document; then each asks something else.
        first = [i * 7 % 32000 for i in range(12 * CHUNK_TOKENS)]
        shared = 8 * CHUNK_TOKENS
        second = first[:shared] + [i * 11 % 32000 for i in range(shared, 12 * CHUNK_TOKENS)]
        serve(space, "request 3" if again else "request 1", first)
        serve(space, "request 4" if again else "request 2", second)
        cache.flush()


main()
