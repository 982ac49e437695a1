// Two requests that share a prefix, then a new process that finds both on disk.
//
//     quickstart DIRECTORY            the first run: computes, stores, and hits in memory
//     quickstart DIRECTORY again      a later process: hits on disk
//
// In place of a directory it takes the URL of another backend, "redis://host:6379": then both share that server. Or it takes the
// socket of a daemon, "unix:///tmp/kvkeep.sock": then both share the daemon's memory.
//
// An engine would write the KV blocks of its GPU where this program writes made-up bytes.
#include <kvkeep.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_TOKENS = 256, CHUNK_BYTES = 256 * 1024, CHUNKS_MAX = 16, WAIT_MS = 10000 };

// Every error ends the program with the library's own words: the cause, then the remedy.
static void must(kvkeep_status status, const char *what) {
    if (status < 0) {
        fprintf(stderr, "%s: %s: %s\n", what, kvkeep_status_name(status), kvkeep_last_error());
        exit(1);
    }
}

// Stands for the engine's forward pass: the KV bytes of a chunk depend on all tokens up to its end, as its key does.
static void compute_chunk(const kvkeep_key *key, uint8_t *bytes) {
    for (size_t i = 0; i < CHUNK_BYTES; i++) bytes[i] = (uint8_t)(key->hash[i % 32] + i / 32);
}

static int is_chunk(const kvkeep_key *key, const uint8_t *bytes) {
    for (size_t i = 0; i < CHUNK_BYTES; i++) {
        if (bytes[i] != (uint8_t)(key->hash[i % 32] + i / 32)) return 0;
    }
    return 1;
}

// Computes and stores the chunks from `first` on. Their bytes can be read by others from finish_write on.
static void compute_and_store(kvkeep *cache, uint64_t session, const kvkeep_key *keys, size_t first, size_t count) {
    uint64_t sizes[CHUNKS_MAX];
    kvkeep_view views[CHUNKS_MAX];
    int32_t statuses[CHUNKS_MAX];
    size_t new_count = count - first;
    if (new_count == 0) return;

    for (size_t i = 0; i < new_count; i++) sizes[i] = CHUNK_BYTES;
    must(kvkeep_reserve_write(cache, session, keys + first, new_count, sizes, KVKEEP_LIFETIME_CACHED, views),
         "reserve_write");
    for (size_t i = 0; i < new_count; i++) {
        // A chunk without a view was stored by somebody else meanwhile, or found no room: either way, go on without.
        if (views[i].status == KVKEEP_OK) compute_chunk(&keys[first + i], views[i].data);
    }
    must(kvkeep_finish_write(cache, session, keys + first, new_count, statuses), "finish_write");
}

// What an engine does with one request.
static void serve(kvkeep *cache, uint64_t space, const char *name, const uint32_t *tokens, size_t token_count) {
    kvkeep_session_options options;
    KVKEEP_INIT(&options);
    options.request_id = name;
    uint64_t session;
    must(kvkeep_begin_session(cache, space, &options, &session), "begin_session");

    // Tokens to keys: one for each full chunk, equal where all tokens before are equal.
    kvkeep_key keys[CHUNKS_MAX];
    size_t count;
    must(kvkeep_append_tokens(cache, session, tokens, token_count, &count), "append_tokens");
    must(kvkeep_get_session_keys(cache, session, 0, count, 0, 1, 1, keys, count), "session_keys");

    // One job looks up every tier and loads. The scheduler learns the length early, and never waits for bytes.
    uint64_t job;
    must(kvkeep_submit_prefetch(cache, session, keys, count, NULL, &job, NULL, NULL), "submit_prefetch");
    uint32_t early = 0;
    kvkeep_status known;
    do {
        known = kvkeep_query_lookup_hits(cache, job, &early);
        must(known, "query_lookup_hits");
    } while (known == KVKEEP_PENDING);
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    int loaded = kvkeep_query_job(cache, job, &result) == KVKEEP_OK;
    printf("%s: %u of %u chunks will be hits (known %s)\n", name, early, (unsigned)count,
           loaded ? "at once" : "while their bytes are on the way");

    // An engine would be told by a callback or an eventfd; this program has nothing else to do.
    must(kvkeep_wait_job(cache, job, WAIT_MS), "wait");
    must(kvkeep_query_job(cache, job, &result), "query_job");
    printf("%s: %u loaded: %u from memory, %u from below (%llu bytes in %llu us)\n", name, result.hit_chunks,
           result.tier_keys[0], result.tier_keys[1], (unsigned long long)result.loaded_bytes,
           (unsigned long long)result.total_us);

    // The session holds a share of each hit: its bytes stay where they are until the share is returned.
    if (result.hit_chunks > 0) {
        kvkeep_view views[CHUNKS_MAX];
        must(kvkeep_get_views(cache, session, keys, result.hit_chunks, views), "get_views");
        for (uint32_t i = 0; i < result.hit_chunks; i++) {
            if (views[i].status != KVKEEP_OK || !is_chunk(&keys[i], views[i].data)) {
                fprintf(stderr, "%s: chunk %u is wrong\n", name, i);
                exit(1);
            }
        }
        must(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 0, NULL), "finish_read");
        printf("%s: the bytes of %u chunks are right\n", name, result.hit_chunks);
    }

    compute_and_store(cache, session, keys, result.hit_chunks, count);
    printf("%s: %u chunks computed and stored\n", name, (unsigned)count - result.hit_chunks);
    must(kvkeep_end_session(cache, session), "end_session");
}

int main(int argc, char **argv) {
    if (argc < 2 || argc > 3 || (argc == 3 && strcmp(argv[2], "again") != 0)) {
        fprintf(stderr, "usage: quickstart DIRECTORY|URL|unix:///SOCKET [again]\n");
        return 2;
    }
    char url[4096];
    snprintf(url, sizeof url, strstr(argv[1], "://") ? "%s" : "fs://%s?capacity=1GiB", argv[1]);
    const char *urls[] = {url};

    kvkeep_options options;
    KVKEEP_INIT(&options);
    if (strncmp(argv[1], "unix:", 5) == 0) {
        options.connect = argv[1];
    } else {
        options.l1_bytes = 64 << 20;
        options.backend_urls = urls;
        options.backend_count = 1;
    }
    kvkeep *cache;
    must(kvkeep_open(&options, &cache), "open");

    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    space_options.model = "example-8b@main";
    space_options.layout = "bf16 layers=32 heads=8 dim=128 tp=1";
    space_options.chunk_tokens = CHUNK_TOKENS;
    uint64_t space;
    must(kvkeep_open_space(cache, &space_options, &space), "open_space");

    // Both prompts begin with the same 8 chunks, say a system prompt and a document; then each asks something else.
    enum { SHARED = 8 * CHUNK_TOKENS, TOKENS = 12 * CHUNK_TOKENS };
    uint32_t first[TOKENS], second[TOKENS];
    for (uint32_t i = 0; i < TOKENS; i++) {
        first[i] = i * 7 % 32000;
        second[i] = i < SHARED ? first[i] : i * 11 % 32000;
    }
    int again = argc == 3;
    serve(cache, space, again ? "request 3" : "request 1", first, TOKENS);
    serve(cache, space, again ? "request 4" : "request 2", second, TOKENS);

    must(kvkeep_flush(cache, WAIT_MS), "flush");
    must(kvkeep_close(cache), "close");
    return 0;
}
