// Backends that fail, lie or hang: wrong bytes never come back, and nothing waits for what never comes.
#include "below.h"
#include "completions.h"

#include <fcntl.h>
#include <sys/stat.h>

static char object_paths[COUNT][4096];
static int object_count;

static int note_object(const char *path, const struct stat *entry, int kind, struct FTW *where) {
    (void)where;
    if (kind == FTW_F && entry->st_size >= SIZE && object_count < COUNT) {
        snprintf(object_paths[object_count++], sizeof object_paths[0], "%s", path);
    }
    return 0;
}

// Closes the cache and lists the files of its objects.
static void close_and_list(const char *directory, int expected) {
    leave();
    object_count = 0;
    CHECK_EQUAL(nftw(directory, note_object, 16, FTW_PHYS), 0);
    CHECK_EQUAL(object_count, expected);
}

static void p7_a_truncated_object_is_a_miss(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_flush(cache, 30000));
    close_and_list(directory, 1);
    CHECK_EQUAL(truncate(object_paths[0], SIZE / 2), 0);
    enter(open_directory(directory, ""));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    CHECK_EQUAL(stats_of(cache).l2_objects, 0);
    // It does not stand in the way of a new one.
    put_below(cache, space, &keys[0], 1, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 1);
    leave();
    remove_directory(directory);
}

static void p7_a_changed_byte_on_disk_is_a_miss(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_flush(cache, 30000));
    close_and_list(directory, 1);
    int file = open(object_paths[0], O_RDWR);
    char byte;
    CHECK(file >= 0);
    CHECK_EQUAL(pread(file, &byte, 1, SIZE - 100), 1);
    byte ^= 0x10;
    CHECK_EQUAL(pwrite(file, &byte, 1, SIZE - 100), 1);
    close(file);
    enter(open_directory(directory, ""));
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, 1);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK_EQUAL(result.failed_keys, 1);
    CHECK(strlen(result.message) > 10);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    // Quarantined: it is not found a second time.
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    leave();
    remove_directory(directory);
}

static void p7_an_object_of_another_model_under_this_name_is_a_miss(void) {
    char *directory = new_directory(), own[4096];
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_flush(cache, 30000));
    close_and_list(directory, 1);
    snprintf(own, sizeof own, "%s", object_paths[0]);
    enter(open_directory(directory, ""));
    put(cache, open_space(cache, "another model"), &keys[0], 1, SIZE);
    OK(kvkeep_flush(cache, 30000));
    close_and_list(directory, 2);
    CHECK_EQUAL(rename(object_paths[strcmp(object_paths[0], own) == 0], own), 0);
    enter(open_directory(directory, ""));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    leave();
    remove_directory(directory);
}

static void p7_flipped_bits_never_reach_a_reader(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.flip=0.5&fault.seed=7"));
    for (uint32_t round = 0; round < 20; round++) {
        keys_of(keys, 100 * round, COUNT);
        put_below(cache, space, keys, COUNT, SIZE);
        kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        if (result.hit_chunks > 0) OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 0, NULL));
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.corruptions >= 20);
    CHECK(stats.prefetch_hit_chunks > 0);
    check_nothing_is_held(cache);
    leave();
}

static void p7_torn_writes_never_reach_a_reader(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.torn=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK(stats_of(cache).corruptions > 0);
    leave();
}

static void p3_a_failed_read_ends_the_prefix_there(void) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.extra_count = 3;
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_error=0.2&fault.seed=3"));
    int fell_short = 0;
    for (uint32_t round = 0; round < 30; round++) {
        keys_of(keys, 100 * round, COUNT);
        put_below(cache, space, keys, COUNT, SIZE);
        kvkeep_job_result result;
        KVKEEP_INIT(&result);
        uint64_t job;
        uint8_t bits;
        OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
        OK(kvkeep_wait_job(cache, job, 60000));
        OK(kvkeep_query_job(cache, job, &result));
        OK(kvkeep_query_bitmap(cache, job, &bits, 1));
        OK(result.status);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        CHECK_EQUAL(bits, (1 << result.hit_chunks) - 1);
        CHECK_EQUAL(stats_of(cache).l1_shares, 4 * result.hit_chunks);
        fell_short += result.hit_chunks < COUNT;
        if (result.hit_chunks > 0) {
            check_held(cache, session, keys, result.hit_chunks);
            OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 3, NULL));
        }
        OK(kvkeep_release_job(cache, job));
        check_nothing_is_held(cache);
        OK(kvkeep_clear(cache, space, 0, NULL));
        CHECK_EQUAL(stats_of(cache).l1_used_bytes, 0);
    }
    CHECK(fell_short > 0);
    CHECK(stats_of(cache).load_failures > 0);
    leave();
}

static void failed_writes_are_retried_then_dropped(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.store_error=0.5&fault.seed=5"));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 60000));
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.store_retries > 0);
    CHECK_EQUAL(stats.stores + stats.stores_dropped, COUNT);
    CHECK_EQUAL(stats.writes_pending, 0);
    for (int i = 0; i < COUNT; i++) CHECK(is_ready(cache, space, &keys[i]));
    leave();
    // Each is tried four times.
    enter(open_l2(4 * MIB, "fault:memory:?fault.store_error=1&breaker_errors=0"));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 60000));
    stats = stats_of(cache);
    CHECK_EQUAL(stats.store_retries, 3 * COUNT);
    CHECK_EQUAL(stats.stores, 0);
    CHECK_EQUAL(stats.stores_dropped, COUNT);
    leave();
}

// Loads that never come: what is known before them, and what can be done about them.
static uint64_t submit_hanging(uint32_t policy, uint32_t deadline_ms, kvkeep_callback callback, void *userdata) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.policy = policy;
    options.deadline_ms = deadline_ms;
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, callback, userdata));
    return job;
}

static void p10_lookup_never_waits_for_loading(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    uint64_t job = submit_hanging(KVKEEP_PREFETCH_POLICY_WAIT, 0, NULL, NULL);
    uint32_t chunks = 0;
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    AWAIT(kvkeep_query_lookup_hits(cache, job, &chunks) == KVKEEP_OK);
    CHECK_EQUAL(chunks, COUNT);
    CHECK_STATUS(kvkeep_query_job(cache, job, &result), KVKEEP_PENDING);
    uint8_t bits;
    CHECK_STATUS(kvkeep_query_bitmap(cache, job, &bits, 1), KVKEEP_PENDING);
    // Everything else goes on meanwhile.
    kvkeep_key other = key_of(500);
    put(cache, space, &other, 1, SIZE);
    CHECK(is_ready(cache, space, &other));
    OK(kvkeep_cancel_job(cache, job));
    OK(kvkeep_wait_job(cache, job, 60000));
    OK(kvkeep_query_job(cache, job, &result));
    CHECK_STATUS(result.status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_close(cache));
}

static void p4_a_hung_backend_does_not_hold_a_job_past_its_deadline(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, 2, SIZE);
    struct completions effort = NO_COMPLETIONS, strict = NO_COMPLETIONS;
    submit_hanging(KVKEEP_PREFETCH_POLICY_BEST_EFFORT, 50, note_completion, &effort);
    kvkeep_completion completion = await_completions(&effort, 1);
    OK(completion.status);
    CHECK_EQUAL(completion.hit_chunks, 2);
    OK(kvkeep_finish_read(cache, session, keys, 2, 0, NULL));
    submit_hanging(KVKEEP_PREFETCH_POLICY_DEADLINE, 50, note_completion, &strict);
    completion = await_completions(&strict, 1);
    CHECK_STATUS(completion.status, KVKEEP_ERR_TIMEOUT);
    CHECK_EQUAL(completion.hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(effort.count, 1);
    CHECK_EQUAL(strict.count, 1);
}

static void p4_a_hung_backend_is_fenced_at_its_deadline(void) {
    const char *url = "fault:memory:?fault.load_hang=1";
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    options.backend_timeout_ms = 100;
    enter(open_with(&options));
    put_below(cache, space, keys, COUNT, SIZE);
    struct completions completions = NO_COMPLETIONS;
    submit_hanging(KVKEEP_PREFETCH_POLICY_WAIT, 0, note_completion, &completions);
    kvkeep_completion completion = await_completions(&completions, 1);
    OK(completion.status);
    CHECK_EQUAL(completion.hit_chunks, 0);
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.backend_timeouts > 0);
    kvkeep_backend_state backend;
    size_t backends = 0;
    OK(kvkeep_query_backends(cache, &backend, 1, &backends));
    CHECK_EQUAL(backend.health, KVKEEP_BACKEND_FENCED);
    CHECK(strstr(backend.message, "deadline") != NULL);
    CHECK(backend.load_busy_us >= 100000);
    CHECK_EQUAL(stats.l1_shares, 0);
    // P2: the backend may still write there, so the memory stays locked.
    CHECK(stats.l1_locked_bytes >= SIZE);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(completions.count, 1);
}

static void p4_close_does_not_wait_for_a_hung_load(void) {
    const char *url = "fault:memory:?fault.load_hang=1";
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    options.backend_timeout_ms = 200;
    enter(open_with(&options));
    put_below(cache, space, keys, COUNT, SIZE);
    struct completions completions = NO_COMPLETIONS;
    submit_hanging(KVKEEP_PREFETCH_POLICY_WAIT, 0, note_completion, &completions);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(completions.count, 1);
    CHECK(completions.last.status == KVKEEP_ERR_CANCELLED || completions.last.status == KVKEEP_OK);
}

int main(void) {
    watchdog();
    RUN(p7_a_truncated_object_is_a_miss);
    RUN(p7_a_changed_byte_on_disk_is_a_miss);
    RUN(p7_an_object_of_another_model_under_this_name_is_a_miss);
    RUN(p7_flipped_bits_never_reach_a_reader);
    RUN(p7_torn_writes_never_reach_a_reader);
    RUN(p3_a_failed_read_ends_the_prefix_there);
    RUN(failed_writes_are_retried_then_dropped);
    RUN(p10_lookup_never_waits_for_loading);
    RUN(p4_a_hung_backend_does_not_hold_a_job_past_its_deadline);
    RUN(p4_a_hung_backend_is_fenced_at_its_deadline);
    RUN(p4_close_does_not_wait_for_a_hung_load);
    return 0;
}
