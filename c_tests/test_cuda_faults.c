// What becomes of a GPU's transfers when its driver fails, whichever call it is.
#include "cuda_transfers.h"
#include "completions.h"

static void a_lost_device_ends_its_transfers_once(void) {
    for (int way = 0; way < 2; way++) {
        enter();
        if (way == 1) CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
        fake_cuda_fail("move", 1, LOST);
        fake_cuda_fail("copy", 1, LOST);
        struct completions completions = NO_COMPLETIONS;
        uint64_t job, other;
        OK(way == 1 ? kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note_completion,
                                         &completions)
                    : kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note_completion,
                                          &completions));
        kvkeep_completion completion = await_completions(&completions, 1);
        CHECK_STATUS(completion.status, KVKEEP_ERR_DEVICE);
        CHECK(strstr(completion.message, "CUDA_ERROR_LAUNCH_FAILED") &&
              strstr(completion.message, "restart the process"));
        int32_t statuses[IDS];
        OK(kvkeep_query_blocks(cache, job, statuses, IDS));
        for (int i = 0; i < IDS; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_DEVICE);
        FAILS(kvkeep_wait_layer(cache, job, 0, 60000), KVKEEP_ERR_DEVICE, "ended with");
        FAILS(kvkeep_stream_wait_layer(cache, job, 0, 0, 60000), KVKEEP_ERR_DEVICE, "Fake GPU 0");
        FAILS(kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &other, note_completion,
                                  &completions),
              KVKEEP_ERR_DEVICE, "Fake GPU 0");
        FAILS(try_pool(0, pages_at, &other), KVKEEP_ERR_DEVICE, "Fake GPU 0");
        CHECK_EQUAL(stats_of(cache).l1_staged, 0);
        // What is in L1 is as good as before.
        CHECK_EQUAL(stats_of(cache).l1_objects, way == 1 ? KEYS : 0);
        OK(kvkeep_close_pool(cache, pool));
        close_empty(cache);
        CHECK_EQUAL(completions.count, 1);
        fake_cuda_heal();
        check_driver_is_free();
    }
}

static void a_device_whose_end_cannot_be_awaited_is_lost(void) {
    enter();
    uint64_t before = fake_cuda_calls("cuStreamSynchronize"), refused;
    fake_cuda_fail("cuEventSynchronize", 1, 1);
    // Who cannot wait for a piece waits for the stream.
    CHECK_STATUS(result_of(store_on(NULL)).status, KVKEEP_OK);
    CHECK_EQUAL(fake_cuda_calls("cuStreamSynchronize"), before + 1);
    fake_cuda_fail("cuEventSynchronize", 1, 1);
    fake_cuda_fail("cuStreamSynchronize", 1, 1);
    CHECK_STATUS(result_of(load_on(NULL)).status, KVKEEP_ERR_DEVICE);
    CHECK_EQUAL(fake_cuda_calls("cuStreamSynchronize"), before + 2);
    FAILS(kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, NULL, &refused, NULL, NULL), KVKEEP_ERR_DEVICE,
          "Fake GPU 0");
    OK(kvkeep_close_pool(cache, pool));
    close_empty(cache);
    fake_cuda_heal();
    check_driver_is_free();
}

static void what_a_lost_device_leaves_is_closed_safely(void) {
    for (uint64_t nth = 1; nth <= 6; nth++) {
        enter();
        struct completions completions = NO_COMPLETIONS;
        uint64_t jobs[4];
        fake_cuda_fail("move", nth, LOST);
        fake_cuda_fail("copy", nth, LOST);
        int accepted = 0;
        for (int i = 0; i < 4; i++) {
            keys_of(keys, 100 * (uint32_t)i, KEYS);
            accepted += kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &jobs[i], note_completion,
                                            &completions) == KVKEEP_OK;
        }
        OK(kvkeep_close(cache));
        CHECK_EQUAL(completions.count, accepted);
        begun_count = 0;
        fake_cuda_heal();
        check_driver_is_free();
    }
}

// Whether a call was refused, which must be for a reason that is said.
static int refused(kvkeep_status status) {
    if (status == KVKEEP_OK) return 0;
    CHECK(status == KVKEEP_ERR_DEVICE || status == KVKEEP_ERR_INVALID);
    CHECK(strlen(kvkeep_last_error()) > 20 && strchr(kvkeep_last_error(), ':'));
    return 1;
}

// Whether all of a transfer was done.
static int went_well(uint64_t job) {
    int32_t ended = result_of(job).status;
    CHECK(ended == KVKEEP_OK || ended == KVKEEP_PARTIAL || ended == KVKEEP_ERR_DEVICE);
    return ended == KVKEEP_OK;
}

static void check_objects_are_the_pages(void) {
    kvkeep_view views[KEYS];
    OK(kvkeep_reserve_read(cache, session, keys, KEYS, 0, views));
    for (int k = 0; k < KEYS; k++) {
        CHECK_EQUAL(views[k].size, SEGMENTS * PER_CHUNK * BLOCK);
        for (int i = 0; i < SEGMENTS * PER_CHUNK; i++) {
            CHECK(is_all((uint8_t *)views[k].data + i * BLOCK,
                         byte_at(i / PER_CHUNK, ids[k * PER_CHUNK + i % PER_CHUNK])));
        }
    }
    OK(kvkeep_finish_read(cache, session, keys, KEYS, 0, NULL));
}

// A pool, a store, a load elsewhere; whatever fails, it ends, once, with a status that is true. Says whether the failure was met.
static int live_with(const char *function, uint64_t nth, int code) {
    static const char *giving_back[] = {"cuStreamDestroy_v2",  "cuEventDestroy_v2", "cuMemFreeHost",
                                        "cuMemHostUnregister", "cuModuleUnload",    "cuDevicePrimaryCtxRelease_v2",
                                        "cuCtxPushCurrent_v2"};
    enter_with(open_l1(8 * MIB));
    const uint64_t before = fake_cuda_calls(function);
    fake_cuda_fail(function, nth, code);
    struct completions completions = NO_COMPLETIONS;
    uint64_t job;
    int accepted = 0, stored = 0;
    if (!refused(try_pool(0, pages_at, &pool))) {
        if (!refused(kvkeep_submit_store(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note_completion,
                                         &completions))) {
            accepted++;
            stored = went_well(job);
        }
        if (stored) check_objects_are_the_pages();
        if (stored) memset(pages, 0, PAGES_BYTES);
        if (!refused(kvkeep_submit_load(cache, pool, session, keys, KEYS, ids, IDS, NULL, &job, note_completion,
                                        &completions))) {
            accepted++;
            if (went_well(job)) {
                CHECK(stored);
                check_pages_are_stored_ones();
            }
        }
        OK(kvkeep_close_pool(cache, pool));
    }
    await_completions(&completions, accepted);
    close_empty(cache);
    CHECK_EQUAL(completions.count, accepted);
    int kept = 0;
    for (size_t i = 0; i < sizeof giving_back / sizeof *giving_back; i++) kept |= strcmp(function, giving_back[i]) == 0;
    fake_cuda_heal();
    if (!kept) check_driver_is_free();
    return fake_cuda_calls(function) - before >= nth;
}

// Which way bytes go is in the driver's environment: by the kernel unless that is slow, or one by one where nothing is registered.
static int is_slow(void) {
    return getenv("FAKE_CUDA_MOVE_US") != NULL;
}

static int is_unregistered(void) {
    return getenv("FAKE_CUDA_PINNED") != NULL;
}

static void check_calls_may_fail(const char *const *functions, size_t count) {
    for (size_t i = 0; i < count; i++) {
        int met = 0;
        for (uint64_t nth = 1; nth <= 5; nth++) {
            met += live_with(functions[i], nth, 1);
            met += live_with(functions[i], nth, LOST);
            met += live_with(functions[i], nth, 2);
        }
        if (met > 0) continue;
        fprintf(stderr, "%s is never called\n", functions[i]);
        exit(1);
    }
}

static void every_call_may_fail(void) {
    static const char *const always[] = {
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuStreamCreate",
        "cuStreamWaitEvent",
        "cuStreamIsCapturing",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuMemHostRegister_v2",
        "cuPointerGetAttribute",
        "cuModuleLoadData",
        "cuModuleGetFunction",
    };
    static const char *const by_kernel[] = {"cuMemHostAlloc", "cuLaunchKernel", "move"};
    static const char *const in_batches[] = {"cuMemcpyBatchAsync", "copy"};
    static const char *const one_by_one[] = {"cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "copy"};
    // What gives back comes last, since what it keeps is never found again.
    static const char *const giving_back[] = {"cuCtxPushCurrent_v2", "cuStreamDestroy_v2", "cuEventDestroy_v2",
                                              "cuModuleUnload", "cuDevicePrimaryCtxRelease_v2"};
    static const char *const giving_back_memory[] = {"cuMemFreeHost"};
#define MAY_FAIL(functions) check_calls_may_fail(functions, sizeof functions / sizeof *functions)
    MAY_FAIL(always);
    if (is_unregistered()) MAY_FAIL(one_by_one);
    else if (is_slow()) MAY_FAIL(in_batches);
    else MAY_FAIL(by_kernel);
    MAY_FAIL(giving_back);
    if (!is_unregistered() && !is_slow()) MAY_FAIL(giving_back_memory);
    if (!is_unregistered()) {
        static const char *const registered[] = {"cuMemHostUnregister"};
        MAY_FAIL(registered);
    }
#undef MAY_FAIL
}

// A device is measured once in a process: each failure takes one that is new.
static void measuring_may_fail(void) {
    static const struct {
        const char *function;
        uint64_t nth;
        int code;
    } failures[] = {
        {"cuMemAlloc_v2", 1, 2}, {"cuMemHostAlloc", 1, 2},     {"cuLaunchKernel", 2, 701},
        {"move", 3, LOST},       {"cuEventSynchronize", 3, 1}, {"cuModuleGetFunction", 1, 500},
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
    cuda_transfers_begin();
    // The driver is loaded and the device measured before any call is told to fail.
    enter();
    leave();
    if (!is_unregistered()) {
        RUN(a_lost_device_ends_its_transfers_once);
        RUN(a_device_whose_end_cannot_be_awaited_is_lost);
        RUN(what_a_lost_device_leaves_is_closed_safely);
        RUN(devices_are_apart);
        RUN(measuring_may_fail);
    }
    RUN(every_call_may_fail);
    cuda_transfers_end();
    return 0;
}
