// A program built against the header of before the functions were renamed, former/kvkeep.h: it runs against the library of today.
// Its structs are those it was built with; the new names stand for the old ones, and functions whose arrays have grown are left out.
#define kvkeep_wait kvkeep_wait_job
#define kvkeep_query_prefetch kvkeep_query_job
#define kvkeep_unsafe_read kvkeep_get_views
#define kvkeep_drain_writes kvkeep_flush
#define kvkeep_session_keys kvkeep_get_session_keys
#define kvkeep_get_stats kvkeep_query_stats
#include "former/kvkeep.h"

#include "check.h"

enum { COUNT = 4, SIZE = 4096 };

// What stands behind a struct of the caller's, which the library must leave alone.
#define GUARDED(type) \
    struct { \
        type value; \
        unsigned char behind[1024]; \
    }
#define GUARD(place) memset((place).behind, 0xa5, sizeof(place).behind)
#define UNTOUCHED(place) \
    for (size_t i = 0; i < sizeof(place).behind; i++) CHECK_EQUAL((place).behind[i], 0xa5)

static int told;

static void on_done(void *userdata, const kvkeep_completion *completion) {
    CHECK(userdata == &told);
    OK(completion->status);
    CHECK_EQUAL(completion->hit_chunks, COUNT);
    CHECK_EQUAL(completion->loaded_bytes, COUNT * SIZE);
    CHECK(completion->message[0] == '\0');
    __atomic_add_fetch(&told, 1, __ATOMIC_SEQ_CST);
}

static kvkeep *cache;
static uint64_t space, session;
static kvkeep_key keys[COUNT];

static void a_cache_opens_with_the_former_options(void) {
    const char *url = "memory:";
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.l1_bytes = 4 << 20;
    options.watermark_high_percent = 100;
    options.backend_urls = &url;
    options.backend_count = 1;
    OK(kvkeep_open(&options, &cache));
    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    space_options.model = "model";
    space_options.chunk_tokens = 16;
    space_options.quota_bytes = 1 << 20;
    OK(kvkeep_open_space(cache, &space_options, &space));
    kvkeep_session_options session_options;
    KVKEEP_INIT(&session_options);
    session_options.request_id = "former";
    OK(kvkeep_begin_session(cache, space, &session_options, &session));
}

static void keys_are_written_and_read(void) {
    uint32_t tokens[COUNT * 16];
    for (uint32_t i = 0; i < COUNT * 16; i++) tokens[i] = i;
    uint64_t chunks = 0;
    OK(kvkeep_append_tokens(cache, session, tokens, COUNT * 16, &chunks));
    CHECK_EQUAL(chunks, COUNT);
    OK(kvkeep_session_keys(cache, session, 0, chunks, 0, 1, 1, keys, COUNT));
    const uint64_t sizes[COUNT] = {SIZE, SIZE, SIZE, SIZE};
    kvkeep_view views[COUNT + 1];
    memset(views, 0xa5, sizeof views);
    OK(kvkeep_reserve_write(cache, session, keys, COUNT, sizes, KVKEEP_RETENTION_KEEP, views));
    for (int i = 0; i < COUNT; i++) memset(views[i].data, i + 1, SIZE);
    OK(kvkeep_finish_write(cache, session, keys, COUNT, NULL));
    OK(kvkeep_reserve_read(cache, session, keys, COUNT, 0, views));
    for (int i = 0; i < COUNT; i++) {
        CHECK_EQUAL(views[i].size, SIZE);
        CHECK_EQUAL(((unsigned char *)views[i].data)[SIZE - 1], i + 1);
    }
    CHECK_EQUAL(((unsigned char *)&views[COUNT])[0], 0xa5);
    kvkeep_key_state states[COUNT + 1];
    memset(states, 0xa5, sizeof states);
    OK(kvkeep_query_keys(cache, space, keys, COUNT, states));
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(states[i].shares, 1);
    CHECK_EQUAL(states[COUNT].flags, 0xa5a5a5a5);
    OK(kvkeep_finish_read(cache, session, keys, COUNT, 0, NULL));
}

static void a_job_loads_and_tells(void) {
    OK(kvkeep_drain_writes(cache, 60000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.policy = KVKEEP_POLICY_WAIT;
    uint64_t job = 0;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, on_done, &told));
    OK(kvkeep_wait(cache, job, 60000));
    GUARDED(kvkeep_prefetch_result) result;
    GUARD(result);
    KVKEEP_INIT(&result.value);
    OK(kvkeep_query_prefetch(cache, job, &result.value));
    UNTOUCHED(result);
    OK(result.value.status);
    CHECK_EQUAL(result.value.hit_chunks, COUNT);
    CHECK_EQUAL(result.value.lookup_chunks, COUNT);
    CHECK_EQUAL(result.value.failed_keys, 0);
    CHECK_EQUAL(result.value.tier_keys[1], COUNT);
    CHECK_EQUAL(result.value.loaded_bytes, COUNT * SIZE);
    CHECK(result.value.total_us >= result.value.load_us);
    CHECK(result.value.message[0] == '\0');
    kvkeep_view views[COUNT];
    OK(kvkeep_unsafe_read(cache, session, keys, COUNT, views));
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(((unsigned char *)views[i].data)[0], i + 1);
    OK(kvkeep_finish_read(cache, session, keys, COUNT, 0, NULL));
    OK(kvkeep_release_job(cache, job));
    while (__atomic_load_n(&told, __ATOMIC_SEQ_CST) == 0) usleep(1000);
}

static void counters_are_where_they_were(void) {
    GUARDED(kvkeep_stats) stats;
    GUARD(stats);
    KVKEEP_INIT(&stats.value);
    OK(kvkeep_get_stats(cache, &stats.value));
    UNTOUCHED(stats);
    CHECK_EQUAL(stats.value.l1_bytes, 4 << 20);
    CHECK_EQUAL(stats.value.commits, COUNT);
    CHECK_EQUAL(stats.value.stores, COUNT);
    CHECK_EQUAL(stats.value.loads, COUNT);
    CHECK_EQUAL(stats.value.jobs_completed, 1);
    CHECK_EQUAL(stats.value.prefetch_latency.count, 1);
    CHECK_EQUAL(stats.value.store_latency.count, COUNT);
    CHECK_EQUAL(stats.value.writes_asked, COUNT);
    GUARDED(kvkeep_space_usage) usage;
    GUARD(usage);
    KVKEEP_INIT(&usage.value);
    OK(kvkeep_query_space(cache, space, &usage.value));
    UNTOUCHED(usage);
    CHECK_EQUAL(usage.value.objects, COUNT);
    CHECK_EQUAL(usage.value.quota_bytes, 1 << 20);
}

static void pages_go_and_come_back(void) {
    static unsigned char pages[2][8][256];
    static const uint32_t parts[2] = {KVKEEP_PART_KEY, KVKEEP_PART_VALUE};
    kvkeep_segment segments[2];
    memset(segments, 0, sizeof segments);
    for (int i = 0; i < 2; i++) {
        segments[i].address = (uint64_t)(uintptr_t)pages[i];
        segments[i].block_bytes = 256;
        for (int block = 0; block < 4; block++) memset(pages[i][block], 16 * i + block, 256);
    }
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    options.device = KVKEEP_DEVICE_HOST;
    options.block_count = 8;
    options.segments = segments;
    options.segment_count = 2;
    options.parts = parts;
    uint64_t pool = 0, job = 0;
    OK(kvkeep_open_pool(cache, space, &options, &pool));
    kvkeep_key paged[4];
    for (int i = 0; i < 4; i++) {
        paged[i] = keys[i];
        paged[i].hash[0] ^= 0xff;
    }
    const int32_t from[4] = {0, 1, 2, 3}, to[4] = {7, 6, 5, 4};
    OK(kvkeep_submit_store(cache, pool, session, paged, 4, from, 4, NULL, &job, NULL, NULL));
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_release_job(cache, job));
    OK(kvkeep_submit_load(cache, pool, session, paged, 4, to, 4, NULL, &job, NULL, NULL));
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_release_job(cache, job));
    for (int i = 0; i < 2; i++) {
        for (int block = 0; block < 4; block++) CHECK_EQUAL(memcmp(pages[i][block], pages[i][7 - block], 256), 0);
    }
    kvkeep_group_rule rules[2] = {{0, KVKEEP_PREFETCH_PREFIX, 0, 0}, {1, KVKEEP_PREFETCH_WINDOW, 1, 0}};
    kvkeep_key grouped[4] = {paged[0], paged[0], paged[1], paged[1]};
    grouped[1].group = grouped[3].group = 1;
    kvkeep_prefetch_options prefetch;
    KVKEEP_INIT(&prefetch);
    prefetch.objects_per_chunk = 2;
    prefetch.group_rules = rules;
    prefetch.group_rule_count = 2;
    OK(kvkeep_submit_prefetch(cache, session, grouped, 4, &prefetch, &job, NULL, NULL));
    OK(kvkeep_wait(cache, job, 60000));
    uint32_t hits = 9;
    OK(kvkeep_query_lookup_hits(cache, job, &hits));
    CHECK_EQUAL(hits, 0);
    OK(kvkeep_close_pool(cache, pool));
}

int main(void) {
    watchdog();
    RUN(a_cache_opens_with_the_former_options);
    RUN(keys_are_written_and_read);
    RUN(a_job_loads_and_tells);
    RUN(counters_are_where_they_were);
    RUN(pages_go_and_come_back);
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_close(cache));
    return 0;
}
