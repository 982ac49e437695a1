// What leaves memory when it is full, and what does not.
#include "l1.h"

static void p9_a_full_l1_evicts_in_the_call(void) {
    setup(MIB);
    for (uint32_t i = 0; i < 200; i++) {
        kvkeep_key key = key_of(i);
        put(cache, space, &key, 1, 64 * KIB);
        kvkeep_stats stats = stats_of(cache);
        CHECK(stats.l1_used_bytes <= stats.l1_bytes);
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.l1_objects >= 15);
    CHECK_EQUAL(stats.l1_objects + stats.evictions, 200);
    CHECK_EQUAL(stats.evicted_bytes, stats.evictions * 64 * KIB);
    CHECK_EQUAL(stats.refusals, 0);
    kvkeep_key oldest = key_of(0), newest = key_of(199);
    CHECK(!is_ready(cache, space, &oldest));
    CHECK(is_ready(cache, space, &newest));
    teardown();
}

static void p9_a_quota_bounds_its_space_and_evicts_within_it(void) {
    setup(4 * MIB);
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "bounded";
    options.quota_bytes = 256 * KIB;
    uint64_t bounded;
    OK(kvkeep_open_space(cache, &options, &bounded));
    kvkeep_key mine = key_of(1);
    put(cache, space, &mine, 1, 64 * KIB);
    for (uint32_t i = 0; i < 20; i++) {
        kvkeep_key key = key_of(100 + i);
        put(cache, bounded, &key, 1, 64 * KIB);
    }
    CHECK_EQUAL(stats_of(cache).l1_objects, 1 + 4);
    CHECK(is_ready(cache, space, &mine));
    uint64_t holder = begin(cache, bounded);
    kvkeep_key keys[5];
    kvkeep_view views[5];
    uint64_t sizes[5];
    keys_of(keys, 200, 5);
    for (int i = 0; i < 5; i++) sizes[i] = 64 * KIB;
    CHECK_STATUS(kvkeep_reserve_write(cache, holder, keys, 5, sizes, 0, views), KVKEEP_PARTIAL);
    for (int i = 0; i < 4; i++) OK(views[i].status);
    CHECK_STATUS(views[4].status, KVKEEP_ERR_QUOTA);
    CHECK(is_ready(cache, space, &mine));
    teardown();
}

// Fills L1 with new objects until something of `keys` is gone.
static int first_evicted(const kvkeep_key *keys, int count) {
    static uint32_t fillers = 1000;
    for (;;) {
        kvkeep_key filler = key_of(fillers++);
        put(cache, space, &filler, 1, 64 * KIB);
        for (int i = 0; i < count; i++) {
            char text[2048];
            size_t length;
            CHECK(kvkeep_explain_key(cache, space, &keys[i], text, sizeof text, &length) >= 0);
            if (strstr(text, "\"absent\"")) return i;
        }
    }
}

static void touch_keeps_longer(void) {
    setup(MIB);
    kvkeep_key keys[3];
    int32_t statuses[3];
    keys_of(keys, 1, 3);
    for (int i = 0; i < 2; i++) put(cache, space, &keys[i], 1, 64 * KIB);
    CHECK_STATUS(kvkeep_touch(cache, space, keys, 3, statuses), KVKEEP_PARTIAL);
    OK(statuses[0]);
    OK(statuses[1]);
    CHECK_STATUS(statuses[2], KVKEEP_ERR_NOT_FOUND);
    // The last key is touched first, so that the first is the most recent.
    CHECK_EQUAL(first_evicted(keys, 2), 1);
    teardown();
}

static void a_prefix_dies_from_its_tail(void) {
    setup(MIB);
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_in(cache, session, keys, 4, 64 * KIB);
    OK(kvkeep_end_session(cache, session));
    CHECK_EQUAL(first_evicted(keys, 4), 3);
    CHECK_EQUAL(first_evicted(keys, 3), 2);
    teardown();
}

static void retain_is_a_bias_and_no_pin(void) {
    setup(MIB);
    kvkeep_key keys[3];
    int32_t statuses[3];
    keys_of(keys, 1, 3);
    for (int i = 0; i < 2; i++) put(cache, space, &keys[i], 1, 64 * KIB);
    CHECK_STATUS(kvkeep_retain(cache, space, &keys[0], 1, 100, 60000, statuses), KVKEEP_OK);
    CHECK_STATUS(kvkeep_retain(cache, space, &keys[2], 1, 100, 60000, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_NOT_FOUND);
    CHECK_EQUAL(first_evicted(keys, 2), 1);
    // It goes too in the end.
    CHECK_EQUAL(first_evicted(keys, 1), 0);
    teardown();
}

static void evict_drops_from_l1_alone_whatever_the_policy_says(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(MIB);
    options.eviction_policy = "none";
    options.backend_urls = &url;
    options.backend_count = 1;
    cache = open_with(&options);
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_key keys[5];
    kvkeep_view view;
    int32_t statuses[5];
    keys_of(keys, 1, 5);
    put_in(cache, session, keys, 3, 4096);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_retain(cache, space, keys, 3, 100, 60000, NULL));
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, &view));
    stage_in(cache, session, &keys[3], 1, 4096, KVKEEP_LIFETIME_CACHED);
    CHECK_STATUS(kvkeep_evict(cache, space, keys, 5, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_LOCKED);
    OK(statuses[1]);
    OK(statuses[2]);
    CHECK_STATUS(statuses[3], KVKEEP_ERR_NOT_FOUND);
    CHECK_STATUS(statuses[4], KVKEEP_ERR_NOT_FOUND);
    check_held(cache, session, keys, 1);
    CHECK(!is_ready(cache, space, &keys[1]) && !is_ready(cache, space, &keys[2]));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.evictions, 2);
    CHECK_EQUAL(stats.evicted_bytes, 2 * 4096);
    CHECK_EQUAL(stats.stores_dropped, 0);
    CHECK_EQUAL(stats.l1_objects, 1);
    CHECK_EQUAL(stats.l1_staged, 1);
    CHECK_EQUAL(stats.l2_objects, 3);
    OK(kvkeep_finish_read(cache, session, keys, 1, 0, NULL));
    OK(kvkeep_evict(cache, space, keys, 1, NULL));
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 3, NULL, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(cache, job).tier_keys[1], 3);
    check_held(cache, session, keys, 3);
    teardown();
}

static void what_is_evicted_before_it_is_written_is_lost_and_counted(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(MIB);
    options.store_mode = KVKEEP_STORE_WRITE_BACK;
    options.backend_urls = &url;
    options.backend_count = 1;
    cache = open_with(&options);
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 4096);
    OK(kvkeep_evict(cache, space, &key, 1, NULL));
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores_dropped, 1);
    CHECK_EQUAL(stats.l1_objects + stats.l2_objects, 0);
    teardown();
}

static void p2_evict_spares_what_is_being_written(void) {
    cache = open_l2(MIB, "fault:memory:?fault.store_hang=1");
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_key key = key_of(1);
    int32_t status;
    put_in(cache, session, &key, 1, 4096);
    AWAIT(stats_of(cache).l1_locked_bytes == 4096);
    CHECK_STATUS(kvkeep_evict(cache, space, &key, 1, &status), KVKEEP_PARTIAL);
    CHECK_STATUS(status, KVKEEP_ERR_LOCKED);
    CHECK(is_ready(cache, space, &key));
    OK(kvkeep_remove_backend(cache, 1));
    AWAIT(stats_of(cache).l1_locked_bytes == 0);
    OK(kvkeep_evict(cache, space, &key, 1, NULL));
    teardown();
}

static void policy_none_evicts_nothing(void) {
    kvkeep_options options = quiet_options(MIB);
    options.eviction_policy = "none";
    cache = open_with(&options);
    space = open_space(cache, "model");
    session = begin(cache, space);
    uint32_t stored = 0;
    while (stored < 64) {
        kvkeep_key key = key_of(stored);
        int32_t status = write_status(session, &key, 64 * KIB);
        if (status == KVKEEP_ERR_NO_MEMORY) break;
        OK(status);
        OK(kvkeep_finish_write(cache, session, &key, 1, NULL));
        stored++;
    }
    CHECK(stored >= 15 && stored <= 16);
    CHECK_EQUAL(stats_of(cache).evictions, 0);
    teardown();
}

static void p9_background_eviction_keeps_to_the_watermarks(void) {
    kvkeep_options options;
    KVKEEP_INIT(&options);
    options.l1_bytes = 4 * MIB;
    options.watermark_high_percent = 50;
    options.watermark_low_percent = 25;
    cache = open_with(&options);
    space = open_space(cache, "model");
    kvkeep_key keys[48];
    keys_of(keys, 1, 48);
    put(cache, space, keys, 48, 64 * KIB);
    AWAIT(stats_of(cache).l1_used_bytes <= MIB);
    CHECK(stats_of(cache).l1_used_bytes >= MIB / 2);
    teardown();
}

int main(void) {
    watchdog();
    RUN(p9_a_full_l1_evicts_in_the_call);
    RUN(p9_a_quota_bounds_its_space_and_evicts_within_it);
    RUN(touch_keeps_longer);
    RUN(a_prefix_dies_from_its_tail);
    RUN(retain_is_a_bias_and_no_pin);
    RUN(evict_drops_from_l1_alone_whatever_the_policy_says);
    RUN(what_is_evicted_before_it_is_written_is_lost_and_counted);
    RUN(p2_evict_spares_what_is_being_written);
    RUN(policy_none_evicts_nothing);
    RUN(p9_background_eviction_keeps_to_the_watermarks);
    return 0;
}
