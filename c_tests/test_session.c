// One request's hold on the cache: its end, its expiry, its tokens.
#include "fixture.h"

static kvkeep *cache;
static uint64_t space;

static void setup(uint64_t l1_bytes) {
    cache = open_l1(l1_bytes);
    space = open_space(cache, "model");
}

static void teardown(void) {
    close_empty(cache);
}

static void end_returns_what_is_left(void) {
    setup(MIB);
    uint64_t session = begin(cache, space);
    kvkeep_key keys[3];
    kvkeep_view views[3];
    keys_of(keys, 1, 3);
    put_in(cache, session, keys, 2, 4096);
    OK(kvkeep_reserve_read(cache, session, keys, 2, 5, views));
    stage_in(cache, session, &keys[2], 1, 4096, KVKEEP_LIFETIME_CACHED);
    CHECK_EQUAL(stats_of(cache).l1_shares, 12);
    OK(kvkeep_end_session(cache, session));
    check_nothing_is_held(cache);
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    CHECK(!is_ready(cache, space, &keys[2]));
    FAILS(kvkeep_end_session(cache, session), KVKEEP_ERR_NOT_FOUND, "session");
    FAILS(kvkeep_abort_session(cache, session), KVKEEP_ERR_NOT_FOUND, "session");
    teardown();
}

static void abort_drops_staging_and_shares(void) {
    setup(MIB);
    uint64_t session = begin(cache, space);
    kvkeep_key keys[2];
    kvkeep_view view;
    keys_of(keys, 1, 2);
    put_in(cache, session, keys, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, &view));
    stage_in(cache, session, &keys[1], 1, 4096, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_abort_session(cache, session));
    check_nothing_is_held(cache);
    CHECK(is_ready(cache, space, &keys[0]));
    CHECK(!is_ready(cache, space, &keys[1]));
    teardown();
}

static void numbers_are_never_reused(void) {
    setup(MIB);
    uint64_t last = 0;
    for (int i = 0; i < 1000; i++) {
        uint64_t session = begin(cache, space);
        CHECK(session != last);
        OK(kvkeep_end_session(cache, session));
        FAILS(kvkeep_end_session(cache, session), KVKEEP_ERR_NOT_FOUND, "session");
        last = session;
    }
    teardown();
}

static void p9_sessions_are_bounded(void) {
    kvkeep_options options = quiet_options(MIB);
    options.sessions_max = 4;
    cache = open_with(&options);
    space = open_space(cache, "model");
    uint64_t sessions[4], more;
    for (int i = 0; i < 4; i++) sessions[i] = begin(cache, space);
    FAILS(kvkeep_begin_session(cache, space, NULL, &more), KVKEEP_ERR_LIMIT, "session");
    OK(kvkeep_end_session(cache, sessions[0]));
    OK(kvkeep_begin_session(cache, space, NULL, &more));
    OK(kvkeep_end_session(cache, more));
    teardown();
}

static void p5_an_idle_session_is_reclaimed(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 20);
    AWAIT(stats_of(cache).sessions_reclaimed == 1);
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    // Its number still says why it is gone.
    uint32_t token = 1;
    uint64_t size = 4096, job = 77;
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    char text[64];
    size_t length;
#define GONE(call) FAILS(call, KVKEEP_ERR_EXPIRED, "passed its deadline")
    GONE(kvkeep_append_tokens(cache, session, &token, 1, NULL));
    GONE(kvkeep_get_session_keys(cache, session, 0, 1, 0, 1, 1, &key, 1));
    GONE(kvkeep_reserve_write(cache, session, &key, 1, &size, 0, &view));
    GONE(kvkeep_finish_write(cache, session, &key, 1, NULL));
    GONE(kvkeep_abort_write(cache, session, &key, 1, NULL));
    GONE(kvkeep_finish_write_and_reserve_read(cache, session, &key, 1, 0, &view));
    GONE(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    GONE(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    GONE(kvkeep_finish_read_tokens(cache, session, 0, 16, 0, 1, 1, 0, NULL));
    GONE(kvkeep_get_views(cache, session, &key, 1, &view));
    GONE(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &job, NULL, NULL));
    GONE(kvkeep_explain_session(cache, session, text, sizeof text, &length));
    GONE(kvkeep_abort_session(cache, session));
    GONE(kvkeep_end_session(cache, session));
#undef GONE
    CHECK_EQUAL(job, 77);
    teardown();
}

// Returns when a session of `timeout_ms` that begins now is past its deadline: every older one then is too.
static void await_deadline(uint32_t timeout_ms) {
    uint64_t reclaimed = stats_of(cache).sessions_reclaimed;
    begin_for(cache, space, timeout_ms);
    AWAIT(stats_of(cache).sessions_reclaimed > reclaimed);
}

static void use_revives_where_nothing_was_taken(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 20);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    put(cache, space, &key, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    await_deadline(20);
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    OK(kvkeep_get_views(cache, session, &key, 1, &view));
    CHECK(holds(&key, &view));
    OK(kvkeep_finish_read(cache, session, &key, 1, 0, NULL));
    CHECK_EQUAL(stats_of(cache).shares_revoked, 0);
    teardown();
}

// Makes room for eight objects in an L1 whose memory an expired session holds.
static void take_room(void) {
    uint64_t writer = begin(cache, space);
    kvkeep_key keys[8];
    kvkeep_view views[8];
    uint64_t sizes[8];
    keys_of(keys, 500, 8);
    for (int i = 0; i < 8; i++) sizes[i] = 64 * KIB;
    kvkeep_status status;
    while ((status = kvkeep_reserve_write(cache, writer, keys, 8, sizes, 0, views)) != KVKEEP_OK) {
        CHECK_STATUS(status, KVKEEP_PARTIAL);
        kvkeep_abort_write(cache, writer, keys, 8, NULL);
        pause_briefly();
    }
    OK(kvkeep_end_session(cache, writer));
}

static void p3_revocation_returns_shares_once(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 50);
    kvkeep_key keys[15];
    kvkeep_view views[14];
    int32_t statuses[14];
    keys_of(keys, 1, 15);
    put_in(cache, session, keys, 14, 64 * KIB);
    OK(kvkeep_reserve_read(cache, session, keys, 14, 1, views));
    // What it stages is never taken, so that it lives on when nothing else is left to it.
    stage_in(cache, session, &keys[14], 1, 4096, KVKEEP_LIFETIME_CACHED);
    take_room();
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.shares_revoked >= 2 * 7 && stats.shares_revoked % 2 == 0);
    CHECK_EQUAL(stats.l1_shares, 28 - stats.shares_revoked);
    CHECK_STATUS(kvkeep_get_views(cache, session, keys, 14, views), KVKEEP_PARTIAL);
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, 14, 1, statuses), KVKEEP_PARTIAL);
    uint64_t expired = 0;
    for (int i = 0; i < 14; i++) {
        CHECK_STATUS(views[i].status, statuses[i]);
        if (statuses[i] == KVKEEP_ERR_EXPIRED) expired++;
        else OK(statuses[i]);
    }
    CHECK_EQUAL(2 * expired, stats.shares_revoked);
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, 14, 1, statuses), KVKEEP_PARTIAL);
    for (int i = 0; i < 14; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_NOT_HELD);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_finish_write(cache, session, &keys[14], 1, NULL));
    OK(kvkeep_end_session(cache, session));
    teardown();
}

static void p2_staging_is_never_taken(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 20);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    uint64_t size = 512 * KIB;
    OK(kvkeep_reserve_write(cache, session, &key, 1, &size, KVKEEP_LIFETIME_CACHED, &view));
    await_deadline(20);
    for (uint32_t i = 0; i < 40; i++) {
        kvkeep_key filler = key_of(100 + i);
        put(cache, space, &filler, 1, 64 * KIB);
    }
    fill(&key, &view);
    OK(kvkeep_finish_write(cache, session, &key, 1, NULL));
    CHECK(is_ready(cache, space, &key));
    teardown();
}

static void use_renews_the_deadline(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 1500);
    uint32_t token = 1;
    uint64_t reclaimed = 0;
    // Four witnesses of 500 ms one after the other outlast the session's own 1500 ms.
    for (int i = 0; i < 4; i++) {
        begin_for(cache, space, 500);
        AWAIT(stats_of(cache).sessions_reclaimed == reclaimed + 1);
        reclaimed++;
        OK(kvkeep_append_tokens(cache, session, &token, 1, NULL));
    }
    OK(kvkeep_end_session(cache, session));
    teardown();
}

static void renewing_keeps_a_session_and_does_nothing_else(void) {
    setup(MIB);
    uint64_t kept = begin_for(cache, space, 400), left = begin_for(cache, space, 400);
    const uint64_t reclaimed = stats_of(cache).sessions_reclaimed;
    while (stats_of(cache).sessions_reclaimed == reclaimed) {
        OK(kvkeep_renew_session(cache, kept));
        pause_briefly();
    }
    FAILS(kvkeep_renew_session(cache, left), KVKEEP_ERR_EXPIRED, "session");
    kvkeep_stats before = stats_of(cache);
    OK(kvkeep_renew_session(cache, kept));
    kvkeep_stats after = stats_of(cache);
    CHECK_EQUAL(after.sessions, 1);
    CHECK_EQUAL(after.read_hits + after.read_misses, before.read_hits + before.read_misses);
    OK(kvkeep_end_session(cache, kept));
    FAILS(kvkeep_renew_session(cache, kept), KVKEEP_ERR_NOT_FOUND, "session");
    FAILS(kvkeep_renew_session(cache, 0), KVKEEP_ERR_NOT_FOUND, "session");
    teardown();
}

static void a_session_tells_its_state(void) {
    setup(MIB);
    uint64_t session = begin_for(cache, space, 60000), idle = begin_for(cache, space, 100);
    kvkeep_key keys[3];
    kvkeep_view views[2];
    keys_of(keys, 1, 3);
    put_in(cache, session, keys, 2, 4096);
    OK(kvkeep_reserve_read(cache, session, keys, 2, 2, views));
    stage_in(cache, session, &keys[2], 1, 4096, KVKEEP_LIFETIME_CACHED);
    kvkeep_session_state state;
    KVKEEP_INIT(&state);
    OK(kvkeep_query_session(cache, session, &state));
    CHECK_EQUAL(state.space, space);
    CHECK_EQUAL(state.shares, 6);
    CHECK_EQUAL(state.revoked_shares, 0);
    CHECK_EQUAL(state.staged_keys, 1);
    CHECK_EQUAL(state.jobs, 0);
    CHECK_EQUAL(state.owner_pid, getpid());
    CHECK(state.age_ms < 60000 && state.expires_in_ms > 0 && state.expires_in_ms <= 60000);
    CHECK(strcmp(state.request_id, "request") == 0);
    // Asking keeps nobody alive.
    kvkeep_status status;
    while ((status = kvkeep_query_session(cache, idle, &state)) == KVKEEP_OK) pause_briefly();
    CHECK_STATUS(status, KVKEEP_ERR_EXPIRED);
    OK(kvkeep_end_session(cache, session));
    FAILS(kvkeep_query_session(cache, session, &state), KVKEEP_ERR_NOT_FOUND, "session");
    FAILS(kvkeep_query_session(cache, 0, &state), KVKEEP_ERR_NOT_FOUND, "session");
    teardown();
}

static void tokens_become_keys(void) {
    setup(MIB);
    uint32_t tokens[64];
    for (uint32_t i = 0; i < 64; i++) tokens[i] = i;
    uint64_t one = begin(cache, space), two = begin(cache, space), chunks = 99;
    OK(kvkeep_append_tokens(cache, one, tokens, 15, &chunks));
    CHECK_EQUAL(chunks, 0);
    OK(kvkeep_append_tokens(cache, one, tokens + 15, 1, &chunks));
    CHECK_EQUAL(chunks, 1);
    OK(kvkeep_append_tokens(cache, one, tokens + 16, 47, &chunks));
    CHECK_EQUAL(chunks, 3);
    OK(kvkeep_append_tokens(cache, one, tokens + 63, 1, NULL));
    OK(kvkeep_append_tokens(cache, two, tokens, 64, &chunks));
    CHECK_EQUAL(chunks, 4);
    kvkeep_key first[4], second[4];
    OK(kvkeep_get_session_keys(cache, one, 0, 4, 0, 1, 1, first, 4));
    OK(kvkeep_get_session_keys(cache, two, 0, 4, 0, 1, 1, second, 4));
    CHECK(memcmp(first, second, sizeof first) == 0);
    CHECK(memcmp(first[0].hash, first[1].hash, 32) != 0);

    // What follows a different token is different, what precedes it is not.
    uint64_t three = begin(cache, space);
    tokens[20]++;
    OK(kvkeep_append_tokens(cache, three, tokens, 64, NULL));
    OK(kvkeep_get_session_keys(cache, three, 0, 4, 0, 1, 1, second, 4));
    CHECK(memcmp(&first[0], &second[0], sizeof first[0]) == 0);
    for (int i = 1; i < 4; i++) CHECK(memcmp(first[i].hash, second[i].hash, 32) != 0);

    uint64_t elsewhere = begin(cache, open_space(cache, "another model"));
    tokens[20]--;
    OK(kvkeep_append_tokens(cache, elsewhere, tokens, 64, NULL));
    OK(kvkeep_get_session_keys(cache, elsewhere, 0, 4, 0, 1, 1, second, 4));
    CHECK(memcmp(first[0].hash, second[0].hash, 32) != 0);
    teardown();
}

static void p9_tokens_of_a_session_are_bounded(void) {
    setup(MIB);
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "model";
    options.chunk_tokens = KVKEEP_KEYS_MAX;
    uint64_t wide, chunks = 0;
    OK(kvkeep_open_space(cache, &options, &wide));
    uint64_t session = begin(cache, wide);
    static uint32_t tokens[KVKEEP_KEYS_MAX];
    for (int i = 0; i < 64; i++) OK(kvkeep_append_tokens(cache, session, tokens, KVKEEP_KEYS_MAX, &chunks));
    CHECK_EQUAL(chunks, 64);
    FAILS(kvkeep_append_tokens(cache, session, tokens, 1, &chunks), KVKEEP_ERR_LIMIT, "67108864 tokens");
    CHECK_EQUAL(chunks, 64);
    teardown();
}

static void keys_come_chunk_major(void) {
    setup(MIB);
    uint32_t tokens[48] = {0};
    uint64_t session = begin(cache, space);
    kvkeep_key keys[12], plain[3];
    OK(kvkeep_append_tokens(cache, session, tokens, 48, NULL));
    OK(kvkeep_get_session_keys(cache, session, 0, 3, 0, 1, 1, plain, 3));
    OK(kvkeep_get_session_keys(cache, session, 1, 2, 4, 3, 2, keys, 12));
    for (uint32_t i = 0; i < 12; i++) {
        CHECK(memcmp(keys[i].hash, plain[1 + i / 6].hash, 32) == 0);
        CHECK_EQUAL(keys[i].rank, 4 + i / 2 % 3);
        CHECK_EQUAL(keys[i].group, i % 2);
    }
    FAILS(kvkeep_get_session_keys(cache, session, 2, 2, 0, 1, 1, keys, 2), KVKEEP_ERR_INVALID, "chunk");
    FAILS(kvkeep_get_session_keys(cache, session, 0, 2, 0, 2, 2, keys, 7), KVKEEP_ERR_INVALID, "key_count is 7");
    teardown();
}

static void tokens_release_what_lies_wholly_in_their_range(void) {
    setup(MIB);
    uint32_t tokens[80];
    for (uint32_t i = 0; i < 80; i++) tokens[i] = i;
    uint64_t session = begin(cache, space), returned = 99;
    kvkeep_key keys[10];
    kvkeep_view views[10];
    OK(kvkeep_append_tokens(cache, session, tokens, 80, NULL));
    OK(kvkeep_get_session_keys(cache, session, 0, 5, 0, 2, 1, keys, 10));
    put_in(cache, session, keys, 10, 100);
    OK(kvkeep_reserve_read(cache, session, keys, 10, 1, views));
    CHECK_EQUAL(stats_of(cache).l1_shares, 20);
    // Of the tokens 10 to 69 the chunks 1, 2 and 3 are whole.
    OK(kvkeep_finish_read_tokens(cache, session, 10, 70, 0, 2, 1, 1, &returned));
    CHECK_EQUAL(returned, 6);
    CHECK_EQUAL(stats_of(cache).l1_shares, 8);
    OK(kvkeep_finish_read_tokens(cache, session, 0, 80, 0, 1, 1, 1, &returned));
    CHECK_EQUAL(returned, 2);
    CHECK_EQUAL(stats_of(cache).l1_shares, 4);
    OK(kvkeep_finish_read_tokens(cache, session, 0, 80, 0, 2, 1, 1, NULL));
    check_nothing_is_held(cache);
    OK(kvkeep_finish_read_tokens(cache, session, 0, 80, 0, 2, 1, 1, &returned));
    CHECK_EQUAL(returned, 0);
    FAILS(kvkeep_finish_read_tokens(cache, session, 16, 16, 0, 1, 1, 0, NULL), KVKEEP_ERR_INVALID, "token");
    FAILS(kvkeep_finish_read_tokens(cache, session, 32, 16, 0, 1, 1, 0, NULL), KVKEEP_ERR_INVALID, "token");
    FAILS(kvkeep_finish_read_tokens(cache, session, 1000, 2000, 0, 1, 1, 0, NULL), KVKEEP_ERR_INVALID, "token");
    teardown();
}

int main(void) {
    watchdog();
    RUN(end_returns_what_is_left);
    RUN(abort_drops_staging_and_shares);
    RUN(numbers_are_never_reused);
    RUN(p9_sessions_are_bounded);
    RUN(p5_an_idle_session_is_reclaimed);
    RUN(use_revives_where_nothing_was_taken);
    RUN(p3_revocation_returns_shares_once);
    RUN(p2_staging_is_never_taken);
    RUN(use_renews_the_deadline);
    RUN(renewing_keeps_a_session_and_does_nothing_else);
    RUN(a_session_tells_its_state);
    RUN(tokens_become_keys);
    RUN(p9_tokens_of_a_session_are_bounded);
    RUN(keys_come_chunk_major);
    RUN(tokens_release_what_lies_wholly_in_their_range);
    return 0;
}
