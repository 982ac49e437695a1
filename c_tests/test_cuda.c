// A GPU's pool on a fake driver: who waits for whom, what goes as one, and what becomes of everything when the driver fails.
#include "cuda_fixture.h"
#include "fixture.h"

#include <semaphore.h>

enum { LAYERS = 2, SEGMENTS = 2 * LAYERS, BLOCKS = 64, PER_CHUNK = 4, BLOCK = 4096, KEYS = 8, IDS = KEYS * PER_CHUNK };
#define PAGES_BYTES ((size_t)SEGMENTS * BLOCKS * BLOCK)
#define LOST 719

static uint8_t *pages;
static uint64_t pages_at;
static kvkeep *cache;
static uint64_t space, session, pool;
static kvkeep_key keys[KEYS];
static int32_t ids[IDS];

static uint8_t *block(int segment, int id) {
    return pages + ((size_t)segment * BLOCKS + (size_t)id) * BLOCK;
}

static uint8_t byte_at(int segment, int id) {
    return (uint8_t)(1 + segment * 67 + id * 5);
}

static void fill_pages(void) {
    for (int s = 0; s < SEGMENTS; s++) {
        for (int id = 0; id < BLOCKS; id++) memset(block(s, id), byte_at(s, id), BLOCK);
    }
}

static int is_all(const uint8_t *bytes, uint8_t byte) {
    return bytes[0] == byte && memcmp(bytes, bytes + 1, BLOCK - 1) == 0;
}

static kvkeep_status try_pool(int32_t device, uint64_t address, uint64_t *opened) {
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

static void enter_with(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
    keys_of(keys, 1, KEYS);
    for (int i = 0; i < IDS; i++) ids[i] = 2 * i;
    fill_pages();
}

static void enter(void) {
    enter_with(open_l1(8 * MIB));
    OK(try_pool(0, pages_at, &pool));
}

// What the library took of the driver it has given back, whatever happened; the test has one context.
static void check_driver_is_free(void) {
    CHECK_EQUAL(fake_cuda_live("streams"), 0);
    CHECK_EQUAL(fake_cuda_live("events"), 0);
    CHECK_EQUAL(fake_cuda_live("host"), 0);
    CHECK_EQUAL(fake_cuda_live("registered"), 0);
    CHECK_EQUAL(fake_cuda_live("modules"), 0);
    CHECK_EQUAL(fake_cuda_live("device"), 1);
    CHECK_EQUAL(fake_cuda_live("retained"), 1);
}

static void leave(void) {
    OK(kvkeep_close_pool(cache, pool));
    close_empty(cache);
    check_driver_is_free();
}

static uint64_t store_on(void *stream) {
    kvkeep_transfer_options options;
    KVKEEP_INIT(&options);
    options.stream = (uint64_t)(uintptr_t)stream;
    uint64_t job = 0;
    OK(kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, &options, &job, NULL, NULL));
    return job;
}

static uint64_t load_on(void *stream) {
    kvkeep_transfer_options options;
    KVKEEP_INIT(&options);
    options.stream = (uint64_t)(uintptr_t)stream;
    uint64_t job = 0;
    OK(kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, &options, &job, NULL, NULL));
    return job;
}

static kvkeep_prefetch_result result_of(uint64_t job) {
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_query_prefetch(cache, job, &result));
    return result;
}

static void check_pages_are_stored_ones(void) {
    for (int s = 0; s < SEGMENTS; s++) {
        for (int i = 0; i < IDS; i++) CHECK(is_all(block(s, ids[i]), byte_at(s, ids[i])));
    }
}

// Work of an engine's on a stream, which goes on when the test says so.
static sem_t gate;

static void pass(void *data) {
    (void)data;
    while (sem_wait(&gate) != 0) {
    }
}

static void *new_stream(void) {
    void *stream;
    CHECK_EQUAL(cuStreamCreate(&stream, 1), 0);
    return stream;
}

static void a_store_waits_for_what_writes_its_pages(void) {
    // On a stream, and on the default one.
    for (int i = 0; i < 2; i++) {
        enter();
        void *stream = i == 0 ? new_stream() : NULL;
        CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
        CHECK_EQUAL(cuMemsetD8Async(pages_at, 0xa5, PAGES_BYTES, stream), 0);
        uint64_t job = store_on(stream);
        FAILS(kvkeep_wait(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
        sem_post(&gate);
        CHECK_STATUS(result_of(job).status, KVKEEP_OK);
        kvkeep_view views[KEYS];
        OK(kvkeep_reserve_read(cache, session, keys, KEYS, 0, views));
        for (int k = 0; k < KEYS; k++) {
            for (uint64_t at = 0; at < views[k].size; at += BLOCK) CHECK(is_all((uint8_t *)views[k].data + at, 0xa5));
        }
        OK(kvkeep_finish_read(cache, session, keys, KEYS, 0, NULL));
        if (stream) CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
        leave();
    }
}

static void a_load_waits_for_what_last_used_its_pages(void) {
    enter();
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    void *stream = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
    CHECK_EQUAL(cuMemsetD8Async(pages_at, 0, PAGES_BYTES, stream), 0);
    uint64_t job = load_on(stream);
    FAILS(kvkeep_wait(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
    sem_post(&gate);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    check_pages_are_stored_ones();
    CHECK(is_all(block(0, 1), 0));
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

// A kernel of the engine's that uses a layer's pages.
static int used[LAYERS], right[LAYERS];

static void use_layer(void *data) {
    int layer = (int)(intptr_t)data, same = 1;
    for (int s = 2 * layer; s < 2 * layer + 2; s++) {
        for (int i = 0; i < IDS; i++) same &= is_all(block(s, ids[i]), byte_at(s, ids[i]));
    }
    right[layer] = same;
    __atomic_store_n(&used[layer], 1, __ATOMIC_SEQ_CST);
}

static void use_layers_behind(uint64_t job, void *stream) {
    for (int layer = 0; layer < LAYERS; layer++) {
        used[layer] = right[layer] = 0;
        OK(kvkeep_stream_wait_layer(cache, job, (uint32_t)layer, (uint64_t)(uintptr_t)stream, 60000));
        CHECK_EQUAL(cuLaunchHostFunc(stream, use_layer, (void *)(intptr_t)layer), 0);
    }
}

static void a_stream_waits_for_layers_and_its_caller_does_not(void) {
    enter();
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    memset(pages, 0, PAGES_BYTES);
    void *busy = new_stream(), *next = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(busy, pass, NULL), 0);
    uint64_t job = load_on(busy), other = load_on(busy);
    // All of it is queued behind the busy stream, and so is what waits for it.
    use_layers_behind(other, next);
    FAILS(kvkeep_wait(cache, job, 0), KVKEEP_ERR_TIMEOUT, "not done");
    FAILS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_ERR_TIMEOUT, "layer 0");
    for (int layer = 0; layer < LAYERS; layer++) CHECK(!__atomic_load_n(&used[layer], __ATOMIC_SEQ_CST));
    sem_post(&gate);
    CHECK_EQUAL(cuStreamSynchronize(next), 0);
    for (int layer = 0; layer < LAYERS; layer++) CHECK(used[layer] && right[layer]);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    CHECK_STATUS(result_of(other).status, KVKEEP_OK);
    // Nothing to wait for is waited for at once.
    use_layers_behind(other, next);
    CHECK_EQUAL(cuStreamSynchronize(next), 0);
    CHECK_EQUAL(cuStreamDestroy_v2(busy), 0);
    CHECK_EQUAL(cuStreamDestroy_v2(next), 0);
    leave();
}

static void a_stream_waits_for_what_is_still_below(void) {
    enter_with(open_l2(8 * MIB, "fault:memory:?fault.delay=0.5&fault.delay_ms=20&fault.seed=4"));
    OK(try_pool(0, pages_at, &pool));
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    OK(kvkeep_drain_writes(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0, PAGES_BYTES);
    void *stream = new_stream();
    uint64_t job = load_on(NULL);
    use_layers_behind(job, stream);
    CHECK_EQUAL(cuStreamSynchronize(stream), 0);
    for (int layer = 0; layer < LAYERS; layer++) CHECK(used[layer] && right[layer]);
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

static void neighbours_go_as_one(void) {
    enter();
    for (int apart = 1; apart <= 2; apart++) {
        for (int i = 0; i < IDS; i++) ids[i] = apart * i;
        keys_of(keys, 1000 * (uint32_t)apart, KEYS);
        uint64_t before = fake_cuda_calls("fragment");
        CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
        uint64_t fragments = fake_cuda_calls("fragment") - before;
        // Those of a chunk, in each segment; or none.
        CHECK_EQUAL(fragments, SEGMENTS * (apart == 1 ? KEYS : IDS));
    }
    check_pages_are_stored_ones();
    leave();
}

static void closing_waits_for_what_is_in_flight(void) {
    enter();
    void *stream = new_stream();
    CHECK_EQUAL(cuLaunchHostFunc(stream, pass, NULL), 0);
    uint64_t job = store_on(stream);
    OK(kvkeep_stream_wait_layer(cache, job, LAYERS - 1, 0, 60000));
    OK(kvkeep_cancel(cache, job));
    FAILS(kvkeep_wait(cache, job, 30), KVKEEP_ERR_TIMEOUT, "not done");
    sem_post(&gate);
    // Queued copies land; that it was cancelled all the same is its answer.
    CHECK_STATUS(result_of(job).status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(cuStreamDestroy_v2(stream), 0);
    leave();
}

static int called;
static kvkeep_completion told;

static void note(void *userdata, const kvkeep_completion *completion) {
    (void)userdata;
    told = *completion;
    __atomic_add_fetch(&called, 1, __ATOMIC_SEQ_CST);
}

static void a_lost_device_ends_its_transfers_once(void) {
    for (int way = 0; way < 2; way++) {
        enter();
        if (way == 1) CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
        fake_cuda_fail("move", 1, LOST);
        fake_cuda_fail("copy", 1, LOST);
        called = 0;
        uint64_t job, other;
        OK(way == 1 ? kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note, NULL)
                    : kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note, NULL));
        AWAIT(__atomic_load_n(&called, __ATOMIC_SEQ_CST) > 0);
        CHECK_STATUS(told.status, KVKEEP_ERR_DEVICE);
        CHECK(strstr(told.message, "CUDA_ERROR_LAUNCH_FAILED") && strstr(told.message, "restart the process"));
        int32_t statuses[IDS];
        OK(kvkeep_query_blocks(cache, job, statuses, IDS));
        for (int i = 0; i < IDS; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_DEVICE);
        FAILS(kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &other, note, NULL), KVKEEP_ERR_DEVICE,
              "Fake GPU 0");
        FAILS(try_pool(0, pages_at, &other), KVKEEP_ERR_DEVICE, "Fake GPU 0");
        CHECK_EQUAL(stats_of(cache).l1_staged, 0);
        // What is in L1 is as good as before.
        CHECK_EQUAL(stats_of(cache).l1_objects, way == 1 ? KEYS : 0);
        OK(kvkeep_close_pool(cache, pool));
        close_empty(cache);
        CHECK_EQUAL(called, 1);
        fake_cuda_heal();
        check_driver_is_free();
    }
}

static void what_a_lost_device_leaves_is_closed_safely(void) {
    for (uint64_t nth = 1; nth <= 6; nth++) {
        enter();
        called = 0;
        uint64_t jobs[4];
        fake_cuda_fail("move", nth, LOST);
        fake_cuda_fail("copy", nth, LOST);
        int accepted = 0;
        for (int i = 0; i < 4; i++) {
            keys_of(keys, 100 * (uint32_t)i, KEYS);
            accepted += kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &jobs[i], note, NULL) == KVKEEP_OK;
        }
        OK(kvkeep_close(cache));
        CHECK_EQUAL(called, accepted);
        begun_count = 0;
        fake_cuda_heal();
        check_driver_is_free();
    }
}

// A pool, a store, a load elsewhere; whatever fails, it ends, once, with a status that is true.
static void live_with(const char *function, uint64_t nth, int code) {
    static const char *giving_back[] = {"cuStreamDestroy_v2", "cuEventDestroy_v2", "cuMemFreeHost", "cuMemHostUnregister",
                                        "cuModuleUnload", "cuDevicePrimaryCtxRelease_v2", "cuCtxPushCurrent_v2"};
    enter_with(open_l1(8 * MIB));
    fake_cuda_fail(function, nth, code);
    uint64_t job;
    int accepted = 0, stored = 0;
    called = 0;
    kvkeep_status status = try_pool(0, pages_at, &pool);
    if (status == KVKEEP_OK) {
        status = kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note, NULL);
        if (status == KVKEEP_OK) {
            accepted++;
            stored = result_of(job).status == KVKEEP_OK;
        }
        if (stored) memset(pages, 0, PAGES_BYTES);
        status = kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note, NULL);
        if (status == KVKEEP_OK) {
            accepted++;
            int32_t ended = result_of(job).status;
            CHECK(ended == KVKEEP_OK || ended == KVKEEP_PARTIAL || ended == KVKEEP_ERR_DEVICE);
            if (ended == KVKEEP_OK) {
                CHECK(stored);
                check_pages_are_stored_ones();
            }
        }
        OK(kvkeep_close_pool(cache, pool));
    }
    if (status != KVKEEP_OK) {
        CHECK(status == KVKEEP_ERR_DEVICE || status == KVKEEP_ERR_INVALID);
        CHECK(strlen(kvkeep_last_error()) > 20 && strchr(kvkeep_last_error(), ':'));
    }
    AWAIT(__atomic_load_n(&called, __ATOMIC_SEQ_CST) == accepted);
    close_empty(cache);
    CHECK_EQUAL(called, accepted);
    int kept = 0;
    for (size_t i = 0; i < sizeof giving_back / sizeof *giving_back; i++) kept |= strcmp(function, giving_back[i]) == 0;
    fake_cuda_heal();
    if (!kept) check_driver_is_free();
}

static void every_call_may_fail(void) {
    static const char *functions[] = {
        "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
        "cuStreamCreate", "cuStreamSynchronize", "cuStreamWaitEvent", "cuStreamIsCapturing", "cuEventCreate",
        "cuEventRecord", "cuEventSynchronize", "cuMemHostAlloc", "cuMemHostRegister_v2", "cuPointerGetAttribute",
        "cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuMemcpyBatchAsync", "cuModuleLoadData", "cuModuleGetFunction",
        "cuLaunchKernel", "move", "copy",
        // What gives back comes last, since what it keeps is never found again.
        "cuCtxPushCurrent_v2", "cuStreamDestroy_v2", "cuEventDestroy_v2", "cuMemFreeHost", "cuMemHostUnregister",
        "cuModuleUnload", "cuDevicePrimaryCtxRelease_v2",
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
        for (uint64_t nth = 1; nth <= 5; nth++) {
            live_with(functions[i], nth, 1);
            live_with(functions[i], nth, LOST);
            live_with(functions[i], nth, 2);
        }
    }
}

// A device is measured once in a process: each failure takes one that is new.
static void measuring_may_fail(void) {
    static const struct { const char *function; uint64_t nth; int code; } failures[] = {
        {"cuMemAlloc_v2", 1, 2}, {"cuMemHostAlloc", 1, 2}, {"cuLaunchKernel", 2, 701}, {"move", 3, LOST},
        {"cuEventSynchronize", 3, 1}, {"cuModuleGetFunction", 1, 500},
    };
    for (int i = 0; i < (int)(sizeof failures / sizeof *failures); i++) {
        int device = 2 + i;
        uint64_t elsewhere;
        cuda_use(device);
        CHECK_EQUAL(cuMemAlloc_v2(&elsewhere, PAGES_BYTES), 0);
        enter_with(open_l1(8 * MIB));
        fake_cuda_fail(failures[i].function, failures[i].nth, failures[i].code);
        kvkeep_status status = try_pool(device, elsewhere, &pool);
        // Unless the device is lost, it works all the same, by its copy engines.
        CHECK_STATUS(status, failures[i].code == LOST ? KVKEEP_ERR_DEVICE : KVKEEP_OK);
        if (status == KVKEEP_OK) {
            uint64_t launched = fake_cuda_calls("cuLaunchKernel");
            CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
            if (failures[i].code != 2) CHECK_EQUAL(fake_cuda_calls("cuLaunchKernel"), launched);
            OK(kvkeep_close_pool(cache, pool));
        }
        close_empty(cache);
        fake_cuda_heal();
        CHECK_EQUAL(cuMemFree_v2(elsewhere), 0);
        cuda_leave(device);
        check_driver_is_free();
    }
}

static void devices_are_apart(void) {
    enter();
    uint64_t elsewhere, second, refused = 77;
    cuda_use(1);
    CHECK_EQUAL(cuMemAlloc_v2(&elsewhere, PAGES_BYTES), 0);
    FAILS(try_pool(0, elsewhere, &refused), KVKEEP_ERR_INVALID, "not memory of CUDA device 0");
    FAILS(try_pool(1, pages_at, &refused), KVKEEP_ERR_INVALID, "not memory of CUDA device 1");
    FAILS(try_pool(8, pages_at, &refused), KVKEEP_ERR_INVALID, "device is 8");
    CHECK_EQUAL(refused, 77);
    uint64_t registered = fake_cuda_calls("cuMemHostRegister_v2");
    OK(try_pool(1, elsewhere, &second));
    CHECK_EQUAL(fake_cuda_calls("cuMemHostRegister_v2"), registered);
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    // What one computed, the other loads.
    uint64_t job, first = pool;
    uint8_t *own = pages;
    OK(kvkeep_submit_load(cache, second, session, keys, KEYS, ids, IDS, NULL, &job, NULL, NULL));
    CHECK_STATUS(result_of(job).status, KVKEEP_OK);
    pages = fake_cuda_host(elsewhere);
    check_pages_are_stored_ones();
    // One is lost, the other goes on.
    fake_cuda_fail("move", 1, LOST);
    fake_cuda_fail("copy", 1, LOST);
    OK(kvkeep_submit_load(cache, second, session, keys, KEYS, ids, IDS, NULL, &job, NULL, NULL));
    CHECK_STATUS(result_of(job).status, KVKEEP_ERR_DEVICE);
    pages = own;
    memset(pages, 0, PAGES_BYTES);
    pool = first;
    CHECK_STATUS(result_of(load_on(NULL)).status, KVKEEP_OK);
    check_pages_are_stored_ones();
    OK(kvkeep_close_pool(cache, second));
    fake_cuda_heal();
    CHECK_EQUAL(cuMemFree_v2(elsewhere), 0);
    cuda_leave(1);
    leave();
}

int main(void) {
    watchdog();
    sem_init(&gate, 0, 0);
    pages = device_pages(0, PAGES_BYTES, &pages_at);
    RUN(a_store_waits_for_what_writes_its_pages);
    RUN(a_load_waits_for_what_last_used_its_pages);
    RUN(a_stream_waits_for_layers_and_its_caller_does_not);
    RUN(a_stream_waits_for_what_is_still_below);
    RUN(neighbours_go_as_one);
    RUN(closing_waits_for_what_is_in_flight);
    RUN(a_lost_device_ends_its_transfers_once);
    RUN(what_a_lost_device_leaves_is_closed_safely);
    RUN(devices_are_apart);
    RUN(measuring_may_fail);
    RUN(every_call_may_fail);
    // The caller's own context is as it was.
    cuda_leave(0);
    void *context;
    CHECK_EQUAL(cuCtxPopCurrent_v2(&context), 201);
    return 0;
}
