// Pools and transfers that are refused: with which status, in which words, and that nothing changes.
#include "pages.h"

#include <sys/resource.h>

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
        REFUSED((options.device = 0, segments[1].address = (uint64_t)(uintptr_t)nowhere), KVKEEP_ERR_INVALID,
                "not memory of CUDA");
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
    REFUSED(segments[1].reserved[1] = 1, KVKEEP_ERR_INVALID, "reserved is 1");
    REFUSED(options.reserved = 1, KVKEEP_ERR_INVALID, "reserved is 1");
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
    static const uint32_t parts[2 * LAYERS] = {KVKEEP_PART_VALUE, KVKEEP_PART_KEY};
    REFUSED(options.parts = parts, KVKEEP_ERR_INVALID, "earlier pool");
    REFUSED(options.parts = (const uint32_t *)(uintptr_t)2, KVKEEP_ERR_INVALID, "parts");
#undef REFUSED
    // A caller of the time before parts says none, and its segments are shorter.
    struct {
        uint64_t address, block_bytes, block_stride;
        uint32_t group, layer;
    } former[2 * LAYERS];
    options = pool_options(segments);
    for (int i = 0; i < 2 * LAYERS; i++) memcpy(&former[i], &segments[i], sizeof *former);
    options.segments = (const kvkeep_segment *)(const void *)former;
    options.struct_size = offsetof(kvkeep_pool_options, parts);
    options.parts = (const uint32_t *)(uintptr_t)2;
    OK(kvkeep_open_pool(cache, space, &options, &other));
    OK(kvkeep_close_pool(cache, other));
    other = 77;
    options = pool_options(segments);
    FAILS(kvkeep_open_pool(cache, space + 1, &options, &other), KVKEEP_ERR_NOT_FOUND, "not opened");
    FAILS(kvkeep_close_space(cache, space), KVKEEP_ERR_LOCKED, "pool");
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
        FAILS(kvkeep_submit_store(cache, pool, session, keys, count, ids, blocks, &options, &job, NULL, NULL), status, \
              words); \
        FAILS(kvkeep_submit_load(cache, pool, session, keys, count, ids, blocks, &options, &job, NULL, NULL), status, \
              words); \
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
    options.lifetime = 2;
    BOTH(KVKEEP_ERR_INVALID, "lifetime", pool, session, 2, 8);
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
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "twice");
    ids[5] = KVKEEP_BLOCK_NONE;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "KVKEEP_BLOCK_NONE");
    blocks_of(ids, 0, 8);
    ids[0] = KVKEEP_BLOCK_NONE;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "KVKEEP_BLOCK_NONE");
    ids[0] = 0;
    ids[5] = 5;
    FAILS(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, NULL, NULL, NULL, NULL), KVKEEP_ERR_INVALID,
          "NULL");
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
    OK(kvkeep_cancel_job(cache, done));
    CHECK_STATUS(result_of(done).status, KVKEEP_OK);
    leave();
}

static void pools_are_counted(void) {
    enter(open_l1(MIB));
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options options = pool_options(segments);
    uint64_t pools[1024] = {pool}, more = 77;
    for (int i = 1; i < 1024; i++) OK(kvkeep_open_pool(cache, space, &options, &pools[i]));
    FAILS(kvkeep_open_pool(cache, space, &options, &more), KVKEEP_ERR_LIMIT, "1024 pools");
    CHECK_EQUAL(more, 77);
    OK(kvkeep_close_pool(cache, pools[1023]));
    OK(kvkeep_open_pool(cache, space, &options, &more));
    CHECK(more > pools[1023]);
    leave();
}

static uint64_t address_space_bytes(void) {
    FILE *file = fopen("/proc/self/statm", "r");
    unsigned long long pages_mapped = 0;
    CHECK(file != NULL && fscanf(file, "%llu", &pages_mapped) == 1);
    fclose(file);
    return pages_mapped * 4096;
}

// The first pool of a cache on the host starts the threads that copy: here there is no room for their stacks.
static void a_pool_without_threads_is_refused(void) {
    if (device != KVKEEP_DEVICE_HOST) return;
    const char *preloaded = getenv("LD_PRELOAD");
    if (preloaded && strstr(preloaded, "vgpreload")) return; // valgrind has an address space of its own
    cache = open_l1(MIB);
    space = open_space(cache, "model");
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options options = pool_options(segments);
    struct rlimit limit, tight;
    CHECK_EQUAL(getrlimit(RLIMIT_AS, &limit), 0);
    tight = limit;
    tight.rlim_cur = address_space_bytes() + MIB;
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &tight), 0);
    kvkeep_status status = kvkeep_open_pool(cache, space, &options, &pool);
    CHECK_EQUAL(setrlimit(RLIMIT_AS, &limit), 0);
    FAILS(status, KVKEEP_ERR_IO, "thread");
    OK(kvkeep_open_pool(cache, space, &options, &pool));
    leave();
}

static void an_expired_session_is_told_so(void) {
    enter(open_l1(MIB));
    uint64_t late = begin_for(cache, space, 20), job = 77;
    AWAIT(stats_of(cache).sessions_reclaimed == 1);
    kvkeep_key key = key_of(1);
    int32_t ids[PER_CHUNK];
    blocks_of(ids, 0, PER_CHUNK);
    FAILS(kvkeep_submit_store(cache, pool, late, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL), KVKEEP_ERR_EXPIRED,
          "session");
    FAILS(kvkeep_submit_load(cache, pool, late, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL), KVKEEP_ERR_EXPIRED,
          "session");
    CHECK_EQUAL(job, 77);
    leave();
}

static void a_transfer_needs_a_session_of_its_own(void) {
    kvkeep_options options = quiet_options(MIB);
    options.sessions_max = 1;
    enter(open_with(&options));
    kvkeep_key key = key_of(1);
    int32_t ids[PER_CHUNK];
    blocks_of(ids, 0, PER_CHUNK);
    uint64_t job = 77;
    FAILS(kvkeep_submit_store(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL), KVKEEP_ERR_LIMIT,
          "sessions");
    FAILS(kvkeep_submit_load(cache, pool, session, &key, 1, ids, PER_CHUNK, NULL, &job, NULL, NULL), KVKEEP_ERR_LIMIT,
          "sessions");
    CHECK_EQUAL(job, 77);
    check_nothing_is_held(cache);
    leave();
}

static void a_load_beyond_the_jobs_allowed_says_which_blocks(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    const char *url = "fault:memory:?fault.lookup_hang=1";
    options.backend_urls = &url;
    options.backend_count = 1;
    options.jobs_max = 1;
    enter(open_with(&options));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[2 * PER_CHUNK];
    blocks_of(ids, 0, 2 * PER_CHUNK);
    uint64_t hangs = load(keys, 1, ids, NULL), job = load(keys + 1, 1, ids + PER_CHUNK, NULL);
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_PARTIAL);
    CHECK(strstr(result.message, "LIMIT") != NULL);
    check_blocks(job, PER_CHUNK, KVKEEP_ERR_LIMIT);
    OK(kvkeep_cancel_job(cache, hangs));
    CHECK_STATUS(result_of(hangs).status, KVKEEP_ERR_CANCELLED);
    OK(kvkeep_abort_session(cache, session));
    OK(kvkeep_close(cache));
}

static void a_store_beyond_its_spaces_quota_says_which_blocks(void) {
    enter(open_l1(4 * MIB));
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "bounded";
    options.chunk_tokens = PER_CHUNK * TOKENS;
    options.quota_bytes = 2 * LAYERS * PER_CHUNK * BLOCK;
    uint64_t bounded, of_bounded;
    OK(kvkeep_open_space(cache, &options, &bounded));
    kvkeep_segment segments[2 * LAYERS];
    kvkeep_pool_options wanted = pool_options(segments);
    OK(kvkeep_open_pool(cache, bounded, &wanted, &of_bounded));
    uint64_t holder = begin(cache, bounded), job;
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[2 * PER_CHUNK], statuses[2 * PER_CHUNK];
    blocks_of(ids, 0, 2 * PER_CHUNK);
    OK(kvkeep_submit_store(cache, of_bounded, holder, keys, 2, ids, 2 * PER_CHUNK, NULL, &job, NULL, NULL));
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_PARTIAL);
    CHECK_EQUAL(result.copied_keys, 1);
    CHECK(strstr(result.message, "QUOTA") != NULL);
    OK(kvkeep_query_blocks(cache, job, statuses, 2 * PER_CHUNK));
    for (int i = 0; i < 2 * PER_CHUNK; i++) CHECK_STATUS(statuses[i], i < PER_CHUNK ? KVKEEP_OK : KVKEEP_ERR_QUOTA);
    leave();
}

static void a_transfer_that_is_gone_is_not_found(void) {
    enter(open_l1(MIB));
    kvkeep_key key = key_of(1);
    int32_t ids[PER_CHUNK], status[PER_CHUNK];
    blocks_of(ids, 0, PER_CHUNK);
    uint64_t done = store(&key, 1, ids);
    result_of(done);
    OK(kvkeep_release_job(cache, done));
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    for (uint64_t job = done; job <= done + 1; job++) {
        FAILS(kvkeep_query_blocks(cache, job, status, PER_CHUNK), KVKEEP_ERR_NOT_FOUND, "is not there");
        FAILS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_ERR_NOT_FOUND, "is not there");
        FAILS(kvkeep_query_job(cache, job, &result), KVKEEP_ERR_NOT_FOUND, "is not there");
        FAILS(kvkeep_cancel_job(cache, job), KVKEEP_ERR_NOT_FOUND, "is not there");
        FAILS(kvkeep_release_job(cache, job), KVKEEP_ERR_NOT_FOUND, "is not there");
    }
    FAILS(kvkeep_query_blocks(cache, done, NULL, PER_CHUNK), KVKEEP_ERR_INVALID, "statuses is NULL");
    leave();
}

int main(void) {
    watchdog();
    pages_begin();
    RUN(a_pool_without_threads_is_refused);
    RUN(bad_pools_are_refused);
    RUN(bad_transfers_are_refused_and_change_nothing);
    RUN(pools_are_counted);
    RUN(an_expired_session_is_told_so);
    RUN(a_transfer_needs_a_session_of_its_own);
    RUN(a_load_beyond_the_jobs_allowed_says_which_blocks);
    RUN(a_store_beyond_its_spaces_quota_says_which_blocks);
    RUN(a_transfer_that_is_gone_is_not_found);
    return 0;
}
