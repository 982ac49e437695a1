// What L1 says of keys and spaces to programs.
#include "fixture.h"

#include <pthread.h>
#include <stdatomic.h>

static kvkeep *cache;
static uint64_t space, session;

static void enter(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static kvkeep_key_state state_of(const kvkeep_key *key) {
    kvkeep_key_state state;
    memset(&state, 0xff, sizeof state);
    OK(kvkeep_query_keys(cache, space, key, 1, &state));
    CHECK_EQUAL(state.reserved, 0);
    return state;
}

static int has(const kvkeep_key *key, uint32_t flag) {
    return (state_of(key).flags & flag) != 0;
}

static void keys_are_absent_until_they_are_committed(void) {
    enter(open_l1(MIB));
    kvkeep_key keys[3];
    kvkeep_key_state states[3], nothing;
    memset(&nothing, 0, sizeof nothing);
    memset(states, 0xff, sizeof states);
    keys_of(keys, 1, 3);
    put_in(cache, session, &keys[1], 1, 5000);
    stage_in(cache, session, &keys[2], 1, 64, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_query_keys(cache, space, keys, 3, states));
    CHECK(memcmp(&states[0], &nothing, sizeof nothing) == 0);
    CHECK(memcmp(&states[2], &nothing, sizeof nothing) == 0);
    CHECK_EQUAL(states[1].state, KVKEEP_OBJECT_READY);
    CHECK_EQUAL(states[1].size, 5000);
    CHECK_EQUAL(states[1].shares, 0);
    CHECK_EQUAL(states[1].flags, KVKEEP_KEY_EVICTABLE);
    // The same key is another object in another space, and nobody's shares were taken or read.
    uint64_t other = open_space(cache, "another model");
    OK(kvkeep_query_keys(cache, other, &keys[1], 1, states));
    CHECK_EQUAL(states[0].state, KVKEEP_OBJECT_ABSENT);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    CHECK_EQUAL(stats_of(cache).read_hits + stats_of(cache).read_misses, 0);
    close_empty(cache);
}

static void shares_of_all_sessions_are_counted_and_lock(void) {
    enter(open_l1(MIB));
    kvkeep_key keys[2];
    kvkeep_view views[2];
    keys_of(keys, 1, 2);
    uint64_t other = begin(cache, space);
    put_in(cache, session, keys, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, keys, 1, 2, views));
    OK(kvkeep_reserve_read(cache, other, keys, 1, 0, views));
    CHECK_EQUAL(state_of(keys).shares, 4);
    CHECK(!has(keys, KVKEEP_KEY_EVICTABLE));
    OK(kvkeep_finish_read(cache, session, keys, 1, 2, NULL));
    CHECK_EQUAL(state_of(keys).shares, 1);
    CHECK(!has(keys, KVKEEP_KEY_EVICTABLE));
    OK(kvkeep_finish_read(cache, other, keys, 1, 0, NULL));
    CHECK_EQUAL(state_of(keys).flags, KVKEEP_KEY_EVICTABLE);
    stage_in(cache, session, &keys[1], 1, 64, KVKEEP_LIFETIME_TEMPORARY);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, &keys[1], 1, 0, views));
    CHECK_EQUAL(state_of(&keys[1]).flags, KVKEEP_KEY_TEMPORARY);
    OK(kvkeep_finish_read(cache, session, &keys[1], 1, 0, NULL));
    CHECK_EQUAL(state_of(&keys[1]).state, KVKEEP_OBJECT_ABSENT);
    close_empty(cache);
}

static void shares_of_a_session_past_its_deadline_lock_nothing(void) {
    enter(open_l1(MIB));
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    put_in(cache, session, &key, 1, 4096);
    uint64_t brief = begin_for(cache, space, 20);
    OK(kvkeep_reserve_read(cache, brief, &key, 1, 0, &view));
    // Asking renews nothing.
    AWAIT(has(&key, KVKEEP_KEY_EVICTABLE));
    CHECK_EQUAL(state_of(&key).shares, 1);
    char text[2048];
    size_t length;
    OK(kvkeep_explain_key(cache, space, &key, text, sizeof text, &length));
    CHECK(strstr(text, "\"evictable\":true") != NULL);
    // But a reader who still has time does lock it.
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    CHECK(!has(&key, KVKEEP_KEY_EVICTABLE));
    close_empty(cache);
}

static void what_is_written_says_so(void) {
    enter(open_l2(MIB, "fault:memory:?fault.store_hang=1"));
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 4096);
    CHECK(has(&key, KVKEEP_KEY_STORING) && !has(&key, KVKEEP_KEY_STORED));
    AWAIT(!has(&key, KVKEEP_KEY_EVICTABLE));
    CHECK(has(&key, KVKEEP_KEY_STORING));
    OK(kvkeep_remove_backend(cache, 1));
    AWAIT(has(&key, KVKEEP_KEY_EVICTABLE));
    close_empty(cache);

    enter(open_l2(MIB, "memory:"));
    put_in(cache, session, &key, 1, 4096);
    OK(kvkeep_flush(cache, 30000));
    AWAIT(state_of(&key).flags == (KVKEEP_KEY_EVICTABLE | KVKEEP_KEY_STORED));
    close_empty(cache);
}

static void check_usage(uint64_t of, uint64_t objects, uint64_t used_bytes, uint64_t quota_bytes) {
    kvkeep_space_usage usage;
    memset(&usage, 0xff, sizeof usage);
    usage.struct_size = sizeof usage;
    usage.abi_version = KVKEEP_ABI_VERSION;
    OK(kvkeep_query_space(cache, of, &usage));
    CHECK_EQUAL(usage.struct_size, sizeof usage);
    CHECK_EQUAL(usage.abi_version, KVKEEP_ABI_VERSION);
    CHECK_EQUAL(usage.objects, objects);
    CHECK_EQUAL(usage.used_bytes, used_bytes);
    CHECK_EQUAL(usage.quota_bytes, quota_bytes);
}

static void a_space_tells_its_usage_and_its_quota(void) {
    enter(open_l1(MIB));
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "bounded";
    options.quota_bytes = 10000;
    uint64_t bounded;
    OK(kvkeep_open_space(cache, &options, &bounded));
    kvkeep_key keys[3];
    kvkeep_view view;
    const uint64_t size = 4000;
    keys_of(keys, 1, 3);
    check_usage(space, 0, 0, 0);
    check_usage(bounded, 0, 0, 10000);
    put_in(cache, session, keys, 3, 5000);
    uint64_t writer = begin(cache, bounded);
    put_in(cache, writer, keys, 1, 4000);
    // Staging counts, since the quota bounds it.
    stage_in(cache, writer, &keys[1], 1, 4000, KVKEEP_LIFETIME_CACHED);
    check_usage(space, 3, 15000, 0);
    check_usage(bounded, 1, 8000, 10000);
    OK(kvkeep_reserve_read(cache, writer, keys, 1, 0, &view));
    CHECK_STATUS(kvkeep_reserve_write(cache, writer, &keys[2], 1, &size, 0, &view), KVKEEP_PARTIAL);
    CHECK_STATUS(view.status, KVKEEP_ERR_QUOTA);
    OK(kvkeep_finish_write(cache, writer, &keys[1], 1, NULL));
    check_usage(bounded, 2, 8000, 10000);
    // What a clearing hides counts until its last share goes.
    OK(kvkeep_clear(cache, bounded, 1, NULL));
    check_usage(bounded, 0, 4000, 10000);
    OK(kvkeep_finish_read(cache, writer, keys, 1, 0, NULL));
    // Opening it again without a quota leaves the one that it has.
    options.quota_bytes = 0;
    OK(kvkeep_open_space(cache, &options, &bounded));
    check_usage(bounded, 0, 0, 10000);
    options.quota_bytes = 20000;
    OK(kvkeep_open_space(cache, &options, &bounded));
    check_usage(bounded, 0, 0, 20000);
    OK(kvkeep_set_quota(cache, bounded, 0));
    check_usage(bounded, 0, 0, 0);
    OK(kvkeep_evict(cache, space, keys, 1, NULL));
    OK(kvkeep_delete(cache, space, &keys[1], 1, NULL));
    check_usage(space, 1, 5000, 0);
    close_empty(cache);
}

enum { BATCH = 8, ROUNDS = 2000 };
static kvkeep_key batch[BATCH];
static atomic_int over;

static void *come_and_go(void *unused) {
    (void)unused;
    kvkeep_view views[BATCH];
    for (int i = 0; i < ROUNDS; i++) {
        put_in(cache, session, batch, BATCH, 64);
        OK(kvkeep_reserve_read(cache, session, batch, BATCH, 0, views));
        OK(kvkeep_finish_read(cache, session, batch, BATCH, 0, NULL));
        OK(kvkeep_evict(cache, space, batch, BATCH, NULL));
    }
    atomic_store(&over, 1);
    return NULL;
}

static void p11_a_batch_is_told_at_one_instant(void) {
    enter(open_l1(MIB));
    keys_of(batch, 1, BATCH);
    pthread_t writer;
    CHECK_EQUAL(pthread_create(&writer, NULL, come_and_go, NULL), 0);
    while (!atomic_load(&over)) {
        kvkeep_key_state states[BATCH];
        OK(kvkeep_query_keys(cache, space, batch, BATCH, states));
        for (int i = 1; i < BATCH; i++) CHECK(memcmp(&states[i], &states[0], sizeof states[0]) == 0);
    }
    CHECK_EQUAL(pthread_join(writer, NULL), 0);
    close_empty(cache);
}

static void a_quota_is_set_anew(void) {
    enter(open_l1(MIB));
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    OK(kvkeep_set_quota(cache, space, MIB));
    put(cache, space, keys, 8, 4096);
    check_usage(space, 8, 8 * 4096, MIB);
    OK(kvkeep_set_quota(cache, space, 4 * 4096));
    check_usage(space, 4, 4 * 4096, 4 * 4096);
    // What is in use stays, and goes when it is returned and something else comes.
    kvkeep_view views[2];
    uint64_t reader = begin(cache, space);
    OK(kvkeep_reserve_read(cache, reader, keys, 2, 0, views));
    OK(kvkeep_set_quota(cache, space, 4096));
    check_usage(space, 2, 2 * 4096, 4096);
    OK(kvkeep_finish_read(cache, reader, keys, 2, 0, NULL));
    OK(kvkeep_set_quota(cache, space, 4096));
    check_usage(space, 1, 4096, 4096);
    OK(kvkeep_set_quota(cache, space, 0));
    put(cache, space, &keys[2], 6, 4096);
    check_usage(space, 7, 7 * 4096, 0);
    FAILS(kvkeep_set_quota(cache, space + 1, 4096), KVKEEP_ERR_NOT_FOUND, "never opened");
    close_empty(cache);
}

static uint64_t open_tenant(const char *tenant, uint64_t quota_bytes) {
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "model";
    options.tenant = tenant;
    options.quota_bytes = quota_bytes;
    uint64_t tenants = 0;
    OK(kvkeep_open_space(cache, &options, &tenants));
    return tenants;
}

static void a_space_is_closed_and_opened_again(void) {
    enter(open_l2(MIB, "memory:"));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    uint64_t tenant = open_tenant("tenant", 0);
    put(cache, tenant, keys, 4, 4096);
    OK(kvkeep_flush(cache, 30000));
    uint64_t user = begin(cache, tenant);
    FAILS(kvkeep_close_space(cache, tenant), KVKEEP_ERR_LOCKED, "session");
    check_usage(tenant, 4, 4 * 4096, 0);
    OK(kvkeep_end_session(cache, user));
    OK(kvkeep_close_space(cache, tenant));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    FAILS(kvkeep_close_space(cache, tenant), KVKEEP_ERR_NOT_FOUND, "never opened");
    FAILS(kvkeep_close_space(cache, 0), KVKEEP_ERR_NOT_FOUND, "never opened");
    // Another space in its place meets nothing of it.
    uint64_t other = open_tenant("other", 0);
    CHECK(!is_ready(cache, other, &keys[0]));
    CHECK_EQUAL(open_tenant("tenant", 0), tenant);
    user = begin(cache, tenant);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, user, keys, 4, NULL, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(cache, job).tier_keys[1], 4);
    close_empty(cache);
}

static void spaces_without_end_come_and_go(void) {
    enter(open_l1(MIB));
    kvkeep_key key = key_of(1);
    char name[32];
    // More than may be open at once, but where things are slow.
    const int spaces = getenv("KVKEEP_TEST_WATCHDOG_S") ? 2000 : 70000;
    for (int i = 0; i < spaces; i++) {
        snprintf(name, sizeof name, "tenant %d", i);
        uint64_t tenant = open_tenant(name, i % 2 ? 4096 : 0);
        if (i % 1000 < 2) {
            put(cache, tenant, &key, 1, 4096);
            CHECK(is_ready(cache, tenant, &key));
            check_usage(tenant, 1, 4096, i % 2 ? 4096 : 0);
        }
        OK(kvkeep_close_space(cache, tenant));
    }
    put(cache, space, &key, 1, 4096);
    check_usage(space, 1, 4096, 0);
    CHECK_EQUAL(stats_of(cache).l1_objects, 1);
    close_empty(cache);
}

int main(void) {
    watchdog();
    RUN(keys_are_absent_until_they_are_committed);
    RUN(shares_of_all_sessions_are_counted_and_lock);
    RUN(shares_of_a_session_past_its_deadline_lock_nothing);
    RUN(what_is_written_says_so);
    RUN(a_space_tells_its_usage_and_its_quota);
    RUN(a_quota_is_set_anew);
    RUN(a_space_is_closed_and_opened_again);
    RUN(spaces_without_end_come_and_go);
    RUN(p11_a_batch_is_told_at_one_instant);
    return 0;
}
