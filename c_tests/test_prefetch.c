// Jobs over memory and one or two backends: what counts as a hit, and what is held after it.
#include "jobs.h"

static void hits_in_l1_are_done_when_submit_returns(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put(cache, space, keys, 8, SIZE);
    uint64_t job = submit(keys, 8, NULL);
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_query_job(cache, job, &result));
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 8);
    CHECK_EQUAL(result.lookup_chunks, 8);
    CHECK_EQUAL(result.tier_keys[0], 8);
    CHECK_EQUAL(result.tier_keys[1], 0);
    CHECK_EQUAL(result.loaded_bytes, 0);
    check_hits(job, keys, "11111111", 1);
    teardown();
}

static void hits_below_are_loaded(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put_below(cache, space, keys, 8, SIZE);
    put(cache, space, keys, 2, SIZE);
    uint64_t job = submit(keys, 8, NULL);
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 8);
    CHECK_EQUAL(result.tier_keys[0], 2);
    CHECK_EQUAL(result.tier_keys[1], 6);
    CHECK_EQUAL(result.loaded_bytes, 6 * SIZE);
    CHECK_EQUAL(result.failed_keys, 0);
    CHECK(result.message[0] == '\0');
    CHECK(result.total_us >= result.lookup_us);
    check_hits(job, keys, "11111111", 1);
    OK(kvkeep_finish_read(cache, session, keys, 8, 0, NULL));
    for (int i = 0; i < 8; i++) CHECK(is_ready(cache, space, &keys[i]));
    teardown();
}

static void nothing_anywhere_is_no_hit(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    uint64_t job = submit(keys, 4, NULL);
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 0);
    check_hits(job, keys, "0000", 1);
    teardown();
}

static void a_gap_ends_a_prefix_and_nothing_beyond_is_loaded(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put_below(cache, space, keys, 5, SIZE);
    put_below(cache, space, &keys[6], 2, SIZE);
    uint64_t job = submit(keys, 8, NULL);
    kvkeep_job_result result = result_of(job);
    CHECK_EQUAL(result.hit_chunks, 5);
    CHECK_EQUAL(stats_of(cache).loads, 5);
    check_hits(job, keys, "11111000", 1);
    teardown();
}

static void a_prefix_mixes_tiers(void) {
    setup();
    OK(kvkeep_add_backend(cache, "memory:", NULL));
    kvkeep_key keys[6];
    keys_of(keys, 1, 6);
    put_below(cache, space, keys, 6, SIZE);
    // Present above the gap in no backend's way: what is in L1 is not loaded again.
    put(cache, space, &keys[1], 1, SIZE);
    put(cache, space, &keys[4], 1, SIZE);
    uint64_t job = submit(keys, 6, NULL);
    kvkeep_job_result result = result_of(job);
    CHECK_EQUAL(result.hit_chunks, 6);
    CHECK_EQUAL(result.tier_keys[0], 2);
    CHECK_EQUAL(result.tier_keys[1] + result.tier_keys[2], 4);
    check_hits(job, keys, "111111", 1);
    teardown();
}

static void a_window_needs_only_its_last_chunks(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put_below(cache, space, &keys[3], 3, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.mode = KVKEEP_PREFETCH_WINDOW;
    options.window_chunks = 2;
    uint64_t job = submit(keys, 8, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 6);
    check_hits(job, keys, "00001100", 1);
    OK(kvkeep_finish_read(cache, session, &keys[4], 2, 0, NULL));
    options.window_chunks = 4;
    job = submit(keys, 8, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 0);
    check_hits(job, keys, "00000000", 1);
    // A length below the window needs all of it.
    put_below(cache, space, keys, 1, SIZE);
    job = submit(keys, 8, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 1);
    check_hits(job, keys, "10000000", 1);
    teardown();
}

static void any_takes_each_chunk_for_itself(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put_below(cache, space, &keys[1], 1, SIZE);
    put_below(cache, space, &keys[4], 3, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.mode = KVKEEP_PREFETCH_EACH;
    uint64_t job = submit(keys, 8, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 4);
    check_hits(job, keys, "01001110", 1);
    teardown();
}

static void a_chunk_is_a_hit_when_all_its_objects_are(void) {
    setup();
    kvkeep_key keys[16];
    ranked_keys_of(keys, 1, 4, 4);
    put_below(cache, space, keys, 11, SIZE);
    put_below(cache, space, &keys[12], 4, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.objects_per_chunk = 4;
    uint64_t job = submit(keys, 16, &options);
    kvkeep_job_result result = result_of(job);
    CHECK_EQUAL(result.hit_chunks, 2);
    CHECK_EQUAL(result.lookup_chunks, 2);
    check_hits(job, keys, "1111111100000000", 1);
    teardown();
}

static void a_hybrid_model_continues_where_every_group_can(void) {
    setup();
    kvkeep_key keys[16], state[3], full[8];
    for (int i = 0; i < 16; i++) {
        keys[i] = key_of((uint32_t)i / 2);
        keys[i].group = (uint32_t)i % 2;
        if (i % 2 == 0) full[i / 2] = keys[i];
    }
    // Full attention has the chunks 0 to 6, the sliding window only 3 to 5.
    for (int i = 0; i < 3; i++) state[i] = keys[2 * (3 + i) + 1];
    put_below(cache, space, full, 7, SIZE);
    put_below(cache, space, state, 3, SIZE);
    kvkeep_group_rule rule = {.group = 1, .mode = KVKEEP_PREFETCH_WINDOW, .window_chunks = 2};
    kvkeep_prefetch_options options = plain_options();
    options.objects_per_chunk = 2;
    options.group_rules = &rule;
    options.group_rule_count = 1;
    uint64_t job = submit(keys, 16, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 6);
    check_hits(job, keys, "1010101011110000", 1);
    CHECK_EQUAL(stats_of(cache).loads, 8);
    teardown();
}

static void p3_one_job_serves_all_workers_of_an_mla_model(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_below(cache, space, keys, 3, SIZE);
    put(cache, space, keys, 1, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.extra_count = kvkeep_extra_count(4, 1);
    uint64_t job = submit(keys, 4, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 3);
    check_hits(job, keys, "1110", 4);
    for (int worker = 0; worker < 4; worker++) {
        check_held(cache, session, keys, 3);
        OK(kvkeep_finish_read(cache, session, keys, 3, 0, NULL));
    }
    check_nothing_is_held(cache);
    int32_t statuses[3];
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, 3, 0, statuses), KVKEEP_PARTIAL);
    for (int i = 0; i < 3; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_NOT_HELD);
    teardown();
}

static void temporary_loads_are_dropped_after_reading(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_below(cache, space, keys, 4, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.lifetime = KVKEEP_LIFETIME_TEMPORARY;
    uint64_t job = submit(keys, 4, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 4);
    check_hits(job, keys, "1111", 1);
    OK(kvkeep_finish_read(cache, session, keys, 4, 0, NULL));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    teardown();
}

static void a_bitmap_must_have_room(void) {
    setup();
    kvkeep_key keys[9];
    keys_of(keys, 1, 9);
    uint64_t job = submit(keys, 9, NULL);
    uint8_t bits[2];
    OK(kvkeep_wait_job(cache, job, 60000));
    FAILS(kvkeep_query_bitmap(cache, job, bits, 1), KVKEEP_ERR_INVALID, "bitmap");
    OK(kvkeep_query_bitmap(cache, job, bits, 2));
    teardown();
}

static void p9_what_does_not_fit_l1_ends_the_prefix(void) {
    const char *url = "memory:";
    cache = open_l2(MIB, url);
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_key keys[12], held[8];
    keys_of(keys, 1, 12);
    keys_of(held, 100, 8);
    put_below(cache, space, keys, 12, 64 * KIB);
    uint64_t holder = begin(cache, space);
    kvkeep_view views[8];
    put_in(cache, holder, held, 8, 64 * KIB);
    OK(kvkeep_reserve_read(cache, holder, held, 8, 0, views));
    uint64_t job = submit(keys, 12, NULL);
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.lookup_chunks, 12);
    CHECK(result.hit_chunks >= 7 && result.hit_chunks <= 8);
    CHECK(result.failed_keys > 0);
    check_held(cache, session, keys, result.hit_chunks);
    CHECK_EQUAL(stats_of(cache).l1_shares, 8 + result.hit_chunks);
    for (int i = 0; i < 8; i++) CHECK(holds(&held[i], &views[i]));
    teardown();
}

static void a_job_polls_for_what_comes_late(void) {
    setup();
    kvkeep_key keys[8];
    ranked_keys_of(keys, 1, 4, 2);
    kvkeep_prefetch_options options = plain_options();
    options.objects_per_chunk = 2;
    options.lookup_timeout_ms = 60000;
    // Only the commits can answer it in time.
    options.lookup_interval_ms = 3600000;
    uint64_t job = submit(keys, 8, &options);
    uint32_t chunks;
    CHECK_STATUS(kvkeep_query_lookup_hits(cache, job, &chunks), KVKEEP_PENDING);
    // A chunk counts when it is whole, in whatever order its objects come.
    for (int i = 7; i >= 0; i--) put(cache, space, &keys[i], 1, SIZE);
    CHECK_EQUAL(result_of(job).hit_chunks, 4);
    check_hits(job, keys, "11111111", 1);
    teardown();
}

static void polling_ends_with_its_time(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_below(cache, space, keys, 2, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 30;
    options.lookup_interval_ms = 5;
    uint64_t job = submit(keys, 4, &options);
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 2);
    CHECK(result.lookup_us >= 30000);
    check_hits(job, keys, "1100", 1);
    teardown();
}

static uint64_t submit_hybrid(const kvkeep_key *keys) {
    kvkeep_prefetch_options options = plain_options();
    kvkeep_group_rule rule = {.group = 1, .mode = KVKEEP_PREFETCH_WINDOW, .window_chunks = 1};
    options.objects_per_chunk = 2;
    options.group_rules = &rule;
    options.group_rule_count = 1;
    return submit(keys, 12, &options);
}

// Six chunks of a group whose prefix counts and of one whose last chunk counts, which only the second, fourth and sixth have.
static void check_lengths(const char *url, const uint32_t *wanted, size_t count) {
    setup_l2(url);
    kvkeep_key keys[12], stored[8];
    size_t some = 0;
    for (uint32_t i = 0; i < 12; i++) {
        keys[i] = key_of(i / 2);
        keys[i].group = i % 2;
        if (i < 10 && (i % 2 == 0 || i / 2 % 2 == 1)) stored[some++] = keys[i];
    }
    put_below(cache, space, stored, some, SIZE);
    uint64_t job = submit_hybrid(keys);
    OK(kvkeep_wait_job(cache, job, 60000));
    uint32_t lengths[8];
    size_t found = 99;
    if (count > 0) CHECK_STATUS(kvkeep_query_prefix_lengths(cache, job, NULL, 0, &found), KVKEEP_PARTIAL);
    memset(lengths, 0, sizeof lengths);
    OK(kvkeep_query_prefix_lengths(cache, job, lengths, 8, &found));
    CHECK_EQUAL(found, count);
    for (size_t i = 0; i < 8; i++) CHECK_EQUAL(lengths[i], i < count ? wanted[i] : 0);
    if (count > 1) {
        CHECK_STATUS(kvkeep_query_prefix_lengths(cache, job, &lengths[4], 1, &found), KVKEEP_PARTIAL);
        CHECK_EQUAL(found, count);
        CHECK_EQUAL(lengths[4], wanted[0]);
    }
    CHECK_EQUAL(result_of(job).hit_chunks, count > 0 ? wanted[0] : 0);
    FAILS(kvkeep_query_prefix_lengths(cache, job, NULL, 1, &found), KVKEEP_ERR_INVALID, "lengths is NULL");
    FAILS(kvkeep_query_prefix_lengths(cache, job, lengths, 8, NULL), KVKEEP_ERR_INVALID, "length_count is NULL");
    OK(kvkeep_release_job(cache, job));
    FAILS(kvkeep_query_prefix_lengths(cache, job, lengths, 8, &found), KVKEEP_ERR_NOT_FOUND, "job");
    kvkeep_prefetch_options options = plain_options();
    options.mode = KVKEEP_PREFETCH_EACH;
    job = submit(keys, 12, &options);
    OK(kvkeep_wait_job(cache, job, 60000));
    FAILS(kvkeep_query_prefix_lengths(cache, job, lengths, 8, &found), KVKEEP_ERR_INVALID, "EACH");
    teardown();
}

static void every_length_that_can_be_continued_is_told(void) {
    const uint32_t all[] = {4, 2};
    check_lengths("memory:", all, 2);
    check_lengths("fault:memory:?fault.load_error=1", NULL, 0);
}

int main(void) {
    watchdog();
    RUN(hits_in_l1_are_done_when_submit_returns);
    RUN(hits_below_are_loaded);
    RUN(nothing_anywhere_is_no_hit);
    RUN(a_gap_ends_a_prefix_and_nothing_beyond_is_loaded);
    RUN(a_prefix_mixes_tiers);
    RUN(a_window_needs_only_its_last_chunks);
    RUN(any_takes_each_chunk_for_itself);
    RUN(a_chunk_is_a_hit_when_all_its_objects_are);
    RUN(a_hybrid_model_continues_where_every_group_can);
    RUN(p3_one_job_serves_all_workers_of_an_mla_model);
    RUN(temporary_loads_are_dropped_after_reading);
    RUN(a_bitmap_must_have_room);
    RUN(p9_what_does_not_fit_l1_ends_the_prefix);
    RUN(a_job_polls_for_what_comes_late);
    RUN(polling_ends_with_its_time);
    RUN(every_length_that_can_be_continued_is_told);
    return 0;
}
