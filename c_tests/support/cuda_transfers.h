// What tests of a GPU's pools share: pages on it whose bytes know where they are, a pool of them, stores and loads.
#ifndef CUDA_TRANSFERS_H
#define CUDA_TRANSFERS_H

#include "cuda_fixture.h"
#include "fixture.h"

enum { LAYERS = 2, SEGMENTS = 2 * LAYERS, BLOCKS = 64, PER_CHUNK = 4, BLOCK = 4096, KEYS = 8, IDS = KEYS * PER_CHUNK };
#define PAGES_BYTES ((size_t)SEGMENTS * BLOCKS * BLOCK)
#define LOST 719

static uint8_t *pages;
static uint64_t pages_at;
static kvkeep *cache;
static uint64_t space, session, pool;
static kvkeep_key keys[KEYS];
static int32_t ids[IDS];

static inline uint8_t *block(int segment, int id) {
    return pages + ((size_t)segment * BLOCKS + (size_t)id) * BLOCK;
}

static inline uint8_t byte_at(int segment, int id) {
    return (uint8_t)(1 + segment * 67 + id * 5);
}

static inline void fill_pages(void) {
    for (int s = 0; s < SEGMENTS; s++) {
        for (int id = 0; id < BLOCKS; id++) memset(block(s, id), byte_at(s, id), BLOCK);
    }
}

static inline int is_all(const uint8_t *bytes, uint8_t byte) {
    return bytes[0] == byte && memcmp(bytes, bytes + 1, BLOCK - 1) == 0;
}

static inline kvkeep_status try_pool(int32_t device, uint64_t address, uint64_t *opened) {
    kvkeep_segment segments[SEGMENTS] = {0};
    for (int s = 0; s < SEGMENTS; s++) {
        segments[s].address = address + (uint64_t)s * BLOCKS * BLOCK;
        segments[s].block_bytes = BLOCK;
        segments[s].layer = (uint32_t)s / 2;
    }
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    options.device = device;
    options.block_count = BLOCKS;
    options.blocks_per_chunk = PER_CHUNK;
    options.segments = segments;
    options.segment_count = SEGMENTS;
    return kvkeep_open_pool(cache, space, &options, opened);
}

static inline void enter_with(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
    keys_of(keys, 1, KEYS);
    for (int i = 0; i < IDS; i++) ids[i] = 2 * i;
    fill_pages();
}

static inline void enter(void) {
    enter_with(open_l1(8 * MIB));
    OK(try_pool(0, pages_at, &pool));
}

// What the library took of the driver it has given back, whatever happened; the test has one context.
static inline void check_driver_is_free(void) {
    CHECK_EQUAL(fake_cuda_live("streams"), 0);
    CHECK_EQUAL(fake_cuda_live("events"), 0);
    CHECK_EQUAL(fake_cuda_live("host"), 0);
    CHECK_EQUAL(fake_cuda_live("registered"), 0);
    CHECK_EQUAL(fake_cuda_live("modules"), 0);
    CHECK_EQUAL(fake_cuda_live("device"), 1);
    CHECK_EQUAL(fake_cuda_live("retained"), 1);
}

static inline void leave(void) {
    OK(kvkeep_close_pool(cache, pool));
    close_empty(cache);
    check_driver_is_free();
}

static inline kvkeep_transfer_options behind(void *stream) {
    kvkeep_transfer_options options;
    KVKEEP_INIT(&options);
    options.stream = (uint64_t)(uintptr_t)stream;
    return options;
}

static inline uint64_t store_on(void *stream) {
    kvkeep_transfer_options options = behind(stream);
    uint64_t job = 0;
    OK(kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, &options, &job, NULL, NULL));
    return job;
}

static inline uint64_t load_on(void *stream) {
    kvkeep_transfer_options options = behind(stream);
    uint64_t job = 0;
    OK(kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, &options, &job, NULL, NULL));
    return job;
}

static inline kvkeep_job_result result_of(uint64_t job) {
    return answer_of(cache, job);
}

static inline void check_pages_are_stored_ones(void) {
    for (int s = 0; s < SEGMENTS; s++) {
        for (int i = 0; i < IDS; i++) CHECK(is_all(block(s, ids[i]), byte_at(s, ids[i])));
    }
}

// The test's own device is begun with its pages, and ended when the library has given back all it took.
static inline void cuda_transfers_begin(void) {
    pages = device_pages(0, PAGES_BYTES, &pages_at);
}

static inline void cuda_transfers_end(void) {
    cuda_leave(0);
    void *context;
    // The caller's own context is as it was.
    CHECK_EQUAL(cuCtxPopCurrent_v2(&context), 201);
}

#endif
