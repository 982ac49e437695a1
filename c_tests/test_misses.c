// Why keys are missing: each test keeps its own books, and the report must agree with them.
#include "below.h"

enum { MANY = 256 };

static kvkeep_key many[MANY];

static kvkeep_miss_report report_of(uint64_t of) {
    kvkeep_miss_report report;
    KVKEEP_INIT(&report);
    OK(kvkeep_query_misses(cache, of, &report));
    uint64_t reasons = 0, hits = 0;
    for (int i = 0; i < KVKEEP_MISS_REASONS_MAX; i++) reasons += report.reasons[i];
    for (int i = 0; i < KVKEEP_TIERS_MAX; i++) hits += report.tier_hits[i];
    CHECK_EQUAL(report.misses, reasons);
    CHECK_EQUAL(report.hits, hits);
    CHECK_EQUAL(report.asked, report.hits + report.misses);
    CHECK(report.endless_hits >= report.hits && report.endless_hits <= report.asked);
    return report;
}

// The report of the space, which is that of all, and agrees with the statistics.
static kvkeep_miss_report report(void) {
    kvkeep_miss_report of_space = report_of(space), all = report_of(0);
    CHECK(all.asked >= of_space.asked);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(all.misses, stats.l2_misses);
    CHECK_EQUAL(all.hits, stats.read_hits + stats.l2_hits);
    return of_space;
}

static void enter_many(kvkeep *opened) {
    enter(opened);
    keys_of(many, 1000, MANY);
}

// Looks keys up as a request of its own does, each for itself or as a prefix. Returns how many were there.
static uint32_t look_up_as(uint32_t mode, uint64_t of, const kvkeep_key *wanted, size_t count) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = mode;
    uint64_t own = begin(cache, of), job;
    OK(kvkeep_submit_prefetch(cache, own, wanted, count, &options, &job, NULL, NULL));
    uint32_t hits = answer_of(cache, job).hit_chunks;
    OK(kvkeep_end_session(cache, own));
    return hits;
}

static uint32_t look_up(const kvkeep_key *wanted, size_t count) {
    return look_up_as(KVKEEP_PREFETCH_EACH, space, wanted, count);
}

static uint64_t missed_for(int reason) {
    return report().reasons[reason];
}

static void evict_all(const kvkeep_key *of, size_t count) {
    kvkeep_status status = kvkeep_evict(cache, space, of, count, NULL);
    CHECK(status == KVKEEP_OK || status == KVKEEP_PARTIAL);
}

static void what_was_never_there_and_what_is_never_stored(void) {
    enter_many(open_l1(4 * MIB));
    CHECK_EQUAL(look_up(many, 20), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_NEVER_SEEN), 20);
    CHECK_EQUAL(report().endless_hits, 0);
    // Asked for again, by a prefix, by a read, and by a read of one.
    CHECK_EQUAL(look_up_as(KVKEEP_PREFETCH_PREFIX, space, many, 20), 0);
    kvkeep_view views[20];
    CHECK_STATUS(kvkeep_reserve_read(cache, session, many, 20, 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(kvkeep_reserve_read(cache, session, many, 1, 0, views), KVKEEP_PARTIAL);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_NEVER_SEEN), 20);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_NOT_STORED), 41);
    CHECK_EQUAL(report().endless_hits, 41);
    put(cache, space, many, 20, 4096);
    CHECK_EQUAL(look_up(many, 20), 20);
    CHECK_EQUAL(report().tier_hits[0], 20);
    CHECK_EQUAL(report().misses, 61);
    leave();
}

static void what_l1_evicted(void) {
    enter_many(open_l1(MIB));
    for (int i = 0; i < 128; i += 8) put(cache, space, &many[i], 8, SIZE);
    kvkeep_key_state states[128];
    OK(kvkeep_query_keys(cache, space, many, 128, states));
    uint64_t gone = 0;
    for (int i = 0; i < 128; i++) gone += states[i].state == KVKEEP_OBJECT_ABSENT;
    CHECK(gone > 0 && gone < 128);
    CHECK_EQUAL(stats_of(cache).evictions, gone);
    CHECK_EQUAL(look_up(many, 128), 128 - gone);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_EVICTED), gone);
    CHECK_EQUAL(report().evicted[0], gone);
    CHECK_EQUAL(report().misses, gone);
    // All had been stored, so a cache without an end would have them.
    CHECK_EQUAL(report().endless_hits, 128);
    leave();
}

static void what_a_backend_evicted(void) {
    enter_many(open_l2(4 * MIB, "memory:?capacity=1MiB"));
    for (int i = 0; i < 128; i += 8) {
        put(cache, space, &many[i], 8, SIZE);
        OK(kvkeep_flush(cache, 30000));
        // The backend has them, and will lose some to those that come.
        evict_all(&many[i], 8);
    }
    uint64_t gone = stats_of(cache).l2_evictions;
    CHECK(gone > 0 && gone < 128);
    CHECK_EQUAL(look_up(many, 128), 128 - gone);
    kvkeep_miss_report all = report();
    CHECK_EQUAL(all.reasons[KVKEEP_MISS_EVICTED], gone);
    CHECK_EQUAL(all.evicted[1], gone);
    CHECK_EQUAL(all.misses, gone);
    CHECK_EQUAL(all.tier_hits[1], 128 - gone);
    CHECK_EQUAL(all.endless_hits, 128);
    leave();
}

static void what_was_dropped_because_too_many_waited(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    const char *url = "memory:";
    options.backend_urls = &url;
    options.backend_count = 1;
    options.writes_pending_max = 16;
    enter_many(open_with(&options));
    put(cache, space, many, 128, 4096);
    OK(kvkeep_flush(cache, 30000));
    uint64_t dropped = stats_of(cache).dropped_queue;
    CHECK(dropped > 0 && dropped < 128);
    evict_all(many, 128);
    CHECK_EQUAL(look_up(many, 128), 128 - dropped);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DROPPED_QUEUE), dropped);
    CHECK_EQUAL(report().misses, dropped);
    leave();
}

static void what_was_evicted_before_it_was_written(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    const char *url = "memory:";
    options.store_mode = KVKEEP_STORE_WRITE_BACK;
    options.backend_urls = &url;
    options.backend_count = 1;
    enter_many(open_with(&options));
    put(cache, space, many, 32, 4096);
    evict_all(many, 20);
    CHECK_EQUAL(stats_of(cache).dropped_evicted, 20);
    CHECK_EQUAL(look_up(many, 32), 12);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DROPPED_EVICTED), 20);
    CHECK_EQUAL(report().misses, 20);
    leave();
}

static void what_a_backend_did_not_take(void) {
    enter_many(open_l2(4 * MIB, "fault:memory:?fault.store_error=1&breaker_errors=4&breaker_pause_ms=3600000"));
    put(cache, space, many, 32, 4096);
    OK(kvkeep_flush(cache, 30000));
    // The breaker is open, and these are not sent.
    put(cache, space, &many[32], 32, 4096);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.dropped_failed + stats.dropped_fenced, 64);
    CHECK(stats.dropped_failed >= 1 && stats.dropped_fenced >= 32);
    evict_all(many, 64);
    CHECK_EQUAL(look_up(many, 64), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DROPPED_FAILED), stats.dropped_failed);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DROPPED_FENCED), stats.dropped_fenced);
    CHECK_EQUAL(report().misses, 64);
    CHECK_EQUAL(report().endless_hits, 64);
    leave();
}

static void what_took_too_long_to_write(void) {
    enter_many(open_l2(4 * MIB, "fault:memory:?fault.delay=1&fault.delay_ms=30&store_latency_max_ms=5"));
    for (int i = 0; i < 128; i += 8) {
        put(cache, space, &many[i], 8, 4096);
        OK(kvkeep_flush(cache, 30000));
    }
    uint64_t dropped = stats_of(cache).dropped_slow;
    CHECK(dropped > 0 && dropped < 128);
    evict_all(many, 128);
    CHECK_EQUAL(look_up(many, 128), 128 - dropped);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DROPPED_SLOW), dropped);
    CHECK_EQUAL(report().misses, dropped);
    leave();
}

static void what_is_corrupt(void) {
    enter_many(open_l2(4 * MIB, "fault:memory:?fault.flip=1&fault.seed=7"));
    put_below(cache, space, many, 16, SIZE);
    // Found, and corrupt when it comes.
    CHECK_EQUAL(look_up(many, 16), 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 16);
    CHECK_EQUAL(report().misses, 0);
    CHECK_EQUAL(look_up(many, 16), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_QUARANTINED), 16);
    CHECK_EQUAL(report().quarantined[1], 16);
    leave();
}

static void what_is_in_another_space(void) {
    enter_many(open_l2(4 * MIB, "memory:"));
    uint64_t other = open_space(cache, "another model");
    // Some of it in L1, some below, some lost.
    put_below(cache, other, many, 8, 4096);
    put(cache, other, &many[8], 8, 4096);
    put(cache, other, &many[16], 8, 4096);
    // What is being written cannot be deleted.
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_delete(cache, other, &many[16], 8, NULL));
    CHECK_EQUAL(look_up(many, 32), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_OTHER_SPACE), 24);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_NEVER_SEEN), 8);
    // Each space has its own numbers.
    CHECK_EQUAL(report_of(other).asked, 0);
    CHECK_EQUAL(look_up_as(KVKEEP_PREFETCH_EACH, other, many, 24), 16);
    CHECK_EQUAL(report_of(other).reasons[KVKEEP_MISS_DELETED], 8);
    CHECK_EQUAL(report_of(other).tier_hits[0], 8);
    CHECK_EQUAL(report_of(other).tier_hits[1], 8);
    CHECK_EQUAL(report_of(space).asked, 32);
    CHECK_EQUAL(report_of(0).asked, 56);
    // A space that is closed still counts in all.
    for (; begun_count > 0; begun_count--) kvkeep_abort_session(cache, begun[begun_count - 1]);
    OK(kvkeep_close_space(cache, other));
    kvkeep_miss_report closed;
    KVKEEP_INIT(&closed);
    CHECK_STATUS(kvkeep_query_misses(cache, other, &closed), KVKEEP_ERR_NOT_FOUND);
    CHECK_EQUAL(report_of(0).asked, 56);
    leave();
}

static void what_the_caller_removed(void) {
    enter_many(open_l2(4 * MIB, "memory:"));
    put_below(cache, space, many, 16, 4096);
    put(cache, space, &many[16], 16, 4096);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_delete(cache, space, many, 32, NULL));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(look_up(many, 32), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DELETED), 32);
    // A cache without an end deletes, too. The misses count from then on.
    CHECK_EQUAL(report().endless_hits, 0);
    put_below(cache, space, &many[32], 16, 4096);
    put(cache, space, &many[48], 16, 4096);
    OK(kvkeep_flush(cache, 30000));
    uint64_t removed;
    OK(kvkeep_forget_space(cache, space, &removed));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(look_up(&many[32], 32), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DELETED), 64);
    CHECK_EQUAL(report().misses, 64);
    leave();
}

static void what_was_temporary(void) {
    enter_many(open_l1(4 * MIB));
    stage_in(cache, session, many, 8, 4096, KVKEEP_LIFETIME_TEMPORARY);
    OK(kvkeep_finish_write(cache, session, many, 8, NULL));
    kvkeep_view views[8];
    OK(kvkeep_reserve_read(cache, session, many, 8, 0, views));
    OK(kvkeep_finish_read(cache, session, many, 8, 0, NULL));
    CHECK_EQUAL(look_up(many, 8), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_TEMPORARY), 8);
    leave();
}

static void what_could_not_be_asked_for(void) {
    enter_many(open_l2(4 * MIB, "fault:memory:?lookup=slow&fault.lookup_error=1"));
    put_below(cache, space, many, 8, 4096);
    CHECK_EQUAL(look_up(many, 16), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_UNREACHABLE), 16);
    leave();
}

static void what_was_not_asked_for_behind_a_gap(void) {
    enter_many(open_l2(4 * MIB, "memory:?lookup=slow"));
    put_below(cache, space, many, 16, 4096);
    // The backend does not say whether it had it.
    CHECK_STATUS(kvkeep_delete(cache, space, &many[4], 1, NULL), KVKEEP_PARTIAL);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(look_up_as(KVKEEP_PREFETCH_PREFIX, space, many, 16), 4);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_DELETED), 1);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_BEHIND_MISS), 11);
    // Behind a key that never was, none can be.
    CHECK_EQUAL(look_up_as(KVKEEP_PREFETCH_PREFIX, space, &many[100], 16), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_NEVER_SEEN), 16);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_BEHIND_MISS), 11);
    leave();
}

static void what_a_read_of_l1_alone_did_not_ask_for(void) {
    enter_many(open_l2(4 * MIB, "memory:"));
    put_below(cache, space, many, 16, 4096);
    kvkeep_view views[16];
    CHECK_STATUS(kvkeep_reserve_read(cache, session, many, 16, 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(kvkeep_reserve_read(cache, session, many, 1, 0, views), KVKEEP_PARTIAL);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_EVICTED), 0);
    CHECK_EQUAL(missed_for(KVKEEP_MISS_BEHIND_MISS), 17);
    // The backend has them all.
    CHECK_EQUAL(look_up(many, 16), 16);
    CHECK_EQUAL(report().misses, 17);
    leave();
}

// The backend answers late, and another request stores the keys meanwhile, in this space and not in another.
static void what_was_stored_while_it_was_looked_up(void) {
    enter_many(open_l2(4 * MIB, "fault:memory:?lookup=slow&fault.delay=1&fault.delay_ms=300"));
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = KVKEEP_PREFETCH_EACH;
    uint64_t own = begin(cache, space), job;
    OK(kvkeep_submit_prefetch(cache, own, many, 16, &options, &job, NULL, NULL));
    put(cache, space, many, 16, 4096);
    answer_of(cache, job);
    OK(kvkeep_end_session(cache, own));
    CHECK_EQUAL(missed_for(KVKEEP_MISS_OTHER_SPACE), 0);
    CHECK_EQUAL(report().asked, 16);
    leave();
}

// Requests of a few keys out of many, some far likelier than others, stored when they are missed: the test knows which keys an engine
// without bounds would have had, and which were ever there.
static void a_mix_agrees_with_the_books(void) {
    enum { KEYS = 1 << 11, ASKS = 6000 };
    static uint8_t seen[KEYS];
    memset(seen, 0, sizeof seen);
    enter(open_l1(MIB));
    uint64_t asked = 0, hits = 0, endless = 0, first = 0;
    uint64_t random = 88172645463325252u;
    for (int i = 0; i < ASKS; i++) {
        random ^= random << 13, random ^= random >> 7, random ^= random << 17;
        uint32_t number = (uint32_t)(random % 2 ? random / 2 % 100 : random / 2 % KEYS);
        kvkeep_key one = key_of(number);
        kvkeep_view view;
        uint64_t own = begin(cache, space);
        kvkeep_status status = kvkeep_reserve_read(cache, own, &one, 1, 0, &view);
        asked++, hits += status == KVKEEP_OK;
        endless += seen[number], first += !seen[number];
        if (status != KVKEEP_OK) put_in(cache, own, &one, 1, 4096);
        OK(kvkeep_end_session(cache, own));
        seen[number] = 1;
    }
    kvkeep_miss_report all = report();
    CHECK_EQUAL(all.asked, asked);
    CHECK_EQUAL(all.hits, hits);
    CHECK(hits > 0 && hits < endless && endless < asked);
    // All keys are in the sample, so the estimate is no estimate.
    CHECK_EQUAL(all.endless_hits, endless);
    CHECK_EQUAL(all.reasons[KVKEEP_MISS_NEVER_SEEN], first);
    CHECK_EQUAL(all.reasons[KVKEEP_MISS_EVICTED], asked - hits - first);
    leave();
}

static void the_reasons_can_be_read(void) {
    enter_many(open_l1(4 * MIB));
    CHECK_EQUAL(look_up(many, 5), 0);
    put(cache, space, &many[8], 3, 4096);
    evict_all(&many[8], 3);
    CHECK_EQUAL(look_up(&many[8], 3), 0);
    char text[8192];
    size_t length;
    OK(kvkeep_explain_misses(cache, text, sizeof text, &length));
    CHECK_EQUAL(length, strlen(text));
    CHECK(strstr(text, "\"model\":\"model\"") != NULL);
    CHECK(strstr(text, "\"reason\":\"never_seen\"") != NULL);
    CHECK(strstr(text, "\"sentence\":\"evicted from L1, and no backend had it\"") != NULL);
    CHECK_STATUS(kvkeep_explain_misses(cache, text, 8, &length), KVKEEP_PARTIAL);
    leave();
}

static void p6_bad_input(void) {
    enter(open_l1(MIB));
    kvkeep_miss_report report;
    size_t length = 77;
    char text[8];
    KVKEEP_INIT(&report);
    FAILS(kvkeep_query_misses(cache, space, NULL), KVKEEP_ERR_INVALID, "report is NULL");
    FAILS(kvkeep_query_misses(cache, space + 1, &report), KVKEEP_ERR_NOT_FOUND, "was never opened: use a number");
    FAILS(kvkeep_explain_misses(cache, NULL, 0, NULL), KVKEEP_ERR_INVALID, "length is NULL");
    FAILS(kvkeep_explain_misses(cache, NULL, 8, &length), KVKEEP_ERR_INVALID, "buffer is NULL");
    CHECK_EQUAL(length, 77);
    report.abi_version++;
    FAILS(kvkeep_query_misses(cache, space, &report), KVKEEP_ERR_VERSION, "abi_version is");
    KVKEEP_INIT(&report);
    report.struct_size = 4;
    FAILS(kvkeep_query_misses(cache, space, &report), KVKEEP_ERR_INVALID, "struct_size is");
    // Up to the caller's size, and no further.
    report.struct_size = offsetof(kvkeep_miss_report, misses);
    report.misses = 77;
    OK(kvkeep_query_misses(cache, space, &report));
    CHECK_EQUAL(report.misses, 77);
    kvkeep *closed = cache;
    leave();
    KVKEEP_INIT(&report);
    FAILS(kvkeep_query_misses(closed, 0, &report), KVKEEP_ERR_CLOSED, "closed");
    FAILS(kvkeep_explain_misses(closed, text, sizeof text, &length), KVKEEP_ERR_CLOSED, "closed");
}

int main(void) {
    watchdog();
    RUN(what_was_never_there_and_what_is_never_stored);
    RUN(what_l1_evicted);
    RUN(what_a_backend_evicted);
    RUN(what_was_dropped_because_too_many_waited);
    RUN(what_was_evicted_before_it_was_written);
    RUN(what_a_backend_did_not_take);
    RUN(what_took_too_long_to_write);
    RUN(what_is_corrupt);
    RUN(what_is_in_another_space);
    RUN(what_the_caller_removed);
    RUN(what_was_temporary);
    RUN(what_could_not_be_asked_for);
    RUN(what_was_not_asked_for_behind_a_gap);
    RUN(what_a_read_of_l1_alone_did_not_ask_for);
    RUN(what_was_stored_while_it_was_looked_up);
    RUN(a_mix_agrees_with_the_books);
    RUN(the_reasons_can_be_read);
    RUN(p6_bad_input);
    return 0;
}
