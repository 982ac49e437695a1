// Pools, stores and loads on the device that KVKEEP_TEST_DEVICE names (the host, or a CUDA device): what is refused, what is copied
// where, and who may end when.
#include "cuda_fixture.h"
#include "fixture.h"

#include <poll.h>

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

static kvkeep_pool_options pool_options(kvkeep_segment *segments) {
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

static kvkeep_transfer_options transfer_options(void) {
    kvkeep_transfer_options options;
    KVKEEP_INIT(&options);
    return options;
}

static void enter(kvkeep *opened) {
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

static void leave(void) {
    OK(kvkeep_close_pool(cache, pool));
    close_empty(cache);
}

static void blocks_of(int32_t *ids, int32_t first, size_t count) {
    for (size_t i = 0; i < count; i++) ids[i] = first + (int32_t)i;
}

static uint64_t store(const kvkeep_key *keys, size_t count, const int32_t *ids) {
    uint64_t job = 0;
    OK(kvkeep_submit_store(cache, pool, session, keys, count, ids, count * PER_CHUNK, NULL, &job, NULL, NULL));
    CHECK(job != 0);
    return job;
}

static uint64_t load(const kvkeep_key *keys, size_t count, const int32_t *ids, const kvkeep_transfer_options *options) {
    uint64_t job = 0;
    OK(kvkeep_submit_load(cache, pool, session, keys, count, ids, count * PER_CHUNK, options, &job, NULL, NULL));
    return job;
}

static kvkeep_prefetch_result result_of(uint64_t job) {
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_query_prefetch(cache, job, &result));
    return result;
}

static void check_blocks(uint64_t job, size_t count, int32_t wanted) {
    int32_t statuses[BATCH_MAX];
    OK(kvkeep_query_blocks(cache, job, statuses, count));
    for (size_t i = 0; i < count; i++) CHECK_STATUS(statuses[i], wanted);
}

static int block_is(int to, int from) {
    for (int s = 0; s < 2 * LAYERS; s++) {
        if (memcmp(pages[s][to], before[s][from], BLOCK) != 0) return 0;
    }
    return 1;
}

static void store_all(const kvkeep_key *keys, size_t count, int32_t first) {
    int32_t ids[BATCH_MAX];
    blocks_of(ids, first, count * PER_CHUNK);
    kvkeep_prefetch_result result = result_of(store(keys, count, ids));
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.hit_chunks, count);
}

static void a_chunk_is_stored_and_loaded_elsewhere(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    store_all(keys, 4, 0);
    // The object's bytes: segment after segment, block after block.
    kvkeep_view view;
    OK(kvkeep_reserve_read(cache, session, &keys[1], 1, 0, &view));
    CHECK_EQUAL(view.size, 2 * LAYERS * PER_CHUNK * BLOCK);
    for (int s = 0; s < 2 * LAYERS; s++) {
        CHECK(memcmp((uint8_t *)view.data + s * PER_CHUNK * BLOCK, pages[s][PER_CHUNK], PER_CHUNK * BLOCK) == 0);
    }
    OK(kvkeep_finish_read(cache, session, &keys[1], 1, 0, NULL));

    int32_t ids[16];
    for (int i = 0; i < 16; i++) ids[i] = 63 - 2 * i;
    uint64_t job = load(keys, 4, ids, NULL);
    kvkeep_prefetch_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.hit_chunks, 4);
    CHECK_EQUAL(result.failed_keys, 0);
    CHECK_EQUAL(result.loaded_bytes, 4 * 2 * LAYERS * PER_CHUNK * BLOCK);
    check_blocks(job, 16, KVKEEP_OK);
    for (int i = 0; i < 16; i++) CHECK(block_is(63 - 2 * i, i));
    for (int i = 0; i < 32; i++) CHECK(block_is(i, i));
    for (int i = 32; i < 64; i += 2) CHECK(block_is(i, i));
    OK(kvkeep_release_job(cache, job));
    FAILS(kvkeep_wait(cache, job, 0), KVKEEP_ERR_NOT_FOUND, "is not there");
    leave();
}

static void bad_pools_are_refused(void) {
    enter(open_l1(MIB));
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options options;
    uint64_t other = 77;
#define REFUSED(change, status, words) \
    do { \
        options = pool_options(segments); \
        change; \
        FAILS(kvkeep_open_pool(cache, space, &options, &other), status, words); \
        CHECK_EQUAL(other, 77); \
    } while (0)
    if (cuda_begin()) {
        uint32_t nowhere[BLOCK];
        REFUSED((options.device = 0, segments[1].address = (uint64_t)(uintptr_t)nowhere), KVKEEP_ERR_INVALID, "not memory of CUDA");
        REFUSED(options.device = 99, KVKEEP_ERR_INVALID, "device is 99");
    } else {
        REFUSED(options.device = 0, KVKEEP_ERR_UNSUPPORTED, "libcuda.so.1");
    }
    REFUSED(options.device = -2, KVKEEP_ERR_INVALID, "device is -2");
    REFUSED(options.block_count = 0, KVKEEP_ERR_INVALID, "block_count");
    REFUSED(options.block_count = UINT32_MAX, KVKEEP_ERR_INVALID, "block_count");
    REFUSED(options.blocks_per_chunk = 3, KVKEEP_ERR_INVALID, "does not divide");
    REFUSED(options.blocks_per_chunk = 1u << 31, KVKEEP_ERR_INVALID, "blocks_per_chunk");
    REFUSED(options.segment_count = 0, KVKEEP_ERR_INVALID, "segments");
    REFUSED(options.segment_count = SIZE_MAX, KVKEEP_ERR_INVALID, "segment_count");
    REFUSED(options.segments = NULL, KVKEEP_ERR_INVALID, "segments is NULL");
    REFUSED(segments[0].address = 0, KVKEEP_ERR_INVALID, "address 0");
    REFUSED(segments[0].address += 2, KVKEEP_ERR_INVALID, "multiple of 4");
    REFUSED(segments[0].address = UINT64_MAX - 3, KVKEEP_ERR_INVALID, "beyond");
    REFUSED(segments[2].block_bytes = 0, KVKEEP_ERR_INVALID, "block_bytes 0");
    REFUSED(segments[2].block_bytes = 254, KVKEEP_ERR_INVALID, "multiple of 4");
    REFUSED(segments[2].block_bytes = 1ull << 62, KVKEEP_ERR_INVALID, "beyond");
    REFUSED(segments[2].block_stride = 128, KVKEEP_ERR_INVALID, "block_stride");
    REFUSED(segments[2].block_stride = UINT64_MAX - 3, KVKEEP_ERR_INVALID, "beyond");
    REFUSED(segments[2].block_stride = 512, KVKEEP_ERR_INVALID, "different strides");
    REFUSED(segments[2] = segments[0], KVKEEP_ERR_INVALID, "overlap");
    REFUSED(segments[2].address = segments[0].address + BLOCK - 4, KVKEEP_ERR_INVALID, "overlap");
    REFUSED(options.struct_size = 3, KVKEEP_ERR_INVALID, "struct_size");
    REFUSED(options.abi_version = 9, KVKEEP_ERR_VERSION, "abi_version");
    // What the pool of the fixture made of the space stays.
    REFUSED(options.segment_count = 2, KVKEEP_ERR_INVALID, "earlier pool");
    REFUSED((options.blocks_per_chunk = 2), KVKEEP_ERR_INVALID, "earlier pool");
    REFUSED((segments[0].layer = 1, segments[1].layer = 0), KVKEEP_ERR_INVALID, "earlier pool");
#undef REFUSED
    options = pool_options(segments);
    FAILS(kvkeep_open_pool(cache, space + 1, &options, &other), KVKEEP_ERR_NOT_FOUND, "not opened");
    FAILS(kvkeep_open_pool(cache, space, NULL, &other), KVKEEP_ERR_INVALID, "NULL");
    FAILS(kvkeep_open_pool(cache, space, &options, NULL), KVKEEP_ERR_INVALID, "NULL");
    FAILS(kvkeep_close_pool(cache, 99), KVKEEP_ERR_NOT_FOUND, "not open");
    // Another rank may look different, interleaved segments are none that overlap, and the same again is fine.
    options.segment_count = 2;
    options.rank = 1;
    segments[0].block_stride = segments[1].block_stride = 2 * BLOCK;
    segments[1].address = segments[0].address + BLOCK;
    options.block_count = BLOCKS / 2;
    OK(kvkeep_open_pool(cache, space, &options, &other));
    OK(kvkeep_close_pool(cache, other));
    FAILS(kvkeep_close_pool(cache, other), KVKEEP_ERR_NOT_FOUND, "not open");
    options = pool_options(segments);
    OK(kvkeep_open_pool(cache, space, &options, &other));
    OK(kvkeep_close_pool(cache, other));
    leave();
}

static void bad_transfers_are_refused_and_change_nothing(void) {
    enter(open_l1(MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[8];
    blocks_of(ids, 0, 8);
    kvkeep_transfer_options options = transfer_options();
    uint64_t job = 77, elsewhere = open_space(cache, "other"), stranger = begin(cache, elsewhere);
#define BOTH(status, words, pool, session, count, blocks) \
    do { \
        FAILS(kvkeep_submit_store(cache, pool, session, keys, count, ids, blocks, &options, &job, NULL, NULL), status, words); \
        FAILS(kvkeep_submit_load(cache, pool, session, keys, count, ids, blocks, &options, &job, NULL, NULL), status, words); \
        CHECK_EQUAL(job, 77); \
    } while (0)
    BOTH(KVKEEP_ERR_NOT_FOUND, "pool 9 ", 9, session, 2, 8);
    BOTH(KVKEEP_ERR_NOT_FOUND, "session", pool, session + (1u << 20), 2, 8);
    BOTH(KVKEEP_ERR_INVALID, "of space", pool, stranger, 2, 8);
    BOTH(KVKEEP_ERR_INVALID, "count of keys is 0", pool, session, 0, 8);
    BOTH(KVKEEP_ERR_INVALID, "count of keys", pool, session, SIZE_MAX, 8);
    BOTH(KVKEEP_ERR_INVALID, "count of block_ids", pool, session, 2, SIZE_MAX);
    BOTH(KVKEEP_ERR_INVALID, "block_count is 7", pool, session, 2, 7);
    ids[5] = BLOCKS;
    BOTH(KVKEEP_ERR_INVALID, "block_ids[5] is 64", pool, session, 2, 8);
    ids[5] = -2;
    BOTH(KVKEEP_ERR_INVALID, "block_ids[5] is -2", pool, session, 2, 8);
    ids[5] = 5;
    keys[1] = keys[0];
    BOTH(KVKEEP_ERR_INVALID, "twice", pool, session, 2, 8);
    keys[1].rank = 1;
    BOTH(KVKEEP_ERR_INVALID, "rank 1", pool, session, 2, 8);
    keys[1].rank = 0;
    keys[1].group = 1;
    BOTH(KVKEEP_ERR_INVALID, "group 1", pool, session, 2, 8);
    keys[1] = key_of(2);
    options.stream = 77;
    BOTH(KVKEEP_ERR_INVALID, "stream", pool, session, 2, 8);
    options = transfer_options();
    options.retention = 2;
    BOTH(KVKEEP_ERR_INVALID, "retention", pool, session, 2, 8);
    options = transfer_options();
    options.notify = 2;
    BOTH(KVKEEP_ERR_INVALID, "notify", pool, session, 2, 8);
    options = transfer_options();
    options.reserved = 1;
    BOTH(KVKEEP_ERR_INVALID, "reserved", pool, session, 2, 8);
#undef BOTH
    options = transfer_options();
    options.return_shares = 2;
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "return_shares");
    options.return_shares = 1;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "return_shares");
    options = transfer_options();
    options.skip_first_tokens = TOKENS + 1;
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "skip_first_tokens");
    options = transfer_options();
    ids[5] = 2;
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID, "twice");
    ids[5] = KVKEEP_BLOCK_NONE;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "KVKEEP_BLOCK_NONE");
    blocks_of(ids, 0, 8);
    ids[0] = KVKEEP_BLOCK_NONE;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "KVKEEP_BLOCK_NONE");
    ids[0] = 0;
    ids[5] = 5;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, NULL, NULL, NULL, NULL), KVKEEP_ERR_INVALID, "NULL");
    int32_t status;
    FAILS(kvkeep_query_blocks(cache, 1, &status, 1), KVKEEP_ERR_INVALID, "no transfer");
    FAILS(kvkeep_wait_layer(cache, 1, 0, 0), KVKEEP_ERR_INVALID, "no transfer");
    CHECK_EQUAL(stats_of(cache).sessions, 2);
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    check_nothing_is_held(cache);

    uint64_t done = store(keys, 2, ids);
    result_of(done);
    FAILS(kvkeep_query_blocks(cache, done, &status, 1), KVKEEP_ERR_INVALID, "count is 1");
    FAILS(kvkeep_wait_layer(cache, done, LAYERS, 0), KVKEEP_ERR_INVALID, "of layer 3");
    FAILS(kvkeep_stream_wait_layer(cache, done, LAYERS, 0, 0), KVKEEP_ERR_INVALID, "of layer 3");
    FAILS(kvkeep_stream_wait_layer(cache, done, 0, 77, 0), KVKEEP_ERR_INVALID, "stream");
    FAILS(kvkeep_stream_wait_layer(cache, 1, 0, 0, 0), KVKEEP_ERR_INVALID, "no transfer");
    OK(kvkeep_stream_wait_layer(cache, done, 0, 0, 0));
    uint32_t chunks;
    FAILS(kvkeep_query_lookup_hits(cache, done, &chunks), KVKEEP_ERR_INVALID, "is a transfer");
    uint8_t bitmap[8];
    FAILS(kvkeep_query_bitmap(cache, done, bitmap, 8), KVKEEP_ERR_INVALID, "is a transfer");
    FAILS(kvkeep_query_lookup_hits(cache, done + 1, &chunks), KVKEEP_ERR_NOT_FOUND, "is not there");
    OK(kvkeep_cancel(cache, done));
    CHECK_STATUS(result_of(done).status, KVKEEP_OK);
    leave();
}

static void a_partial_chunk_is_a_shorter_object(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[8] = {3, 1, 4, 0, 5, 9, KVKEEP_BLOCK_NONE, KVKEEP_BLOCK_NONE};
    CHECK_STATUS(result_of(store(keys, 2, ids)).status, KVKEEP_OK);
    kvkeep_view views[2];
    OK(kvkeep_reserve_read(cache, session, keys, 2, 0, views));
    CHECK_EQUAL(views[1].size, 2 * LAYERS * 2 * BLOCK);
    OK(kvkeep_finish_read(cache, session, keys, 2, 0, NULL));
    memset(pages, 0xee, sizeof before);
    // More blocks are asked for than it has: those fall short, alone.
    int32_t to[8] = {10, 11, 12, 13, 20, 21, 22, KVKEEP_BLOCK_NONE};
    uint64_t job = load(keys, 2, to, NULL);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    int32_t statuses[8];
    OK(kvkeep_query_blocks(cache, job, statuses, 8));
    for (int i = 0; i < 8; i++) CHECK_STATUS(statuses[i], i == 6 ? KVKEEP_ERR_NOT_FOUND : KVKEEP_OK);
    for (int i = 0; i < 6; i++) CHECK(block_is(to[i], ids[i]));
    for (int s = 0; s < 2 * LAYERS; s++) CHECK_EQUAL(pages[s][22][0], 0xee);
    leave();
}

static void tokens_that_are_there_are_skipped(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[3];
    keys_of(keys, 1, 3);
    store_all(keys, 3, 0);
    memset(pages, 0xee, sizeof before);
    int32_t ids[12];
    blocks_of(ids, 0, 12);
    // Skipped blocks may be named twice: nothing is written to them.
    ids[1] = 0;
    kvkeep_transfer_options options = transfer_options();
    options.skip_first_tokens = 6 * TOKENS;
    uint64_t job = load(keys, 3, ids, &options);
    kvkeep_prefetch_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.loaded_bytes, 6 * 2 * LAYERS * BLOCK);
    for (int i = 0; i < 12; i++) CHECK_EQUAL(block_is(i, i), i >= 6);
    options.skip_first_tokens = 1000 * TOKENS;
    job = load(keys, 3, ids, &options);
    CHECK_EQUAL(result_of(job).loaded_bytes, 0);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    check_blocks(job, 12, KVKEEP_OK);
    leave();
}

static void shares_are_returned_when_asked(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    store_all(keys, 2, 0);
    int32_t ids[8];
    blocks_of(ids, 8, 8);
    kvkeep_view views[2];
    OK(kvkeep_reserve_read(cache, session, keys, 2, 1, views));
    CHECK_EQUAL(stats_of(cache).l1_shares, 4);
    result_of(load(keys, 2, ids, NULL));
    CHECK_EQUAL(stats_of(cache).l1_shares, 4);
    kvkeep_transfer_options options = transfer_options();
    options.return_shares = 1;
    result_of(load(keys, 2, ids, &options));
    CHECK_EQUAL(stats_of(cache).l1_shares, 2);
    result_of(load(keys, 2, ids, &options));
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    // A third reader has none to return, and takes none of another session's.
    uint64_t reader = begin(cache, space);
    OK(kvkeep_reserve_read(cache, reader, keys, 2, 0, views));
    CHECK_STATUS(result_of(load(keys, 2, ids, &options)).status, KVKEEP_OK);
    CHECK_EQUAL(stats_of(cache).l1_shares, 2);
    leave();
}

static void what_is_in_no_tier_is_a_status_of_its_blocks(void) {
    enter(open_l2(4 * MIB, "memory:"));
    kvkeep_key keys[3];
    keys_of(keys, 1, 3);
    store_all(keys, 2, 0);
    memset(pages, 0xee, sizeof before);
    int32_t ids[12];
    blocks_of(ids, 0, 12);
    uint64_t job = load(keys, 3, ids, NULL);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    CHECK_EQUAL(result_of(job).failed_keys, 1);
    int32_t statuses[12];
    OK(kvkeep_query_blocks(cache, job, statuses, 12));
    for (int i = 0; i < 12; i++) {
        CHECK_STATUS(statuses[i], i < 8 ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND);
        CHECK_EQUAL(block_is(i, i), i < 8);
    }
    FAILS(kvkeep_wait_layer(cache, job, 99, 0), KVKEEP_ERR_INVALID, "layer");
    CHECK_STATUS(kvkeep_wait_layer(cache, job, 1, 0), KVKEEP_PARTIAL);
    leave();
}

static void what_is_below_is_loaded_and_copied_as_it_comes(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.delay=0.5&fault.delay_ms=20&fault.seed=4"));
    kvkeep_key keys[12];
    keys_of(keys, 1, 12);
    store_all(keys, 12, 0);
    OK(kvkeep_drain_writes(cache, 30000));
    uint64_t removed;
    OK(kvkeep_clear(cache, space, 0, &removed));
    CHECK_EQUAL(removed, 12);
    memset(pages, 0xee, sizeof before);
    int32_t ids[48];
    blocks_of(ids, 0, 48);
    // A prefetch has them on their way; the load joins it.
    uint64_t prefetch, job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 12, NULL, &prefetch, NULL, NULL));
    kvkeep_transfer_options options = transfer_options();
    options.return_shares = 1;
    job = load(keys, 12, ids, &options);
    for (uint32_t layer = 0; layer < LAYERS; layer++) {
        OK(kvkeep_wait_layer(cache, job, layer, 60000));
        for (int i = 0; i < 48; i++) CHECK(memcmp(pages[2 * layer + 1][i], before[2 * layer + 1][i], BLOCK) == 0);
    }
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    CHECK_EQUAL(result_of(prefetch).hit_chunks, 12);
    for (int i = 0; i < 48; i++) CHECK(block_is(i, i));
    CHECK_EQUAL(stats_of(cache).loads, 12);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    leave();
}

static void corrupt_objects_are_failed_blocks(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.flip=1&fault.seed=7"));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    store_all(keys, 4, 0);
    OK(kvkeep_drain_writes(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0xee, sizeof before);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    uint64_t job = load(keys, 4, ids, NULL);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    CHECK_EQUAL(result_of(job).loaded_bytes, 0);
    check_blocks(job, 16, KVKEEP_ERR_IO);
    for (size_t i = 0; i < sizeof before; i++) CHECK_EQUAL(((uint8_t *)pages)[i], 0xee);
    leave();
}

static void an_object_of_another_layout_is_not_scattered(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, &keys[0], 1, 1000);
    put(cache, space, &keys[1], 1, 5 * 2 * LAYERS * BLOCK);
    int32_t ids[8];
    blocks_of(ids, 0, 8);
    uint64_t job = load(keys, 2, ids, NULL);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    check_blocks(job, 8, KVKEEP_ERR_INVALID);
    CHECK(memcmp(pages, before, sizeof before) == 0);
    leave();
}

static void what_is_stored_already_is_not_stored_again(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    store_all(keys, 2, 0);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    uint64_t job = store(keys, 4, ids);
    kvkeep_prefetch_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.hit_chunks, 4);
    CHECK_EQUAL(result.loaded_bytes, 2 * 2 * LAYERS * PER_CHUNK * BLOCK);
    CHECK_EQUAL(stats_of(cache).commits, 4);
    leave();
}

static void a_store_beyond_l1_says_which_blocks(void) {
    // Room for two objects, of which one is in use.
    enter(open_l1(2 * 2 * LAYERS * PER_CHUNK * BLOCK));
    kvkeep_key keys[3];
    keys_of(keys, 1, 3);
    store_all(keys, 1, 0);
    kvkeep_view view;
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, &view));
    int32_t ids[8];
    blocks_of(ids, 4, 8);
    uint64_t job = store(keys + 1, 2, ids);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    int32_t statuses[8];
    OK(kvkeep_query_blocks(cache, job, statuses, 8));
    for (int i = 0; i < 8; i++) CHECK_STATUS(statuses[i], i < 4 ? KVKEEP_OK : KVKEEP_ERR_NO_MEMORY);
    CHECK_EQUAL(stats_of(cache).l1_objects, 2);
    leave();
}

static void a_session_may_end_while_its_copies_go_on(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    int32_t ids[32];
    blocks_of(ids, 0, 32);
    uint64_t job = store(keys, 8, ids);
    OK(kvkeep_end_session(cache, session));
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    for (int i = 0; i < 8; i++) {
        session = begin(cache, space);
        kvkeep_view view;
        OK(kvkeep_reserve_read(cache, session, &keys[i], 1, 0, &view));
        OK(kvkeep_finish_read(cache, session, &keys[i], 1, 0, NULL));
        blocks_of(ids, 32 + 4 * i, 4);
        job = load(&keys[i], 1, ids, NULL);
        OK(kvkeep_end_session(cache, session));
        CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    }
    for (int i = 0; i < 32; i++) CHECK(block_is(32 + i, i));
    leave();
}

// A copy may be over before the abort; what then is there is whole, and what is not was dropped.
static void an_aborted_session_drops_its_stores(void) {
    enter(open_l1(4 * MIB));
    for (uint32_t round = 0; round < 50; round++) {
        kvkeep_key keys[8];
        keys_of(keys, 100 * round, 8);
        int32_t ids[32];
        blocks_of(ids, 0, 32);
        uint64_t job = store(keys, 8, ids);
        OK(kvkeep_abort_session(cache, session));
        int32_t status = result_of(job).status;
        CHECK(status == KVKEEP_OK || status == KVKEEP_ERR_CANCELLED);
        check_blocks(job, 32, status);
        session = begin(cache, space);
        kvkeep_view views[8];
        kvkeep_reserve_read(cache, session, keys, 8, 0, views);
        for (int i = 0; i < 8; i++) CHECK_STATUS(views[i].status, status == KVKEEP_OK ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND);
        OK(kvkeep_abort_session(cache, session));
        session = begin(cache, space);
    }
    leave();
}

static int called;
static kvkeep_completion told;

static void note(void *userdata, const kvkeep_completion *completion) {
    CHECK(userdata == &told);
    told = *completion;
    __atomic_add_fetch(&called, 1, __ATOMIC_SEQ_CST);
}

static void the_end_is_told_once_by_callback_or_descriptor(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[8], fd;
    blocks_of(ids, 0, 8);
    uint64_t job, other;
    called = 0;
    OK(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, NULL, &job, note, &told));
    AWAIT(__atomic_load_n(&called, __ATOMIC_SEQ_CST) == 1);
    CHECK_EQUAL(told.job, job);
    CHECK_EQUAL(told.session, session);
    CHECK_STATUS(told.status, KVKEEP_OK);
    CHECK_EQUAL(told.hit_chunks, 2);
    CHECK_EQUAL(told.loaded_bytes, 2 * 2 * LAYERS * PER_CHUNK * BLOCK);
    kvkeep_transfer_options options = transfer_options();
    options.notify = KVKEEP_NOTIFY_EVENT_FD;
    blocks_of(ids, 8, 8);
    OK(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &other, NULL, NULL));
    CHECK(other != job);
    OK(kvkeep_event_fd(cache, &fd));
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    CHECK_EQUAL(poll(&polled, 1, 60000), 1);
    kvkeep_completion completions[4];
    size_t count;
    OK(kvkeep_drain_completions(cache, completions, 4, &count));
    CHECK_EQUAL(count, 1);
    CHECK_EQUAL(completions[0].job, other);
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &other, note, &told), KVKEEP_ERR_INVALID,
          "callback");
    leave();
    CHECK_EQUAL(called, 1);
}

// Objects that only a backend has which never answers a load.
static void enter_with_hanging_loads(kvkeep_key *keys, size_t count) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    store_all(keys, count, 0);
    OK(kvkeep_drain_writes(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0xee, sizeof before);
}

static void a_load_is_cancelled_while_it_waits(void) {
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    enter_with_hanging_loads(keys, 4);
    // One of them is there: it is held, and copied before the others.
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    for (int how = 0; how < 3; how++) {
        called = 0;
        uint64_t job;
        OK(kvkeep_submit_load(cache, pool, session, keys, 4, ids, 16, NULL, &job, note, &told));
        FAILS(kvkeep_wait(cache, job, 1), KVKEEP_ERR_TIMEOUT, "not done");
        FAILS(kvkeep_wait_layer(cache, job, 0, 1), KVKEEP_ERR_TIMEOUT, "layer 0");
        FAILS(kvkeep_stream_wait_layer(cache, job, 0, 0, 1), KVKEEP_ERR_TIMEOUT, "layer 0");
        kvkeep_prefetch_result result;
        KVKEEP_INIT(&result);
        int32_t statuses[16];
        CHECK_STATUS(kvkeep_query_prefetch(cache, job, &result), KVKEEP_PENDING);
        CHECK_STATUS(kvkeep_query_blocks(cache, job, statuses, 16), KVKEEP_PENDING);
        if (how == 0) OK(kvkeep_cancel(cache, job));
        if (how == 1) OK(kvkeep_release_job(cache, job));
        if (how == 2) OK(kvkeep_abort_session(cache, session));
        AWAIT(__atomic_load_n(&called, __ATOMIC_SEQ_CST) == 1);
        CHECK_STATUS(told.status, KVKEEP_ERR_CANCELLED);
        CHECK(strlen(told.message) > 10);
        if (how == 1) {
            FAILS(kvkeep_wait(cache, job, 0), KVKEEP_ERR_NOT_FOUND, "is not there");
        } else {
            OK(kvkeep_wait(cache, job, 0));
            check_blocks(job, 16, KVKEEP_ERR_CANCELLED);
            FAILS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_ERR_CANCELLED, "cancelled");
        }
        CHECK_EQUAL(called, 1);
    }
    for (size_t i = 0; i < sizeof before; i++) CHECK_EQUAL(((uint8_t *)pages)[i], 0xee);
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    CHECK_EQUAL(stats_of(cache).jobs, 0);
    // What hangs keeps its memory; the cache says so and leaves it mapped.
    OK(kvkeep_close(cache));
}

static void a_pool_is_closed_while_loads_wait(void) {
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    enter_with_hanging_loads(keys, 4);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    uint64_t job = load(keys, 4, ids, NULL), refused = 77;
    OK(kvkeep_close_pool(cache, pool));
    OK(kvkeep_wait(cache, job, 0));
    CHECK_STATUS(result_of(job).status, KVKEEP_ERR_CANCELLED);
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 4, ids, 16, NULL, &refused, NULL, NULL), KVKEEP_ERR_NOT_FOUND,
          "not open");
    OK(kvkeep_abort_session(cache, session));
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    OK(kvkeep_close(cache));
}

static void the_cache_is_closed_while_transfers_are_under_way(void) {
    for (uint32_t round = 0; round < 20; round++) {
        kvkeep_key keys[8];
        keys_of(keys, 1, 8);
        enter_with_hanging_loads(keys, 4);
        int32_t ids[32];
        blocks_of(ids, 0, 32);
        called = 0;
        uint64_t job;
        OK(kvkeep_submit_load(cache, pool, session, keys, 4, ids, 16, NULL, &job, note, &told));
        OK(kvkeep_submit_store(cache, pool, session, keys + 4, 4, ids + 16, 16, NULL, &job, note, &told));
        OK(kvkeep_close(cache));
        CHECK_EQUAL(called, 2);
        CHECK_STATUS(kvkeep_wait(cache, job, 0), KVKEEP_ERR_CLOSED);
    }
}

static void a_copy_is_explained_as_one(void) {
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    enter_with_hanging_loads(keys, 4);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    load(keys, 4, ids, NULL);
    char text[1 << 16], wanted[64];
    size_t length;
    OK(kvkeep_explain_session(cache, 0, text, sizeof text, &length));
    snprintf(wanted, sizeof wanted, "copy for session %llu", (unsigned long long)session);
    CHECK(strstr(text, wanted) != NULL);
    OK(kvkeep_close(cache));
}

int main(void) {
    watchdog();
    const char *named = getenv("KVKEEP_TEST_DEVICE");
    device = named ? atoi(named) : KVKEEP_DEVICE_HOST;
    pages = device_pages(device, sizeof before, &pages_at);
    RUN(a_chunk_is_stored_and_loaded_elsewhere);
    RUN(bad_pools_are_refused);
    RUN(bad_transfers_are_refused_and_change_nothing);
    RUN(a_partial_chunk_is_a_shorter_object);
    RUN(tokens_that_are_there_are_skipped);
    RUN(shares_are_returned_when_asked);
    RUN(what_is_in_no_tier_is_a_status_of_its_blocks);
    RUN(what_is_below_is_loaded_and_copied_as_it_comes);
    RUN(corrupt_objects_are_failed_blocks);
    RUN(an_object_of_another_layout_is_not_scattered);
    RUN(what_is_stored_already_is_not_stored_again);
    RUN(a_store_beyond_l1_says_which_blocks);
    RUN(a_session_may_end_while_its_copies_go_on);
    RUN(an_aborted_session_drops_its_stores);
    RUN(the_end_is_told_once_by_callback_or_descriptor);
    RUN(a_load_is_cancelled_while_it_waits);
    RUN(a_pool_is_closed_while_loads_wait);
    RUN(the_cache_is_closed_while_transfers_are_under_way);
    RUN(a_copy_is_explained_as_one);
    return 0;
}
