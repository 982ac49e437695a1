// Events: what became of objects in each tier, for any number of readers.
#include "fixture.h"

#define SOME 64

static kvkeep *cache;
static uint64_t space, session, next;
static kvkeep_event events[SOME];

// From here on events are kept.
static void setup(uint64_t l1_bytes, const char *url) {
    cache = url ? open_l2(l1_bytes, url) : open_l1(l1_bytes);
    next = 0;
    size_t count = 1;
    OK(kvkeep_read_events(cache, &next, events, SOME, &count));
    CHECK_EQUAL(count, 0);
    CHECK_EQUAL(next, 1);
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static size_t drain(void) {
    size_t count;
    OK(kvkeep_read_events(cache, &next, events, SOME, &count));
    return count;
}

static void check_event(const kvkeep_event *event, uint32_t kind, const kvkeep_key *key, uint64_t size) {
    CHECK_EQUAL(event->kind, kind);
    CHECK(memcmp(&event->key, key, sizeof *key) == 0);
    CHECK_EQUAL(event->space, space);
    CHECK_EQUAL(event->size, size);
    // After 2020, in microseconds.
    CHECK(event->time_us > UINT64_C(1577836800000000));
}

static void check_l1(const kvkeep_event *event, uint32_t kind, const kvkeep_key *key, uint64_t size) {
    check_event(event, kind, key, size);
    CHECK_EQUAL(event->tier, 0);
    CHECK_EQUAL(event->backend, 0);
}

static void commits_and_removals_are_told_in_order(void) {
    setup(MIB, NULL);
    kvkeep_key keys[4];
    kvkeep_view view;
    keys_of(keys, 1, 4);
    stage_in(cache, session, keys, 3, 5000, KVKEEP_LIFETIME_CACHED);
    CHECK_EQUAL(drain(), 0);
    OK(kvkeep_abort_write(cache, session, &keys[2], 1, NULL));
    OK(kvkeep_finish_write(cache, session, keys, 2, NULL));
    stage_in(cache, session, &keys[3], 1, 64, KVKEEP_LIFETIME_TEMPORARY);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, &keys[3], 1, 0, &view));
    OK(kvkeep_finish_read(cache, session, &keys[3], 1, 0, NULL));
    OK(kvkeep_delete(cache, space, keys, 1, NULL));
    OK(kvkeep_clear(cache, 0, 0, NULL));
    CHECK_EQUAL(drain(), 6);
    for (uint64_t i = 0; i < 6; i++) CHECK_EQUAL(events[i].sequence, i + 1);
    CHECK_EQUAL(next, 7);
    check_l1(&events[0], KVKEEP_EVENT_STORED, &keys[0], 5000);
    check_l1(&events[1], KVKEEP_EVENT_STORED, &keys[1], 5000);
    check_l1(&events[2], KVKEEP_EVENT_STORED, &keys[3], 64);
    check_l1(&events[3], KVKEEP_EVENT_REMOVED, &keys[3], 64);
    check_l1(&events[4], KVKEEP_EVENT_REMOVED, &keys[0], 5000);
    check_l1(&events[5], KVKEEP_EVENT_REMOVED, &keys[1], 5000);
    CHECK_EQUAL(drain(), 0);
    close_empty(cache);
}

static void a_discarded_commit_stores_nothing(void) {
    setup(MIB, NULL);
    kvkeep_key key = key_of(1);
    uint64_t other = begin(cache, space);
    stage_in(cache, session, &key, 1, 4096, KVKEEP_LIFETIME_CACHED);
    stage_in(cache, other, &key, 1, 4096, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_finish_write(cache, other, &key, 1, NULL));
    OK(kvkeep_finish_write(cache, session, &key, 1, NULL));
    CHECK_EQUAL(drain(), 1);
    close_empty(cache);
}

static void a_forced_clear_removes_at_once_what_is_in_use(void) {
    setup(MIB, NULL);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    put_in(cache, session, &key, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    OK(kvkeep_clear(cache, space, 1, NULL));
    CHECK_EQUAL(drain(), 2);
    check_l1(&events[1], KVKEEP_EVENT_REMOVED, &key, 4096);
    OK(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    CHECK_EQUAL(drain(), 0);
    close_empty(cache);
}

static void an_eviction_is_told_before_what_took_its_place(void) {
    setup(64 * KIB, NULL);
    kvkeep_key keys[17];
    keys_of(keys, 1, 17);
    put(cache, space, keys, 16, 4096);
    CHECK_EQUAL(drain(), 16);
    put(cache, space, &keys[16], 1, 4096);
    CHECK_EQUAL(drain(), 2);
    CHECK_EQUAL(events[0].kind, KVKEEP_EVENT_REMOVED);
    check_l1(&events[1], KVKEEP_EVENT_STORED, &keys[16], 4096);
    close_empty(cache);
}

static void what_a_backend_stored_is_told_with_its_tier(void) {
    char url[8192];
    const char *directory = new_directory();
    snprintf(url, sizeof url, "fs://%s?capacity=1GiB%s", directory, fs_parameters(""));
    setup(MIB, "memory:");
    uint64_t number = 0;
    OK(kvkeep_add_backend(cache, url, &number));
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 4096);
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(drain(), 3);
    check_l1(&events[0], KVKEEP_EVENT_STORED, &key, 4096);
    int seen = 0;
    for (int i = 1; i < 3; i++) {
        check_event(&events[i], KVKEEP_EVENT_STORED, &key, 4096);
        CHECK(events[i].tier == (events[i].backend == number ? 2 : 1));
        seen |= 1 << events[i].tier;
    }
    CHECK_EQUAL(seen, 2 | 4);
    // Back into L1: the backends keep theirs, and nothing is written again.
    OK(kvkeep_evict(cache, space, &key, 1, NULL));
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &job, NULL, NULL));
    OK(kvkeep_wait_job(cache, job, 60000));
    CHECK_EQUAL(drain(), 2);
    check_l1(&events[0], KVKEEP_EVENT_REMOVED, &key, 4096);
    check_l1(&events[1], KVKEEP_EVENT_STORED, &key, 4096);
    OK(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    OK(kvkeep_delete(cache, space, &key, 1, NULL));
    CHECK_EQUAL(drain(), 3);
    seen = 0;
    for (int i = 0; i < 3; i++) {
        check_event(&events[i], KVKEEP_EVENT_REMOVED, &key, 4096);
        seen |= 1 << events[i].tier;
    }
    CHECK_EQUAL(seen, 1 | 2 | 4);
    close_empty(cache);
    remove_directory(directory);
}

static void what_a_backend_evicts_is_told(void) {
    setup(MIB, "memory:?capacity=64KiB");
    kvkeep_key keys[20];
    keys_of(keys, 1, 20);
    put_in(cache, session, keys, 20, 4096);
    OK(kvkeep_flush(cache, 30000));
    const size_t count = drain();
    uint64_t stored = 0, removed = 0;
    for (size_t i = 0; i < count; i++) {
        if (events[i].tier == 0) continue;
        CHECK_EQUAL(events[i].size, 4096);
        stored += events[i].kind == KVKEEP_EVENT_STORED;
        removed += events[i].kind == KVKEEP_EVENT_REMOVED;
    }
    CHECK_EQUAL(stored, 20);
    CHECK(removed >= 4);
    CHECK_EQUAL(stored - removed, stats_of(cache).l2_objects);
    CHECK_EQUAL(removed, stats_of(cache).l2_evictions);
    close_empty(cache);
}

static void a_reader_that_was_too_slow_sees_the_gap(void) {
    setup(MIB, NULL);
    kvkeep_key keys[BATCH_MAX];
    const uint64_t batches = KVKEEP_EVENTS_MAX / BATCH_MAX / 2 + 1;
    for (uint32_t i = 0; i < batches; i++) {
        keys_of(keys, 1 + i * BATCH_MAX, BATCH_MAX);
        put_in(cache, session, keys, BATCH_MAX, 64);
        OK(kvkeep_clear(cache, space, 0, NULL));
    }
    const uint64_t lost = batches * BATCH_MAX * 2 - KVKEEP_EVENTS_MAX;
    CHECK(lost > 0);
    CHECK_EQUAL(drain(), SOME);
    CHECK_EQUAL(events[0].sequence, lost + 1);
    CHECK_EQUAL(next, lost + 1 + SOME);
    // A reader that begins, or comes back, asks for what it likes; another's place is not its own.
    next = 0;
    CHECK_EQUAL(drain(), SOME);
    CHECK_EQUAL(events[0].sequence, lost + 1);
    next = batches * BATCH_MAX * 2 - 2;
    CHECK_EQUAL(drain(), 3);
    CHECK_EQUAL(next, batches * BATCH_MAX * 2 + 1);
    close_empty(cache);
}

static void bad_input_is_refused(void) {
    setup(MIB, NULL);
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 64);
    size_t count = 7;
    next = 3;
    FAILS(kvkeep_read_events(cache, &next, events, SOME, &count), KVKEEP_ERR_INVALID, "next_sequence is 3");
    FAILS(kvkeep_read_events(cache, NULL, events, SOME, &count), KVKEEP_ERR_INVALID, "next_sequence is NULL");
    FAILS(kvkeep_read_events(cache, &next, NULL, SOME, &count), KVKEEP_ERR_INVALID, "events is NULL");
    FAILS(kvkeep_read_events(cache, &next, events, 0, &count), KVKEEP_ERR_INVALID, "events is 0");
    FAILS(kvkeep_read_events(cache, &next, events, SOME, NULL), KVKEEP_ERR_INVALID, "count is NULL");
    FAILS(kvkeep_read_events(cache, (uint64_t *)(void *)events, events, SOME, &count), KVKEEP_ERR_INVALID, "overlap");
    CHECK_EQUAL(next, 3);
    CHECK_EQUAL(count, 7);
    next = 2;
    CHECK_EQUAL(drain(), 0);
    close_empty(cache);
}

int main(void) {
    watchdog();
    RUN(commits_and_removals_are_told_in_order);
    RUN(a_discarded_commit_stores_nothing);
    RUN(a_forced_clear_removes_at_once_what_is_in_use);
    RUN(an_eviction_is_told_before_what_took_its_place);
    RUN(what_a_backend_stored_is_told_with_its_tier);
    RUN(what_a_backend_evicts_is_told);
    RUN(a_reader_that_was_too_slow_sees_the_gap);
    RUN(bad_input_is_refused);
    return 0;
}
