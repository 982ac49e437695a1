// Below memory: when objects are written, and that they are found again.
#include "below.h"

static kvkeep *open_mode(uint32_t store_mode) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(4 * MIB);
    options.store_mode = store_mode;
    options.backend_urls = &url;
    options.backend_count = 1;
    return open_with(&options);
}

static void write_through_writes_what_is_committed(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, COUNT);
    CHECK_EQUAL(stats.l2_objects, COUNT);
    CHECK(stats.stored_bytes >= COUNT * SIZE);
    CHECK_EQUAL(stats.writes_pending, 0);
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).tier_keys[1], COUNT);
    leave();
}

static void what_the_l2_has_is_not_written_again(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, COUNT);
    CHECK_EQUAL(stats.stores_already, COUNT);
    // What was loaded from there is not written back either.
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, COUNT);
    leave();
}

static void write_back_writes_what_is_evicted(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(MIB);
    options.store_mode = KVKEEP_STORE_WRITE_BACK;
    options.backend_urls = &url;
    options.backend_count = 1;
    options.watermark_high_percent = 50;
    options.watermark_low_percent = 25;
    enter(open_with(&options));
    kvkeep_key few = key_of(999);
    put(cache, space, &few, 1, 64 * KIB);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    // Above the high mark when they are committed, whatever eviction did while they were staged.
    put(cache, space, keys, COUNT, 68 * KIB);
    AWAIT(stats_of(cache).l1_used_bytes <= MIB / 4);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, stats.evictions);
    CHECK(stats.stores > 0);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK(result.tier_keys[1] > 0);
    leave();
}

static void after_uses_writes_what_is_read_often(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(4 * MIB);
    options.store_mode = KVKEEP_STORE_AFTER_USES;
    options.store_after_uses = 3;
    options.backend_urls = &url;
    options.backend_count = 1;
    enter(open_with(&options));
    put(cache, space, keys, 2, SIZE);
    for (int use = 1; use <= 3; use++) {
        OK(kvkeep_flush(cache, 30000));
        CHECK_EQUAL(stats_of(cache).stores, 0);
        kvkeep_view view;
        OK(kvkeep_reserve_read(cache, session, &keys[0], 1, 0, &view));
        OK(kvkeep_finish_read(cache, session, &keys[0], 1, 0, NULL));
    }
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 1);
    leave();
}

static void never_writes_nothing(void) {
    enter(open_mode(KVKEEP_STORE_NEVER));
    put(cache, space, keys, COUNT, SIZE);
    for (int i = 0; i < 4; i++) CHECK(is_ready(cache, space, &keys[0]));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    CHECK_EQUAL(stats_of(cache).l2_objects, 0);
    leave();
}

static void temporary_objects_are_never_written(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    kvkeep_view views[COUNT];
    stage_in(cache, session, keys, COUNT, SIZE, KVKEEP_LIFETIME_TEMPORARY);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, keys, COUNT, 0, views));
    OK(kvkeep_finish_read(cache, session, keys, COUNT, 0, NULL));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    leave();
}

static void delete_reaches_the_backends(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    int32_t statuses[COUNT];
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, 2, SIZE);
    // What is being written is locked.
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_delete(cache, space, keys, COUNT - 1, statuses));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_EACH).hit_chunks, 1);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).l2_objects, 1);
    CHECK_STATUS(kvkeep_delete(cache, space, keys, 1, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_NOT_FOUND);
    leave();
}

static void a_removed_backend_is_asked_no_more(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    enter(open_with(&options));
    uint64_t first = 0, second = 0;
    OK(kvkeep_add_backend(cache, "memory:", &first));
    put_below(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_add_backend(cache, "memory:", &second));
    CHECK(first != 0 && second != 0 && first != second);
    OK(kvkeep_remove_backend(cache, first));
    FAILS(kvkeep_remove_backend(cache, first), KVKEEP_ERR_NOT_FOUND, "backend");
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    leave();
}

static void p8_a_restart_finds_the_objects(const char *parameters) {
    char *directory = new_directory();
    enter(open_directory(directory, parameters));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    leave();
    enter(open_directory(directory, parameters));
    CHECK_EQUAL(stats_of(cache).l2_objects, COUNT);
    CHECK(stats_of(cache).l2_bytes >= COUNT * SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    leave();
    remove_directory(directory);
}

static void p8_a_restart_finds_the_objects_any_engine(void) {
    p8_a_restart_finds_the_objects("");
}

static void p8_a_restart_finds_the_objects_thread_pool(void) {
    p8_a_restart_finds_the_objects("&engine=pool");
}

static void sizes_of_every_shape_come_back_from_disk(void) {
    static const uint64_t shapes[COUNT] = {1, 63, 4095, 4096, 4097, 65536, 100001, MIB / 2};
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    for (int i = 0; i < COUNT; i++) put(cache, space, &keys[i], 1, shapes[i]);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    kvkeep_view views[COUNT];
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_get_views(cache, session, keys, COUNT, views));
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(views[i].size, shapes[i]);
    leave();
    remove_directory(directory);
}

static void another_model_finds_nothing(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put_below(cache, space, keys, COUNT, SIZE);
    session = begin(cache, open_space(cache, "another model"));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_EACH).hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 0);
    leave();
    remove_directory(directory);
}

static void two_jobs_that_want_the_same_object_load_it_once(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.delay=1&fault.delay_ms=50"));
    put_below(cache, space, keys, COUNT, SIZE);
    uint64_t other = begin(cache, space), jobs[2];
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, NULL, &jobs[0], NULL, NULL));
    OK(kvkeep_submit_prefetch(cache, other, keys, COUNT, NULL, &jobs[1], NULL, NULL));
    for (int i = 0; i < 2; i++) {
        kvkeep_job_result result;
        KVKEEP_INIT(&result);
        OK(kvkeep_wait_job(cache, jobs[i], 60000));
        OK(kvkeep_query_job(cache, jobs[i], &result));
        CHECK_EQUAL(result.hit_chunks, COUNT);
    }
    check_held(cache, session, keys, COUNT);
    check_held(cache, other, keys, COUNT);
    CHECK_EQUAL(stats_of(cache).loads, COUNT);
    CHECK_EQUAL(stats_of(cache).l1_shares, 2 * COUNT);
    leave();
}

static void drain_says_how_much_is_left(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.delay=1&fault.delay_ms=2000"));
    put(cache, space, keys, COUNT, SIZE);
    FAILS(kvkeep_flush(cache, 1), KVKEEP_ERR_TIMEOUT, "8 writes are left");
    OK(kvkeep_flush(cache, 60000));
    CHECK_EQUAL(stats_of(cache).stores, COUNT);
    leave();
}

static void p9_an_l2_keeps_to_its_capacity(void) {
    enter(open_l2(4 * MIB, "memory:?capacity=256KiB"));
    for (uint32_t i = 0; i < 64; i++) {
        kvkeep_key key = key_of(100 + i);
        put(cache, space, &key, 1, SIZE);
        OK(kvkeep_flush(cache, 30000));
        CHECK(stats_of(cache).l2_bytes <= 256 * KIB);
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.l2_evictions > 0);
    CHECK_EQUAL(stats.l2_objects + stats.l2_evictions, 64);
    leave();
}

static void two_caches_may_share_a_directory(void) {
    char *directory = new_directory();
    kvkeep *reader = open_directory(directory, "");
    enter(open_directory(directory, ""));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    leave();
    enter(reader);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    remove_directory(directory);
}

static void backends_tell_their_state(void) {
    enter(open_l2(4 * MIB, "memory:?capacity=8MiB"));
    uint64_t second = 0;
    OK(kvkeep_add_backend(cache, "fault:memory:?fault.seed=1", &second));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).tier_keys[1], COUNT);
    size_t count = 9;
    CHECK_STATUS(kvkeep_query_backends(cache, NULL, 0, &count), KVKEEP_PARTIAL);
    CHECK_EQUAL(count, 2);
    kvkeep_backend_state states[3];
    memset(states, 0xa5, sizeof states);
    CHECK_STATUS(kvkeep_query_backends(cache, states, 1, &count), KVKEEP_PARTIAL);
    CHECK_EQUAL(count, 2);
    CHECK_EQUAL(states[1].place, 0xa5a5a5a5);
    OK(kvkeep_query_backends(cache, states, 3, &count));
    CHECK_EQUAL(count, 2);
    for (uint32_t i = 0; i < 2; i++) {
        CHECK_EQUAL(states[i].place, i + 1);
        CHECK_EQUAL(states[i].health, KVKEEP_BACKEND_GOOD);
        CHECK(states[i].message[0] == '\0');
        CHECK_EQUAL(states[i].objects, COUNT);
        CHECK_EQUAL(states[i].stores, COUNT);
        CHECK_EQUAL(states[i].stored_bytes, COUNT * SIZE);
        CHECK_EQUAL(states[i].writes_pending, 0);
        CHECK_EQUAL(states[i].loads, i == 0 ? COUNT : 0);
        CHECK_EQUAL(states[i].loaded_bytes, i == 0 ? COUNT * SIZE : 0);
        CHECK_EQUAL(states[i].asked_keys, i == 0 ? COUNT : 0);
        CHECK_EQUAL(states[i].found_keys, states[i].asked_keys);
        CHECK_EQUAL(states[i].breaker_opened, 0);
        for (size_t j = 0; j < 3; j++) CHECK_EQUAL(states[i].reserved[j], 0);
    }
    CHECK_EQUAL(states[1].load_us + states[1].load_busy_us, 0);
    // Loads of this many bytes took a time, which the gauges come near to.
    CHECK(states[0].load_bytes_per_s > 0);
    CHECK_EQUAL(states[0].capacity_bytes, 8 * MIB);
    CHECK_EQUAL(states[1].backend, second);
    CHECK(strcmp(states[0].url, "memory:?capacity=8MiB") == 0);
    CHECK(strcmp(states[1].url, "fault:memory:?fault.seed=1") == 0);
    FAILS(kvkeep_query_backends(cache, NULL, 1, &count), KVKEEP_ERR_INVALID, "backends is NULL");
    FAILS(kvkeep_query_backends(cache, states, 1, NULL), KVKEEP_ERR_INVALID, "backend_count is NULL");
    close_empty(cache);
}

static void a_directory_of_one_process_answers_at_once(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put_below(cache, space, keys, COUNT / 2, SIZE);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    uint64_t job;
    uint32_t chunks;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
    OK(kvkeep_query_lookup_hits(cache, job, &chunks));
    CHECK_EQUAL(chunks, COUNT / 2);
    OK(kvkeep_wait_job(cache, job, 60000));
    leave();
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(write_through_writes_what_is_committed);
    RUN(what_the_l2_has_is_not_written_again);
    RUN(write_back_writes_what_is_evicted);
    RUN(after_uses_writes_what_is_read_often);
    RUN(never_writes_nothing);
    RUN(temporary_objects_are_never_written);
    RUN(delete_reaches_the_backends);
    RUN(a_removed_backend_is_asked_no_more);
    RUN(p8_a_restart_finds_the_objects_any_engine);
    RUN(p8_a_restart_finds_the_objects_thread_pool);
    RUN(sizes_of_every_shape_come_back_from_disk);
    RUN(another_model_finds_nothing);
    RUN(a_directory_of_one_process_answers_at_once);
    RUN(two_jobs_that_want_the_same_object_load_it_once);
    RUN(drain_says_how_much_is_left);
    RUN(p9_an_l2_keeps_to_its_capacity);
    RUN(two_caches_may_share_a_directory);
    RUN(backends_tell_their_state);
    return 0;
}
