// What tests of device transfer share: pages whose bytes know where they were, a pool of them, stores and loads.
#ifndef PAGES_H
#define PAGES_H

#include "cuda_fixture.h"
#include "fixture.h"

enum { LAYERS = 3, BLOCKS = 64, PER_CHUNK = 4, BLOCK = 256, TOKENS = 4 };

// K and V of each layer apart: a segment each.
typedef uint8_t segment_bytes[BLOCKS][BLOCK];
static segment_bytes before[2 * LAYERS];
// As the test sees them, and as the device does.
static segment_bytes *pages;
static uint64_t pages_at;
static int32_t device;
static kvkeep *cache;
static uint64_t space, session, pool;

static inline kvkeep_pool_options pool_options(kvkeep_segment *segments) {
    for (uint32_t i = 0; i < 2 * LAYERS; i++) {
        segments[i] = (kvkeep_segment){.address = pages_at + i * sizeof *pages, .block_bytes = BLOCK, .layer = i / 2};
    }
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    options.device = device;
    options.block_count = BLOCKS;
    options.blocks_per_chunk = PER_CHUNK;
    options.segments = segments;
    options.segment_count = 2 * LAYERS;
    return options;
}

static inline kvkeep_transfer_options transfer_options(void) {
    kvkeep_transfer_options options;
    KVKEEP_INIT(&options);
    return options;
}

static inline void enter(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options options = pool_options(segments);
    OK(kvkeep_open_pool(cache, space, &options, &pool));
    CHECK(pool != 0);
    for (size_t i = 0; i < sizeof before; i++) ((uint8_t *)pages)[i] = (uint8_t)(i * 7 + i / 251);
    memcpy(before, pages, sizeof before);
}

static inline void leave(void) {
    OK(kvkeep_close_pool(cache, pool));
    close_empty(cache);
}

static inline void blocks_of(int32_t *ids, int32_t first, size_t count) {
    for (size_t i = 0; i < count; i++) ids[i] = first + (int32_t)i;
}

static inline uint64_t store(const kvkeep_key *keys, size_t count, const int32_t *ids) {
    uint64_t job = 0;
    OK(kvkeep_submit_store(cache, pool, session, keys, count, ids, count * PER_CHUNK, NULL, &job, NULL, NULL));
    CHECK(job != 0);
    return job;
}

static inline uint64_t load(const kvkeep_key *keys, size_t count, const int32_t *ids,
                            const kvkeep_transfer_options *options) {
    uint64_t job = 0;
    OK(kvkeep_submit_load(cache, pool, session, keys, count, ids, count * PER_CHUNK, options, &job, NULL, NULL));
    return job;
}

static inline kvkeep_job_result result_of(uint64_t job) {
    return answer_of(cache, job);
}

static inline void check_blocks(uint64_t job, size_t count, int32_t wanted) {
    int32_t statuses[BATCH_MAX];
    OK(kvkeep_query_blocks(cache, job, statuses, count));
    for (size_t i = 0; i < count; i++) CHECK_STATUS(statuses[i], wanted);
}

static inline int block_is(int to, int from) {
    for (int s = 0; s < 2 * LAYERS; s++) {
        if (memcmp(pages[s][to], before[s][from], BLOCK) != 0) return 0;
    }
    return 1;
}

static inline void store_all(const kvkeep_key *keys, size_t count, int32_t first) {
    int32_t ids[BATCH_MAX];
    blocks_of(ids, first, count * PER_CHUNK);
    kvkeep_job_result result = result_of(store(keys, count, ids));
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.copied_keys, count);
}

// Objects that only a backend has which never answers a load.
static inline void enter_with_hanging_loads(kvkeep_key *keys, size_t count) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    store_all(keys, count, 0);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0xee, sizeof before);
}

// The pages are on the device that KVKEEP_TEST_DEVICE names: the host, or a CUDA device.
static inline void pages_begin(void) {
    const char *named = getenv("KVKEEP_TEST_DEVICE");
    device = named ? atoi(named) : KVKEEP_DEVICE_HOST;
    pages = device_pages(device, sizeof before, &pages_at);
}

#endif
