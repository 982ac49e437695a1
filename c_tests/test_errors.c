// P6: bad input is a status with a message a person understands, and nothing changes.
#include "refused.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/mount.h>
#include <sys/stat.h>

#define HUGE_COUNT ((size_t)1 << 40)
#define INVENTED_ID 123456789

static int32_t statuses[4];
static kvkeep_key_state states[4];

static void p6_null_pointers(void) {
    setup();
    kvkeep_options options = quiet_options(MIB);
    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    space_options.model = "model";
    uint64_t number;
    size_t length;
    kvkeep_completion completion;
    kvkeep_event event;
    FAILS(kvkeep_open(NULL, &cache), KVKEEP_ERR_INVALID, "options is NULL");
    FAILS(kvkeep_open(&options, NULL), KVKEEP_ERR_INVALID, "cache is NULL");
    options.backend_count = 1;
    FAILS(kvkeep_open(&options, &cache), KVKEEP_ERR_INVALID, "backend_urls is NULL");
    const char *no_url = NULL;
    options.backend_urls = &no_url;
    FAILS(kvkeep_open(&options, &cache), KVKEEP_ERR_INVALID, "backend_urls");
    FAILS(kvkeep_open_space(cache, NULL, &number), KVKEEP_ERR_INVALID, "options is NULL");
    FAILS(kvkeep_open_space(cache, &space_options, NULL), KVKEEP_ERR_INVALID, "space is NULL");
    space_options.model = NULL;
    FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID, "model is NULL");
    FAILS(kvkeep_add_backend(cache, NULL, NULL), KVKEEP_ERR_INVALID, "url is NULL");
    FAILS(kvkeep_begin_session(cache, space, NULL, NULL), KVKEEP_ERR_INVALID, "session is NULL");
    FAILS(kvkeep_append_tokens(cache, session, NULL, 4, &number), KVKEEP_ERR_INVALID, "tokens is NULL");
    FAILS(kvkeep_get_session_keys(cache, session, 0, 4, 0, 1, 1, NULL, 4), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_reserve_write(cache, session, NULL, 4, sizes, 0, views), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_reserve_write(cache, session, keys, 4, NULL, 0, views), KVKEEP_ERR_INVALID, "sizes is NULL");
    FAILS(kvkeep_reserve_write(cache, session, keys, 4, sizes, 0, NULL), KVKEEP_ERR_INVALID, "views is NULL");
    FAILS(kvkeep_finish_write(cache, session, NULL, 4, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_abort_write(cache, session, NULL, 4, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_finish_write_and_reserve_read(cache, session, NULL, 4, 0, views), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_finish_write_and_reserve_read(cache, session, &keys[2], 1, 0, NULL), KVKEEP_ERR_INVALID,
          "views is NULL");
    FAILS(kvkeep_reserve_read(cache, session, NULL, 4, 0, views), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_reserve_read(cache, session, keys, 4, 0, NULL), KVKEEP_ERR_INVALID, "views is NULL");
    FAILS(kvkeep_finish_read(cache, session, NULL, 4, 0, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_get_views(cache, session, NULL, 4, views), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_get_views(cache, session, keys, 4, NULL), KVKEEP_ERR_INVALID, "views is NULL");
    FAILS(kvkeep_touch(cache, space, NULL, 4, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_query_keys(cache, space, NULL, 4, states), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_query_keys(cache, space, keys, 4, NULL), KVKEEP_ERR_INVALID, "states is NULL");
    FAILS(kvkeep_retain(cache, space, NULL, 4, 50, 1000, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_evict(cache, space, NULL, 4, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_delete(cache, space, NULL, 4, statuses), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_submit_prefetch(cache, session, NULL, 4, NULL, &number, NULL, NULL), KVKEEP_ERR_INVALID,
          "keys is NULL");
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 4, NULL, NULL, NULL, NULL), KVKEEP_ERR_INVALID, "job is NULL");
    FAILS(kvkeep_query_lookup_hits(cache, 1, NULL), KVKEEP_ERR_INVALID, "chunks is NULL");
    FAILS(kvkeep_query_job(cache, 1, NULL), KVKEEP_ERR_INVALID, "result is NULL");
    FAILS(kvkeep_query_bitmap(cache, 1, NULL, 8), KVKEEP_ERR_INVALID, "bitmap is NULL");
    FAILS(kvkeep_get_event_fd(cache, NULL), KVKEEP_ERR_INVALID, "fd is NULL");
    FAILS(kvkeep_take_completions(cache, NULL, 1, &length), KVKEEP_ERR_INVALID, "completions is NULL");
    FAILS(kvkeep_take_completions(cache, &completion, 1, NULL), KVKEEP_ERR_INVALID, "count is NULL");
    FAILS(kvkeep_read_events(cache, NULL, &event, 1, &length), KVKEEP_ERR_INVALID, "next_sequence is NULL");
    FAILS(kvkeep_read_events(cache, &number, NULL, 1, &length), KVKEEP_ERR_INVALID, "events is NULL");
    FAILS(kvkeep_read_events(cache, &number, &event, 1, NULL), KVKEEP_ERR_INVALID, "count is NULL");
    FAILS(kvkeep_query_stats(cache, NULL), KVKEEP_ERR_INVALID, "stats is NULL");
    FAILS(kvkeep_query_space(cache, space, NULL), KVKEEP_ERR_INVALID, "usage is NULL");
    length = 77;
    FAILS(kvkeep_get_metrics(cache, NULL, 10, &length), KVKEEP_ERR_INVALID, "buffer is NULL");
    CHECK(length == 77);
    FAILS(kvkeep_get_metrics(cache, NULL, 0, NULL), KVKEEP_ERR_INVALID, "length is NULL");
    FAILS(kvkeep_explain_key(cache, space, NULL, NULL, 0, &length), KVKEEP_ERR_INVALID, "key is NULL");
    FAILS(kvkeep_explain_session(cache, session, NULL, 0, NULL), KVKEEP_ERR_INVALID, "length is NULL");
    teardown();
}

// What every function says of a handle that is not open.
static void check_all_closed(kvkeep *closed) {
    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    space_options.model = "model";
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    kvkeep_space_usage usage;
    KVKEEP_INIT(&usage);
    kvkeep_completion completion;
    kvkeep_event event;
    uint64_t number;
    uint32_t tokens[4] = {1, 2, 3, 4}, chunks;
    uint8_t bits[8];
    int32_t fd;
    size_t length;
    char text[8];
#define CLOSED(call) FAILS(call, KVKEEP_ERR_CLOSED, "not open")
    CLOSED(kvkeep_open_space(closed, &space_options, &number));
    CLOSED(kvkeep_add_backend(closed, "memory:", &number));
    CLOSED(kvkeep_remove_backend(closed, 1));
    CLOSED(kvkeep_flush(closed, 1));
    CLOSED(kvkeep_begin_session(closed, 1, NULL, &number));
    CLOSED(kvkeep_end_session(closed, 1));
    CLOSED(kvkeep_abort_session(closed, 1));
    CLOSED(kvkeep_renew_session(closed, 1));
    CLOSED(kvkeep_set_quota(closed, 1, 0));
    kvkeep_session_state state_of_session;
    KVKEEP_INIT(&state_of_session);
    CLOSED(kvkeep_query_session(closed, 1, &state_of_session));
    void *base;
    CLOSED(kvkeep_close_space(closed, 1));
    CLOSED(kvkeep_get_arena(closed, &base, &length));
    CLOSED(kvkeep_query_backends(closed, NULL, 0, &length));
    CLOSED(kvkeep_query_prefix_lengths(closed, 1, NULL, 0, &length));
    CLOSED(kvkeep_append_tokens(closed, 1, tokens, 4, &number));
    CLOSED(kvkeep_get_session_keys(closed, 1, 0, 1, 0, 1, 1, keys, 1));
    CLOSED(kvkeep_reserve_write(closed, 1, keys, 4, sizes, 0, views));
    CLOSED(kvkeep_finish_write(closed, 1, keys, 4, NULL));
    CLOSED(kvkeep_abort_write(closed, 1, keys, 4, NULL));
    CLOSED(kvkeep_finish_write_and_reserve_read(closed, 1, keys, 4, 0, views));
    CLOSED(kvkeep_reserve_read(closed, 1, keys, 4, 0, views));
    CLOSED(kvkeep_finish_read(closed, 1, keys, 4, 0, NULL));
    CLOSED(kvkeep_finish_read_tokens(closed, 1, 0, 16, 0, 1, 1, 0, NULL));
    CLOSED(kvkeep_get_views(closed, 1, keys, 4, views));
    CLOSED(kvkeep_touch(closed, 1, keys, 4, NULL));
    CLOSED(kvkeep_query_keys(closed, 1, keys, 4, states));
    CLOSED(kvkeep_retain(closed, 1, keys, 4, 1, 1, NULL));
    CLOSED(kvkeep_evict(closed, 1, keys, 4, NULL));
    CLOSED(kvkeep_delete(closed, 1, keys, 4, NULL));
    CLOSED(kvkeep_clear(closed, 1, 0, NULL));
    CLOSED(kvkeep_submit_prefetch(closed, 1, keys, 4, NULL, &number, NULL, NULL));
    CLOSED(kvkeep_query_lookup_hits(closed, 1, &chunks));
    CLOSED(kvkeep_query_job(closed, 1, &result));
    CLOSED(kvkeep_query_bitmap(closed, 1, bits, 8));
    CLOSED(kvkeep_wait_job(closed, 1, 1));
    CLOSED(kvkeep_cancel_job(closed, 1));
    CLOSED(kvkeep_release_job(closed, 1));
    CLOSED(kvkeep_get_event_fd(closed, &fd));
    CLOSED(kvkeep_take_completions(closed, &completion, 1, &length));
    CLOSED(kvkeep_read_events(closed, &number, &event, 1, &length));
    CLOSED(kvkeep_query_stats(closed, &stats));
    CLOSED(kvkeep_query_space(closed, 1, &usage));
    CLOSED(kvkeep_get_metrics(closed, text, 8, &length));
    CLOSED(kvkeep_explain_key(closed, 1, keys, text, 8, &length));
    CLOSED(kvkeep_explain_session(closed, 1, text, 8, &length));
#undef CLOSED
}

static void p6_handles_that_are_not_open(void) {
    kvkeep *once = open_l1(MIB);
    OK(kvkeep_close(once));
    check_all_closed(once);
    check_all_closed(NULL);
    int here;
    check_all_closed((kvkeep *)(void *)&here);
    check_all_closed((kvkeep *)(uintptr_t)0x1008);
    check_all_closed((kvkeep *)UINTPTR_MAX);
}

static void p6_counts(void) {
    setup();
    uint64_t number;
    uint32_t token = 1;
    const size_t bad[] = {0, (size_t)KVKEEP_KEYS_MAX + 1, HUGE_COUNT, SIZE_MAX};
    for (int i = 0; i < 4; i++) {
        size_t count = bad[i];
        const char *words = count == 0 ? "is 0" : "KVKEEP_KEYS_MAX";
        FAILS(kvkeep_append_tokens(cache, session, &token, count, &number), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_reserve_write(cache, session, keys, count, sizes, 0, views), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_finish_write(cache, session, keys, count, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_abort_write(cache, session, keys, count, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_finish_write_and_reserve_read(cache, session, keys, count, 0, views), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_reserve_read(cache, session, keys, count, 0, views), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_finish_read(cache, session, keys, count, 0, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_get_views(cache, session, keys, count, views), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_touch(cache, space, keys, count, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_query_keys(cache, space, keys, count, states), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_retain(cache, space, keys, count, 50, 1000, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_evict(cache, space, keys, count, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_delete(cache, space, keys, count, statuses), KVKEEP_ERR_INVALID, words);
        FAILS(kvkeep_submit_prefetch(cache, session, keys, count, NULL, &number, NULL, NULL), KVKEEP_ERR_INVALID,
              words);
    }
    FAILS(kvkeep_get_session_keys(cache, session, 0, 0, 0, 1, 1, keys, 0), KVKEEP_ERR_INVALID, "is 0");
    FAILS(kvkeep_get_session_keys(cache, session, 0, UINT64_MAX, 0, UINT32_MAX, UINT32_MAX, keys, 4),
          KVKEEP_ERR_INVALID, "key_count is 4");
    FAILS(kvkeep_get_session_keys(cache, session, 0, 4, 0, 1, 1, keys, 4), KVKEEP_ERR_INVALID, "chunk");
    FAILS(kvkeep_get_session_keys(cache, session, UINT64_MAX, 4, 0, 1, 1, keys, 4), KVKEEP_ERR_INVALID, "chunk");
    const uint64_t none[2] = {0, UINT64_MAX};
    CHECK_STATUS(kvkeep_reserve_write(cache, session, &keys[3], 1, &none[0], 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(views[0].status, KVKEEP_ERR_INVALID);
    CHECK(views[0].data == NULL);
    CHECK_STATUS(kvkeep_reserve_write(cache, session, &keys[3], 1, &none[1], 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(views[0].status, KVKEEP_ERR_NO_MEMORY);
    teardown();
}

static void p6_extra_count(void) {
    setup();
    const int32_t bad[] = {128, -1, INT32_MAX, INT32_MIN};
    for (int i = 0; i < 4; i++) {
        kvkeep_prefetch_options options;
        KVKEEP_INIT(&options);
        options.extra_count = bad[i];
        uint64_t job;
        FAILS(kvkeep_reserve_read(cache, session, keys, 1, bad[i], views), KVKEEP_ERR_INVALID, "extra_count is");
        FAILS(kvkeep_finish_read(cache, session, keys, 1, bad[i], statuses), KVKEEP_ERR_INVALID, "extra_count is");
        FAILS(kvkeep_finish_write_and_reserve_read(cache, session, &keys[2], 1, bad[i], views), KVKEEP_ERR_INVALID,
              "extra_count is");
        FAILS(kvkeep_finish_read_tokens(cache, session, 0, 16, 0, 1, 1, bad[i], NULL), KVKEEP_ERR_INVALID,
              "extra_count is");
        FAILS(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
              "extra_count is");
    }
    teardown();
}

static void p6_ids_never_given(void) {
    setup();
    const uint64_t bad[] = {0, INVENTED_ID, UINT64_MAX};
    for (int i = 0; i < 3; i++) {
        uint64_t id = bad[i], number;
        uint32_t token = 1, chunks;
        uint8_t bits[8];
        kvkeep_job_result result;
        KVKEEP_INIT(&result);
        kvkeep_space_usage usage;
        KVKEEP_INIT(&usage);
        char text[64];
        size_t length;
#define UNKNOWN(call, words) FAILS(call, KVKEEP_ERR_NOT_FOUND, words)
        UNKNOWN(kvkeep_begin_session(cache, id, NULL, &number), "space");
        UNKNOWN(kvkeep_touch(cache, id, keys, 4, statuses), "space");
        UNKNOWN(kvkeep_query_keys(cache, id, keys, 4, states), "space");
        UNKNOWN(kvkeep_retain(cache, id, keys, 4, 1, 1, statuses), "space");
        UNKNOWN(kvkeep_evict(cache, id, keys, 4, statuses), "space");
        UNKNOWN(kvkeep_delete(cache, id, keys, 4, statuses), "space");
        UNKNOWN(kvkeep_query_space(cache, id, &usage), "space");
        UNKNOWN(kvkeep_explain_key(cache, id, keys, text, sizeof text, &length), "space");
        UNKNOWN(kvkeep_remove_backend(cache, id), "backend");
        UNKNOWN(kvkeep_end_session(cache, id), "session");
        UNKNOWN(kvkeep_renew_session(cache, id), "session");
        kvkeep_session_state state;
        KVKEEP_INIT(&state);
        UNKNOWN(kvkeep_query_session(cache, id, &state), "session");
        UNKNOWN(kvkeep_abort_session(cache, id), "session");
        UNKNOWN(kvkeep_append_tokens(cache, id, &token, 1, &number), "session");
        UNKNOWN(kvkeep_get_session_keys(cache, id, 0, 1, 0, 1, 1, keys, 1), "session");
        UNKNOWN(kvkeep_reserve_write(cache, id, keys, 4, sizes, 0, views), "session");
        UNKNOWN(kvkeep_finish_write(cache, id, keys, 4, statuses), "session");
        UNKNOWN(kvkeep_abort_write(cache, id, keys, 4, statuses), "session");
        UNKNOWN(kvkeep_finish_write_and_reserve_read(cache, id, keys, 4, 0, views), "session");
        UNKNOWN(kvkeep_reserve_read(cache, id, keys, 4, 0, views), "session");
        UNKNOWN(kvkeep_finish_read(cache, id, keys, 4, 0, statuses), "session");
        UNKNOWN(kvkeep_finish_read_tokens(cache, id, 0, 16, 0, 1, 1, 0, NULL), "session");
        UNKNOWN(kvkeep_get_views(cache, id, keys, 4, views), "session");
        UNKNOWN(kvkeep_submit_prefetch(cache, id, keys, 4, NULL, &number, NULL, NULL), "session");
        UNKNOWN(kvkeep_query_lookup_hits(cache, id, &chunks), "job");
        UNKNOWN(kvkeep_query_job(cache, id, &result), "job");
        UNKNOWN(kvkeep_query_bitmap(cache, id, bits, 8), "job");
        UNKNOWN(kvkeep_wait_job(cache, id, 1), "job");
        UNKNOWN(kvkeep_cancel_job(cache, id), "job");
        UNKNOWN(kvkeep_release_job(cache, id), "job");
        if (id != 0) {
            UNKNOWN(kvkeep_clear(cache, id, 0, NULL), "space");
            UNKNOWN(kvkeep_explain_session(cache, id, text, sizeof text, &length), "session");
        }
#undef UNKNOWN
    }
    keys_of(keys, 1, 4);
    teardown();
}

// Sizes that no version of an option struct of `size` bytes has: below any, beyond any, and none that its alignment allows.
static uint32_t bad_size(uint32_t size, int i) {
    const uint32_t bad[] = {0, 3, 8, 9, size - 4, size - 1, size + 1, size + 4, 1u << 17, UINT32_MAX};
    return i < (int)(sizeof bad / sizeof *bad) ? bad[i] : size;
}

static void p6_struct_sizes(void) {
    setup();
    for (int i = 0; i < 10; i++) {
        kvkeep_options options = quiet_options(MIB);
        kvkeep_space_options space_options;
        kvkeep_session_options session_options;
        kvkeep_prefetch_options prefetch_options;
        kvkeep_pool_options pool_options;
        kvkeep_transfer_options transfer_options;
        kvkeep_job_result result;
        kvkeep_stats stats;
        kvkeep_space_usage usage;
#define OF_BAD_SIZE(s) (KVKEEP_INIT(&(s)), (s).struct_size = bad_size((s).struct_size, i))
        OF_BAD_SIZE(space_options);
        OF_BAD_SIZE(session_options);
        OF_BAD_SIZE(prefetch_options);
        OF_BAD_SIZE(pool_options);
        OF_BAD_SIZE(transfer_options);
        OF_BAD_SIZE(result);
        OF_BAD_SIZE(stats);
        OF_BAD_SIZE(usage);
#undef OF_BAD_SIZE
        options.struct_size = bad_size(options.struct_size, i);
        space_options.model = "model";
        uint64_t number;
        const int32_t block = 0;
        kvkeep *other = NULL;
        FAILS(kvkeep_open(&options, &other), KVKEEP_ERR_INVALID, "struct_size is");
        CHECK(other == NULL);
        FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_begin_session(cache, space, &session_options, &number), KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_submit_prefetch(cache, session, keys, 1, &prefetch_options, &number, NULL, NULL),
              KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_open_pool(cache, space, &pool_options, &number), KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_submit_store(cache, 1, session, keys, 1, &block, 1, &transfer_options, &number, NULL, NULL),
              KVKEEP_ERR_INVALID, "struct_size is");
        // Of a result, a size is only bad where it holds not even the size, or cannot be one.
        if (stats.struct_size >= 8 && stats.struct_size <= 1u << 16) {
            FAILS(kvkeep_query_job(cache, INVENTED_ID, &result), KVKEEP_ERR_NOT_FOUND, "job");
            OK(kvkeep_query_space(cache, space, &usage));
            continue;
        }
        FAILS(kvkeep_query_job(cache, INVENTED_ID, &result), KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_query_stats(cache, &stats), KVKEEP_ERR_INVALID, "struct_size is");
        FAILS(kvkeep_query_space(cache, space, &usage), KVKEEP_ERR_INVALID, "struct_size is");
    }
    // A newer caller's struct, with a field that this library does not know: options must leave it 0, results keep it.
    struct {
        kvkeep_session_options known;
        uint64_t unknown;
    } newer_options;
    struct {
        kvkeep_space_usage known;
        uint64_t unknown;
    } newer_usage;
    KVKEEP_INIT(&newer_options.known);
    KVKEEP_INIT(&newer_usage.known);
    newer_options.known.struct_size = sizeof newer_options;
    newer_usage.known.struct_size = sizeof newer_usage;
    newer_options.unknown = newer_usage.unknown = 7;
    uint64_t number;
    FAILS(kvkeep_begin_session(cache, space, &newer_options.known, &number), KVKEEP_ERR_VERSION, "does not know");
    newer_options.unknown = 0;
    OK(kvkeep_begin_session(cache, space, &newer_options.known, &number));
    OK(kvkeep_end_session(cache, number));
    OK(kvkeep_query_space(cache, space, &newer_usage.known));
    CHECK_EQUAL(newer_usage.unknown, 7);
    kvkeep_space_usage usage;
    KVKEEP_INIT(&usage);
    usage.abi_version++;
    FAILS(kvkeep_query_space(cache, space, &usage), KVKEEP_ERR_VERSION, "abi_version is");
    teardown();
}

static void p6_arrays_that_overlap(void) {
    setup();
    union {
        kvkeep_key keys[8];
        kvkeep_view views[8];
        uint64_t sizes[8];
        int32_t statuses[8];
        kvkeep_key_state states[8];
    } shared;
    memset(&shared, 0, sizeof shared);
    for (int i = 0; i < 4; i++) shared.keys[i] = keys[i];
    FAILS(kvkeep_reserve_read(cache, session, shared.keys, 4, 0, shared.views), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_get_views(cache, session, shared.keys, 4, shared.views), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_reserve_write(cache, session, shared.keys, 4, sizes, 0, shared.views), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_reserve_write(cache, session, keys, 4, shared.sizes, 0, shared.views), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_finish_write(cache, session, shared.keys, 4, shared.statuses), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_abort_write(cache, session, shared.keys, 4, shared.statuses), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_finish_read(cache, session, shared.keys, 4, 0, shared.statuses), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_query_keys(cache, space, shared.keys, 4, shared.states), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_evict(cache, space, shared.keys, 4, shared.statuses + 3), KVKEEP_ERR_INVALID, "overlap");
    FAILS(kvkeep_delete(cache, space, shared.keys, 4, shared.statuses + 3), KVKEEP_ERR_INVALID, "overlap");
    CHECK(memcmp(shared.keys, keys, sizeof keys) == 0);
    teardown();
}

static void p6_pointers_that_are_not_aligned(void) {
    setup();
    _Alignas(8) char bytes[256];
    FAILS(kvkeep_reserve_read(cache, session, (kvkeep_key *)(void *)(bytes + 1), 1, 0, views), KVKEEP_ERR_INVALID,
          "not aligned");
    FAILS(kvkeep_reserve_read(cache, session, keys, 1, 0, (kvkeep_view *)(void *)(bytes + 4)), KVKEEP_ERR_INVALID,
          "not aligned");
    FAILS(kvkeep_query_keys(cache, space, keys, 1, (kvkeep_key_state *)(void *)(bytes + 4)), KVKEEP_ERR_INVALID,
          "not aligned");
    teardown();
}

static void p6_the_same_key_twice_in_a_batch(void) {
    setup();
    kvkeep_key twice[2] = {keys[3], keys[3]};
    CHECK_STATUS(kvkeep_reserve_write(cache, session, twice, 2, sizes, 0, views), KVKEEP_PARTIAL);
    OK(views[0].status);
    CHECK_STATUS(views[1].status, KVKEEP_ERR_EXISTS);
    CHECK_STATUS(kvkeep_abort_write(cache, session, twice, 2, statuses), KVKEEP_PARTIAL);
    OK(statuses[0]);
    CHECK_STATUS(statuses[1], KVKEEP_ERR_NOT_FOUND);
    kvkeep_key held[2] = {keys[0], keys[0]};
    CHECK_STATUS(kvkeep_finish_read(cache, session, held, 2, 0, statuses), KVKEEP_PARTIAL);
    OK(statuses[0]);
    CHECK_STATUS(statuses[1], KVKEEP_ERR_NOT_HELD);
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, views));
    teardown();
}

static void p6_a_directory_that_may_not_be_used(void) {
    char *directory = new_directory(), url[5000];
    const char *urls[] = {url};
    kvkeep_options options = quiet_options(MIB);
    options.backend_urls = urls;
    options.backend_count = 1;
    snprintf(url, sizeof url, "fs://%s/below?capacity=1GiB", directory);
    // Modes do not stop root: it is nobody for a while.
    const uid_t user = geteuid();
    CHECK_EQUAL(chmod(directory, 0500), 0);
    if (user == 0) CHECK_EQUAL(seteuid(65534), 0);
    kvkeep *other = NULL;
    kvkeep_status status = kvkeep_open(&options, &other);
    if (user == 0) CHECK_EQUAL(seteuid(0), 0);
    FAILS(status, KVKEEP_ERR_PERMISSION, directory);
    CHECK(strstr(kvkeep_last_error(), "let this user") != NULL);
    CHECK(other == NULL);
    CHECK_EQUAL(chmod(directory, 0700), 0);
    snprintf(url, sizeof url, "%s/file", directory);
    int file = open(url, O_CREAT | O_WRONLY, 0600);
    CHECK(file >= 0);
    close(file);
    snprintf(url, sizeof url, "fs://%s/file?capacity=1GiB", directory);
    refuse_open(&options, KVKEEP_ERR_IO, directory);
    CHECK(strstr(kvkeep_last_error(), "name another place") != NULL);
    other = open_l1(MIB);
    FAILS(kvkeep_add_backend(other, url, NULL), KVKEEP_ERR_IO, directory);
    OK(kvkeep_close(other));
    remove_directory(directory);
}

static void p9_a_full_disk_is_a_bound(void) {
    char *directory = new_directory(), url[5000];
    if (mount("tmpfs", directory, "tmpfs", 0, "size=1m") != 0) {
        skipped(__func__, "no tmpfs can be mounted");
        remove_directory(directory);
        return;
    }
    snprintf(url, sizeof url, "fs://%s/objects?capacity=1GiB%s", directory, fs_parameters(""));
    kvkeep *small = open_l2(16 * MIB, url);
    uint64_t model = open_space(small, "model");
    kvkeep_key many[64];
    keys_of(many, 100, 64);
    put(small, model, many, 64, 64 * KIB);
    OK(kvkeep_flush(small, 60000));
    kvkeep_stats stats = stats_of(small);
    // The newest take the place of the oldest.
    CHECK_EQUAL(stats.stores, 64);
    CHECK_EQUAL(stats.stores_dropped, 0);
    CHECK(stats.l2_objects > 0 && stats.l2_objects < 16);
    CHECK_EQUAL(stats.l2_objects + stats.l2_evictions, 64);
    CHECK_EQUAL(stats.writes_pending, 0);
    for (int i = 0; i < 64; i++) CHECK(is_ready(small, model, &many[i]));
    OK(kvkeep_clear(small, model, 0, NULL));
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = KVKEEP_PREFETCH_EACH;
    uint64_t reader = begin(small, model), job;
    OK(kvkeep_submit_prefetch(small, reader, many, 64, &options, &job, NULL, NULL));
    OK(kvkeep_wait_job(small, job, 30000));
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_query_job(small, job, &result));
    CHECK(result.hit_chunks <= stats.l2_objects && result.hit_chunks >= stats_of(small).l2_objects);
    CHECK_EQUAL(stats_of(small).corruptions, 0);
    OK(kvkeep_end_session(small, reader));
    OK(kvkeep_close(small));
    // The kernel lets go of a closed ring's files a moment later.
    AWAIT(umount(directory) == 0 || errno != EBUSY);
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(p6_null_pointers);
    RUN(p6_handles_that_are_not_open);
    RUN(p6_counts);
    RUN(p6_extra_count);
    RUN(p6_ids_never_given);
    RUN(p6_struct_sizes);
    RUN(p6_arrays_that_overlap);
    RUN(p6_pointers_that_are_not_aligned);
    RUN(p6_the_same_key_twice_in_a_batch);
    RUN(p6_a_directory_that_may_not_be_used);
    RUN(p9_a_full_disk_is_a_bound);
    return 0;
}
