// Several backends, and backends that fail: which is asked, which is loaded from, and what each tells of itself.
#include "below.h"

static kvkeep *open_urls(const char *const *urls, size_t count) {
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = urls;
    options.backend_count = count;
    return open_with(&options);
}

static kvkeep_backend_state state_of(size_t place) {
    kvkeep_backend_state states[8];
    size_t count = 0;
    memset(states, 0, sizeof states);
    OK(kvkeep_query_backends(cache, states, 8, &count));
    CHECK(place >= 1 && place <= count);
    return states[place - 1];
}

// Ends what the session holds, so that a prefetch begins with an empty L1.
static void let_go(const kvkeep_job_result *result) {
    if (result->hit_chunks > 0) OK(kvkeep_finish_read(cache, session, keys, result->hit_chunks, 0, NULL));
    OK(kvkeep_clear(cache, space, 0, NULL));
}

static void a_backend_that_fails_in_a_row_is_asked_again_by_one_request(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_error=1&fault.first=8&breaker_errors=4&breaker_pause_ms=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.failed_keys, COUNT);
    CHECK_EQUAL(state_of(1).breaker_opened, 1);
    for (;;) {
        result = prefetch(KVKEEP_PREFETCH_PREFIX);
        if (result.hit_chunks == COUNT) break;
        // Not asked, and nothing promised.
        CHECK_EQUAL(result.lookup_chunks, 0);
        pause_briefly();
    }
    let_go(&result);
    CHECK_EQUAL(state_of(1).health, KVKEEP_BACKEND_GOOD);
    CHECK_EQUAL(state_of(1).breaker_opened, 1);
    leave();
}

static void a_load_without_memory_is_no_probe(void) {
    enter(open_l2(MIB, "fault:memory:?fault.load_error=1&fault.first=1&breaker_errors=1&breaker_pause_ms=1"));
    put_below(cache, space, keys, 1, SIZE);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(cache, job).failed_keys, 1);
    // All of L1 is staged: the object is found, as soon as the pause is over, and cannot be loaded.
    uint64_t writer = begin(cache, space);
    kvkeep_key other = key_of(500);
    stage_in(cache, writer, &other, 1, MIB, KVKEEP_LIFETIME_CACHED);
    kvkeep_job_result result;
    do {
        pause_briefly();
        OK(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL));
        result = answer_of(cache, job);
        CHECK_EQUAL(result.hit_chunks, 0);
    } while (result.lookup_chunks == 0);
    OK(kvkeep_abort_session(cache, writer));
    OK(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL));
    result = answer_of(cache, job);
    CHECK_EQUAL(result.hit_chunks, 1);
    let_go(&result);
    leave();
}

static void an_open_backend_is_not_asked_and_says_so(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_error=1&breaker_errors=8&breaker_pause_ms=3600000"));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).failed_keys, COUNT);
    kvkeep_backend_state state = state_of(1);
    CHECK_EQUAL(state.health, KVKEEP_BACKEND_OPEN);
    CHECK(strstr(state.message, "after 8 failures in a row: the fault backend made this load fail") != NULL);
    uint64_t asked = state.asked_keys;
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    CHECK_EQUAL(state_of(1).asked_keys, asked);
    char text[1 << 16];
    size_t length = 0;
    OK(kvkeep_get_metrics(cache, text, sizeof text, &length));
    CHECK(strstr(text, "kvkeep_backend_open{backend=\"1\",scheme=\"fault\"} 1\n") != NULL);
    CHECK(strstr(text, "kvkeep_backend_opened_total{backend=\"1\",scheme=\"fault\"} 1\n") != NULL);
    // Loads fail, writes do not.
    kvkeep_key other = key_of(500);
    put_below(cache, space, &other, 1, SIZE);
    CHECK_EQUAL(stats_of(cache).stores, COUNT + 1);
    leave();
}

static void writes_that_fail_in_a_row_end_no_loads(void) {
    enter(open_l2(4 * MIB, "memory:"));
    uint64_t second = 0;
    OK(kvkeep_add_backend(cache, "fault:memory:?fault.store_error=1&breaker_errors=4&breaker_pause_ms=3600000",
                          &second));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(state_of(2).health, KVKEEP_BACKEND_OPEN);
    CHECK(strstr(state_of(2).message, "gets no writes") != NULL);
    CHECK_EQUAL(state_of(1).health, KVKEEP_BACKEND_GOOD);
    uint64_t fenced = stats_of(cache).dropped_fenced;
    kvkeep_key other = key_of(500);
    put(cache, space, &other, 1, SIZE);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).dropped_fenced, fenced + 1);
    // It is still asked for what it has, and the other one goes on.
    uint64_t asked = state_of(2).asked_keys;
    kvkeep_key absent = key_of(900);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, &absent, 1, &options, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(cache, job).hit_chunks, 0);
    CHECK_EQUAL(state_of(2).asked_keys, asked + 1);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.writes_asked, stats.stores + stats.stores_already + stats.stores_dropped + stats.writes_pending);
    leave();
}

static void a_backend_has_a_deadline_of_its_own(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1&deadline_ms=1000"));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK_EQUAL(state_of(1).health, KVKEEP_BACKEND_FENCED);
    CHECK_EQUAL(stats_of(cache).backend_timeouts, COUNT);
    // Removing it has the hanging requests answered.
    OK(kvkeep_remove_backend(cache, 1));
    leave();
}

static void an_object_is_loaded_from_the_faster_backend(void) {
    const char *urls[] = {"fault:memory:?fault.load_delay=1&fault.delay_ms=50", "memory:"};
    enter(open_urls(urls, 2));
    put_below(cache, space, keys, COUNT, SIZE);
    // The first is above the other, and nothing was loaded yet: it is tried, and found slow.
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    let_go(&result);
    for (;;) {
        result = prefetch(KVKEEP_PREFETCH_PREFIX);
        CHECK_EQUAL(result.hit_chunks, COUNT);
        let_go(&result);
        if (result.tier_keys[2] == COUNT) break;
    }
    CHECK(state_of(1).load_latency_us + (uint64_t)COUNT * SIZE * 1000000 / state_of(1).load_bytes_per_s >= 50000);
    CHECK(state_of(2).load_bytes_per_s > 0);
    CHECK_EQUAL(state_of(2).loads, COUNT);
    CHECK(state_of(2).found_keys >= COUNT);
    leave();
}

static void nothing_is_pinned_and_all_is_completed(void) {
    AWAIT(stats_of(cache).l2_pins == 0);
    CHECK_EQUAL(stats_of(cache).jobs_completed, stats_of(cache).jobs_submitted);
}

// The first is asked first, has all, and gives nothing.
static void test_elsewhere(const char *first, const char *second, int32_t health) {
    const char *urls[] = {first, second, "memory:?write=off"};
    enter(open_urls(urls, 3));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[2], COUNT);
    CHECK_EQUAL(result.failed_keys, 0);
    CHECK_EQUAL(result.loaded_bytes, COUNT * SIZE);
    CHECK_EQUAL(state_of(1).loads, 0);
    CHECK_EQUAL(state_of(1).health, health);
    CHECK_EQUAL(state_of(2).loads, COUNT);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.load_failures + stats.corruptions + stats.backend_timeouts, COUNT);
    CHECK_EQUAL(stats.loads, COUNT);
    nothing_is_pinned_and_all_is_completed();
    let_go(&result);
    OK(kvkeep_remove_backend(cache, 1));
    leave();
}

static void an_object_that_one_backend_cannot_give_is_loaded_from_another(void) {
    const char *others[] = {"memory:", "memory:?lookup=slow"};
    for (size_t i = 0; i < 2; i++) {
        test_elsewhere("fault:memory:?fault.load_error=1", others[i], KVKEEP_BACKEND_GOOD);
        test_elsewhere("fault:memory:?fault.flip=1", others[i], KVKEEP_BACKEND_GOOD);
        test_elsewhere("fault:memory:?fault.load_hang=1&deadline_ms=1000", others[i], KVKEEP_BACKEND_FENCED);
        test_elsewhere("fault:memory:?fault.load_error=1&breaker_errors=2&breaker_pause_ms=3600000", others[i],
                       KVKEEP_BACKEND_OPEN);
    }
}

static void an_object_that_no_backend_can_give_fails_once(void) {
    const char *urls[] = {"fault:memory:?fault.load_error=1", "fault:memory:?fault.load_error=1&lookup=slow",
                          "memory:?write=off&lookup=slow"};
    enter(open_urls(urls, 3));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK_EQUAL(result.failed_keys, COUNT);
    CHECK(strstr(result.message, "the fault backend made this load fail") != NULL);
    CHECK_EQUAL(stats_of(cache).load_failures, 2 * COUNT);
    nothing_is_pinned_and_all_is_completed();
    leave();
}

static void a_job_that_is_cancelled_while_it_looks_elsewhere_holds_nothing(void) {
    const char *urls[] = {"fault:memory:?fault.load_error=0.5&fault.delay=0.5&fault.delay_ms=2",
                          "fault:memory:?fault.lookup_hang=0.02&fault.load_error=0.3&lookup=slow&deadline_ms=5"};
    enter(open_urls(urls, 2));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = KVKEEP_PREFETCH_EACH;
    for (uint32_t round = 0; round < 200; round++) {
        uint64_t reader = begin(cache, space), jobs[2];
        for (size_t i = 0; i < 2; i++) {
            OK(kvkeep_submit_prefetch(cache, reader, keys, COUNT, &options, &jobs[i], NULL, NULL));
        }
        if (round % 2 == 0) OK(kvkeep_cancel_job(cache, jobs[0]));
        kvkeep_job_result result = answer_of(cache, jobs[1]);
        CHECK_EQUAL(result.hit_chunks + result.failed_keys, result.lookup_chunks);
        OK(kvkeep_end_session(cache, reader));
        OK(kvkeep_clear(cache, space, 0, NULL));
    }
    CHECK(stats_of(cache).load_failures > 0);
    // Their hanging requests are answered.
    OK(kvkeep_remove_backend(cache, 2));
    nothing_is_pinned_and_all_is_completed();
    leave();
}

static void each_backend_gets_its_part(void) {
    const char *urls[] = {"memory:", "memory:?write=off", "memory:?write=after-uses&write_uses=3"};
    enter(open_urls(urls, 3));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(state_of(1).objects, COUNT);
    CHECK_EQUAL(state_of(2).objects + state_of(3).objects, 0);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.writes_asked, COUNT);
    CHECK_EQUAL(stats.stores_dropped, 0);
    // Two keys are used by two more sessions: the storing one was the first.
    for (int i = 0; i < 2; i++) {
        CHECK_EQUAL(state_of(3).objects, 0);
        uint64_t reader = begin(cache, space);
        kvkeep_view views[2];
        OK(kvkeep_reserve_read(cache, reader, keys, 2, 0, views));
        OK(kvkeep_end_session(cache, reader));
        OK(kvkeep_flush(cache, 30000));
    }
    CHECK_EQUAL(state_of(3).objects, 2);
    CHECK_EQUAL(state_of(2).objects, 0);
    stats = stats_of(cache);
    CHECK_EQUAL(stats.writes_asked, COUNT + 2);
    CHECK_EQUAL(stats.stores, COUNT + 2);
    leave();
}

static void a_backend_alone_is_written_to_after_uses(void) {
    enter(open_l2(4 * MIB, "memory:?write=after-uses"));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(state_of(1).objects, 0);
    uint64_t reader = begin(cache, space);
    kvkeep_view view;
    OK(kvkeep_reserve_read(cache, reader, keys, 1, 0, &view));
    OK(kvkeep_end_session(cache, reader));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(state_of(1).objects, 1);
    kvkeep_key_state state;
    OK(kvkeep_query_keys(cache, space, keys, 1, &state));
    CHECK_EQUAL(state.flags & KVKEEP_KEY_STORED, KVKEEP_KEY_STORED);
    CHECK_EQUAL(stats_of(cache).stores_dropped, 0);
    leave();
}

static void what_a_slow_backend_gave_is_promoted(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    leave();
    char slow[5000];
    snprintf(slow, sizeof slow, "fs://%s?capacity=1GiB%s", directory, fs_parameters(""));
    const char *urls[] = {"memory:?promote=on", slow, "memory:?write=off"};
    enter(open_urls(urls, 3));
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.tier_keys[2], COUNT);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(state_of(1).objects, COUNT);
    CHECK_EQUAL(state_of(1).stores, COUNT);
    CHECK_EQUAL(state_of(3).objects, 0);
    let_go(&result);
    // From there it is loaded the next time, and not promoted again.
    result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(state_of(1).stores, COUNT);
    CHECK_EQUAL(state_of(2).stores, 0);
    leave();
    remove_directory(directory);
}

static void writes_that_take_long_are_dropped_and_loads_are_not(void) {
    const char *urls[] = {"memory:", "fault:memory:?fault.delay=1&fault.delay_ms=30&store_latency_max_ms=5"};
    enter(open_urls(urls, 2));
    for (uint32_t round = 0; stats_of(cache).dropped_slow == 0; round++) {
        keys_of(keys, 100 * round, COUNT);
        put(cache, space, keys, COUNT, SIZE);
        OK(kvkeep_flush(cache, 30000));
        OK(kvkeep_clear(cache, space, 0, NULL));
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores_dropped, stats.dropped_slow);
    CHECK_EQUAL(state_of(2).stores_dropped, stats.dropped_slow);
    CHECK_EQUAL(state_of(1).stores_dropped, 0);
    CHECK(state_of(2).stores > 0);
    CHECK_EQUAL(stats.writes_asked, stats.stores + stats.stores_dropped);
    // What it has is loaded, where the other has it no more.
    keys_of(keys, 0, COUNT);
    OK(kvkeep_remove_backend(cache, 1));
    CHECK(prefetch(KVKEEP_PREFETCH_EACH).hit_chunks > 0);
    leave();
}

static char key_file[4200];

static void write_keys(const char *directory, const char *digits) {
    snprintf(key_file, sizeof key_file, "%s/keys", directory);
    FILE *file = fopen(key_file, "w");
    CHECK(file != NULL);
    for (const char *digit = digits; *digit; digit++) {
        for (int i = 0; i < 64; i++) fputc(*digit, file);
        fputc('\n', file);
    }
    CHECK_EQUAL(fclose(file), 0);
}

static void enter_encrypted(const char *directory, int with_key) {
    char parameters[4300] = "";
    if (with_key) snprintf(parameters, sizeof parameters, "&key_file=%s", key_file);
    char objects[4200];
    snprintf(objects, sizeof objects, "%s/objects", directory);
    enter(open_directory(objects, parameters));
}

static void objects_are_encrypted_and_keys_rotate(void) {
    char directory[4096];
    snprintf(directory, sizeof directory, "%s", new_directory());
    write_keys(directory, "a");
    enter_encrypted(directory, 1);
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK(strstr(state_of(1).url, key_file) == NULL);
    leave();
    // Without a key, or with another, all are misses; none is corrupt, and none goes.
    for (int with_key = 0; with_key < 2; with_key++) {
        write_keys(directory, "b");
        enter_encrypted(directory, with_key);
        result = prefetch(KVKEEP_PREFETCH_PREFIX);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        CHECK_EQUAL(result.hit_chunks, 0);
        CHECK_EQUAL(stats_of(cache).load_failures, COUNT);
        CHECK_EQUAL(stats_of(cache).corruptions, 0);
        CHECK_EQUAL(state_of(1).objects, COUNT);
        leave();
    }
    write_keys(directory, "ba");
    enter_encrypted(directory, 1);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    // What cannot be decrypted is replaced when it is stored again.
    write_keys(directory, "c");
    enter_encrypted(directory, 1);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(stats_of(cache).stores, COUNT);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    remove_directory(directory);
}

static void flipped_bits_of_encrypted_objects_never_reach_a_reader(void) {
    char directory[4096], url[5000];
    snprintf(directory, sizeof directory, "%s", new_directory());
    write_keys(directory, "a");
    snprintf(url, sizeof url, "fault:memory:?fault.flip=0.5&fault.seed=7&key_file=%s", key_file);
    enter(open_l2(4 * MIB, url));
    for (uint32_t round = 0; round < 10; round++) {
        keys_of(keys, 100 * round, COUNT);
        put_below(cache, space, keys, COUNT, SIZE);
        kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        if (result.hit_chunks > 0) OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 0, NULL));
    }
    CHECK(stats_of(cache).corruptions >= 10);
    CHECK(stats_of(cache).prefetch_hit_chunks > 0);
    check_nothing_is_held(cache);
    leave();
    remove_directory(directory);
}

static void a_wrong_parameter_is_named(void) {
    kvkeep *opened = NULL;
    const char *url = "memory:?breaker_errors=often";
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID,
          "breaker_errors of a backend: \"often\" is no whole number");
    url = "memory:?breaker_pause_ms=0";
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "0 is no pause");
    url = "memory:?write=sometimes";
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "\"sometimes\" is not known");
    url = "memory:?key_file=/nowhere/keys";
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_IO, "the key file /nowhere/keys");
    url = "memory:?key_env=KVKEEP_NO_SUCH_KEY";
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "KVKEEP_NO_SUCH_KEY is not set");
    url = "memory:?write_uses=2";
    FAILS(kvkeep_open(&options, &opened), KVKEEP_ERR_INVALID, "write_uses of a backend");
}

int main(void) {
    watchdog();
    RUN(a_backend_that_fails_in_a_row_is_asked_again_by_one_request);
    RUN(a_load_without_memory_is_no_probe);
    RUN(an_open_backend_is_not_asked_and_says_so);
    RUN(writes_that_fail_in_a_row_end_no_loads);
    RUN(a_backend_has_a_deadline_of_its_own);
    RUN(an_object_is_loaded_from_the_faster_backend);
    RUN(an_object_that_one_backend_cannot_give_is_loaded_from_another);
    RUN(an_object_that_no_backend_can_give_fails_once);
    RUN(a_job_that_is_cancelled_while_it_looks_elsewhere_holds_nothing);
    RUN(each_backend_gets_its_part);
    RUN(a_backend_alone_is_written_to_after_uses);
    RUN(what_a_slow_backend_gave_is_promoted);
    RUN(writes_that_take_long_are_dropped_and_loads_are_not);
    RUN(objects_are_encrypted_and_keys_rotate);
    RUN(flipped_bits_of_encrypted_objects_never_reach_a_reader);
    RUN(a_wrong_parameter_is_named);
    return 0;
}
