// Stores and loads on the device that KVKEEP_TEST_DEVICE names (the host, or a CUDA device): what is copied where, and who may end
// when.
#include "pages.h"
#include "completions.h"

#include <poll.h>

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
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.copied_keys, 4);
    CHECK_EQUAL(result.failed_keys, 0);
    CHECK_EQUAL(result.copied_bytes, 4 * 2 * LAYERS * PER_CHUNK * BLOCK);
    check_blocks(job, 16, KVKEEP_OK);
    for (int i = 0; i < 16; i++) CHECK(block_is(63 - 2 * i, i));
    for (int i = 0; i < 32; i++) CHECK(block_is(i, i));
    for (int i = 32; i < 64; i += 2) CHECK(block_is(i, i));
    OK(kvkeep_release_job(cache, job));
    FAILS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_NOT_FOUND, "is not there");
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
    CHECK_STATUS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_PARTIAL);
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
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.copied_bytes, 6 * 2 * LAYERS * BLOCK);
    for (int i = 0; i < 12; i++) CHECK_EQUAL(block_is(i, i), i >= 6);
    options.skip_first_tokens = 1000 * TOKENS;
    job = load(keys, 3, ids, &options);
    CHECK_EQUAL(result_of(job).copied_bytes, 0);
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
    OK(kvkeep_flush(cache, 30000));
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
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    memset(pages, 0xee, sizeof before);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    uint64_t job = load(keys, 4, ids, NULL);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    CHECK_EQUAL(result_of(job).copied_bytes, 0);
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
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_OK);
    CHECK_EQUAL(result.copied_keys, 4);
    CHECK_EQUAL(result.copied_bytes, 2 * 2 * LAYERS * PER_CHUNK * BLOCK);
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
        for (int i = 0; i < 8; i++)
            CHECK_STATUS(views[i].status, status == KVKEEP_OK ? KVKEEP_OK : KVKEEP_ERR_NOT_FOUND);
        OK(kvkeep_abort_session(cache, session));
        session = begin(cache, space);
    }
    leave();
}

static void the_end_is_told_once_by_callback_or_descriptor(void) {
    enter(open_l1(4 * MIB));
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    int32_t ids[8], fd;
    blocks_of(ids, 0, 8);
    uint64_t job, other;
    struct completions called = NO_COMPLETIONS;
    OK(kvkeep_submit_store(cache, pool, session, keys, 2, ids, 8, NULL, &job, note_completion, &called));
    kvkeep_completion completion = await_completions(&called, 1);
    CHECK_EQUAL(completion.job, job);
    CHECK_EQUAL(completion.session, session);
    CHECK_STATUS(completion.status, KVKEEP_OK);
    CHECK_EQUAL(completion.copied_keys, 2);
    CHECK_EQUAL(completion.copied_bytes, 2 * 2 * LAYERS * PER_CHUNK * BLOCK);
    kvkeep_transfer_options options = transfer_options();
    options.notify = KVKEEP_NOTIFY_EVENT_FD;
    blocks_of(ids, 8, 8);
    OK(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &other, NULL, NULL));
    CHECK(other != job);
    OK(kvkeep_get_event_fd(cache, &fd));
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    CHECK_EQUAL(poll(&polled, 1, 60000), 1);
    kvkeep_completion completions[4];
    size_t count;
    OK(kvkeep_take_completions(cache, completions, 4, &count));
    CHECK_EQUAL(count, 1);
    CHECK_EQUAL(completions[0].job, other);
    FAILS(kvkeep_submit_load(cache, pool, session, keys, 2, ids, 8, &options, &other, note_completion, &called),
          KVKEEP_ERR_INVALID, "callback");
    leave();
    CHECK_EQUAL(called.count, 1);
}

static void a_load_is_cancelled_while_it_waits(void) {
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    enter_with_hanging_loads(keys, 4);
    static const char *const why[] = {"cancelled by its caller", "released before it was done",
                                      "its session was aborted"};
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    for (int how = 0; how < 3; how++) {
        struct completions completions = NO_COMPLETIONS;
        uint64_t job;
        OK(kvkeep_submit_load(cache, pool, session, keys, 4, ids, 16, NULL, &job, note_completion, &completions));
        FAILS(kvkeep_wait_job(cache, job, 1), KVKEEP_ERR_TIMEOUT, "not done");
        FAILS(kvkeep_wait_layer(cache, job, 0, 1), KVKEEP_ERR_TIMEOUT, "layer 0");
        FAILS(kvkeep_stream_wait_layer(cache, job, 0, 0, 1), KVKEEP_ERR_TIMEOUT, "layer 0");
        kvkeep_job_result result;
        KVKEEP_INIT(&result);
        int32_t statuses[16];
        CHECK_STATUS(kvkeep_query_job(cache, job, &result), KVKEEP_PENDING);
        CHECK_STATUS(kvkeep_query_blocks(cache, job, statuses, 16), KVKEEP_PENDING);
        if (how == 0) OK(kvkeep_cancel_job(cache, job));
        if (how == 1) OK(kvkeep_release_job(cache, job));
        if (how == 2) OK(kvkeep_abort_session(cache, session));
        kvkeep_completion completion = await_completions(&completions, 1);
        CHECK_STATUS(completion.status, KVKEEP_ERR_CANCELLED);
        CHECK(strstr(completion.message, why[how]) != NULL);
        if (how == 1) {
            FAILS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_NOT_FOUND, "is not there");
        } else {
            OK(kvkeep_wait_job(cache, job, 0));
            check_blocks(job, 16, KVKEEP_ERR_CANCELLED);
            FAILS(kvkeep_wait_layer(cache, job, 0, 0), KVKEEP_ERR_CANCELLED, "ended with");
        }
        CHECK_EQUAL(completions.count, 1);
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
    OK(kvkeep_wait_job(cache, job, 0));
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
        struct completions completions = NO_COMPLETIONS;
        uint64_t job;
        OK(kvkeep_submit_load(cache, pool, session, keys, 4, ids, 16, NULL, &job, note_completion, &completions));
        OK(kvkeep_submit_store(cache, pool, session, keys + 4, 4, ids + 16, 16, NULL, &job, note_completion,
                               &completions));
        OK(kvkeep_close(cache));
        CHECK_EQUAL(completions.count, 2);
        CHECK_STATUS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_CLOSED);
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
    pages_begin();
    RUN(a_chunk_is_stored_and_loaded_elsewhere);
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
