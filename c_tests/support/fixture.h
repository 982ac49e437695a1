// What most tests need: a cache, a space, sessions, keys, and bytes that know whose they are.
#ifndef FIXTURE_H
#define FIXTURE_H

#include "check.h"

#include <ftw.h>
#include <time.h>

#define KIB ((uint64_t)1024)
#define MIB (1024 * KIB)
#define BATCH_MAX 1024

// Asks again until it is so; the watchdog ends a test where it never is.
#define AWAIT(condition) \
    while (!(condition)) pause_briefly()

static inline void pause_briefly(void) {
    struct timespec brief = {0, 1000000};
    nanosleep(&brief, NULL);
}

// Nothing in the background unless a test asks for it.
static inline kvkeep_options quiet_options(uint64_t l1_bytes) {
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.l1_bytes = l1_bytes;
    options.watermark_high_percent = 100;
    return options;
}

static inline kvkeep *open_with(const kvkeep_options *options) {
    kvkeep *cache = NULL;
    OK(kvkeep_open(options, &cache));
    CHECK(cache != NULL);
    return cache;
}

static inline kvkeep *open_l1(uint64_t l1_bytes) {
    kvkeep_options options = quiet_options(l1_bytes);
    return open_with(&options);
}

static inline kvkeep *open_l2(uint64_t l1_bytes, const char *url) {
    kvkeep_options options = quiet_options(l1_bytes);
    options.backend_urls = &url;
    options.backend_count = 1;
    return open_with(&options);
}

static inline uint64_t open_space(kvkeep *cache, const char *model) {
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = model;
    options.chunk_tokens = 16;
    uint64_t space = 0;
    OK(kvkeep_open_space(cache, &options, &space));
    CHECK(space != 0);
    return space;
}

// Every session that tests began, so that a test may leave some open.
static uint64_t begun[1 << 16];
static size_t begun_count;

static inline uint64_t begin_for(kvkeep *cache, uint64_t space, uint32_t timeout_ms) {
    kvkeep_session_options options;
    KVKEEP_INIT(&options);
    options.request_id = "request";
    options.timeout_ms = timeout_ms;
    uint64_t session = 0;
    OK(kvkeep_begin_session(cache, space, &options, &session));
    CHECK(session != 0);
    begun[begun_count++ % (sizeof begun / sizeof *begun)] = session;
    return session;
}

static inline uint64_t begin(kvkeep *cache, uint64_t space) {
    return begin_for(cache, space, 0);
}

static inline kvkeep_key key_of(uint32_t number) {
    kvkeep_key key;
    memset(&key, 0, sizeof key);
    for (int i = 0; i < 32; i++) key.hash[i] = (uint8_t)(number >> (i % 4 * 8)) ^ (uint8_t)(i * 37);
    return key;
}

static inline void keys_of(kvkeep_key *keys, uint32_t first, size_t count) {
    for (size_t i = 0; i < count; i++) keys[i] = key_of(first + (uint32_t)i);
}

// One object per rank for each of `chunks`, chunk-major.
static inline void ranked_keys_of(kvkeep_key *keys, uint32_t first, size_t chunks, uint32_t ranks) {
    for (size_t i = 0; i < chunks * ranks; i++) {
        keys[i] = key_of(first + (uint32_t)(i / ranks));
        keys[i].rank = (uint32_t)(i % ranks);
    }
}

// Bytes that belong to the key and no other.
static inline uint8_t byte_of(const kvkeep_key *key, uint64_t at) {
    return (uint8_t)(key->hash[at % 32] + key->rank * 101 + key->group * 57 + at / 32);
}

static inline void fill(const kvkeep_key *key, const kvkeep_view *view) {
    for (uint64_t i = 0; i < view->size; i++) ((uint8_t *)view->data)[i] = byte_of(key, i);
}

static inline int holds(const kvkeep_key *key, const kvkeep_view *view) {
    for (uint64_t i = 0; i < view->size; i++) {
        if (((const uint8_t *)view->data)[i] != byte_of(key, i)) return 0;
    }
    return 1;
}

static inline void stage_in(kvkeep *cache, uint64_t session, const kvkeep_key *keys, size_t count, uint64_t bytes,
                            uint32_t lifetime) {
    uint64_t sizes[BATCH_MAX] = {0};
    kvkeep_view views[BATCH_MAX];
    for (size_t i = 0; i < count; i++) sizes[i] = bytes;
    OK(kvkeep_reserve_write(cache, session, keys, count, sizes, lifetime, views));
    for (size_t i = 0; i < count; i++) {
        OK(views[i].status);
        CHECK_EQUAL(views[i].size, bytes);
        fill(&keys[i], &views[i]);
    }
}

static inline void put_in(kvkeep *cache, uint64_t session, const kvkeep_key *keys, size_t count, uint64_t bytes) {
    stage_in(cache, session, keys, count, bytes, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_finish_write(cache, session, keys, count, NULL));
}

// Stores objects as a request of its own does.
static inline void put(kvkeep *cache, uint64_t space, const kvkeep_key *keys, size_t count, uint64_t bytes) {
    uint64_t session = begin(cache, space);
    put_in(cache, session, keys, count, bytes);
    OK(kvkeep_end_session(cache, session));
}

// Stores objects so that only the backends have them.
static inline void put_below(kvkeep *cache, uint64_t space, const kvkeep_key *keys, size_t count, uint64_t bytes) {
    put(cache, space, keys, count, bytes);
    OK(kvkeep_flush(cache, 30000));
    uint64_t removed = 0;
    CHECK(kvkeep_clear(cache, space, 0, &removed) >= 0);
    CHECK(removed >= count);
}

// Whether a key is ready in L1, asked without disturbing anything but its recency.
static inline int is_ready(kvkeep *cache, uint64_t space, const kvkeep_key *key) {
    uint64_t session = begin(cache, space);
    kvkeep_view view;
    kvkeep_status status = kvkeep_reserve_read(cache, session, key, 1, 0, &view);
    CHECK(status == KVKEEP_OK || status == KVKEEP_PARTIAL);
    CHECK(view.status == KVKEEP_OK || view.status == KVKEEP_ERR_NOT_FOUND);
    CHECK((view.status == KVKEEP_OK) == (view.data != NULL));
    if (view.status == KVKEEP_OK) CHECK(holds(key, &view));
    OK(kvkeep_abort_session(cache, session));
    return view.status == KVKEEP_OK;
}

// Reads held objects and checks that the bytes are their own.
static inline void check_held(kvkeep *cache, uint64_t session, const kvkeep_key *keys, size_t count) {
    kvkeep_view views[BATCH_MAX];
    OK(kvkeep_get_views(cache, session, keys, count, views));
    for (size_t i = 0; i < count; i++) CHECK(holds(&keys[i], &views[i]));
}

static inline kvkeep_job_result answer_of(kvkeep *cache, uint64_t job) {
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_wait_job(cache, job, 60000));
    OK(kvkeep_query_job(cache, job, &result));
    return result;
}

static inline kvkeep_stats stats_of(kvkeep *cache) {
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    OK(kvkeep_query_stats(cache, &stats));
    return stats;
}

static inline void check_nothing_is_held(kvkeep *cache) {
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    // Transfers in flight lock what they move until they have landed.
    AWAIT(stats_of(cache).l1_locked_bytes == 0);
    CHECK_EQUAL(stats_of(cache).l1_staged, 0);
}

// Ends what the test left open, and closes: nothing may be held then.
static inline void close_empty(kvkeep *cache) {
    for (; begun_count > 0; begun_count--) {
        kvkeep_status status = kvkeep_abort_session(cache, begun[begun_count - 1]);
        CHECK(status == KVKEEP_OK || status == KVKEEP_ERR_NOT_FOUND || status == KVKEEP_ERR_EXPIRED);
    }
    check_nothing_is_held(cache);
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    CHECK_EQUAL(stats_of(cache).jobs, 0);
    OK(kvkeep_close(cache));
}

// Parameters for every fs: URL that does not choose an engine itself; valgrind does not let other threads run while one waits in a
// ring.
static inline const char *fs_parameters(const char *own) {
    const char *parameters = getenv("KVKEEP_TEST_FS_PARAMETERS");
    return parameters && !strstr(own, "engine=") ? parameters : "";
}

static inline char *new_directory(void) {
    static char path[4096];
    const char *base = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/kvkeep-test-XXXXXX", base ? base : "/tmp");
    CHECK(mkdtemp(path) != NULL);
    return path;
}

static inline int remove_entry(const char *path, const struct stat *entry, int kind, struct FTW *where) {
    (void)entry, (void)kind, (void)where;
    return remove(path);
}

static inline void remove_directory(const char *path) {
    CHECK_EQUAL(nftw(path, remove_entry, 16, FTW_DEPTH | FTW_PHYS), 0);
}

#endif
