// The answers of docs/embedding.md: what a scheduler does with a prompt that is whole in the cache, with the end of a prompt, at
// preemption, at an abort and at a failure, and who releases what.
#include "pages.h"

enum { CHUNK = PER_CHUNK * TOKENS };

static uint32_t tokens[4 * CHUNK];

static void setup(const char *url) {
    enter(url ? open_l2(4 * MIB, url) : open_l1(4 * MIB));
    for (uint32_t i = 0; i < 4 * CHUNK; i++) tokens[i] = 1000 + i;
}

// The keys of the full chunks of a new session's tokens, and of its tail, if it has one.
static size_t name(size_t token_count, kvkeep_key *keys) {
    session = begin(cache, space);
    size_t chunks = 0;
    OK(kvkeep_append_tokens(cache, session, tokens, token_count, &chunks));
    if (chunks > 0) OK(kvkeep_get_session_keys(cache, session, 0, chunks, 0, 1, 1, keys, chunks));
    uint32_t tail = (uint32_t)(token_count - chunks * CHUNK);
    if (tail > 0) OK(kvkeep_get_tail_keys(cache, session, tail, 0, 1, 1, &keys[chunks++], 1));
    return chunks;
}

static uint32_t hits_of(const kvkeep_key *keys, size_t count) {
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, count, NULL, &job, NULL, NULL));
    return result_of(job).hit_chunks;
}

static kvkeep_status store_and_wait(const kvkeep_key *keys, size_t count, const int32_t *ids) {
    return (kvkeep_status)result_of(store(keys, count, ids)).status;
}

static kvkeep_job_result load_and_wait(const kvkeep_key *keys, size_t count, const int32_t *ids) {
    kvkeep_transfer_options options = transfer_options();
    options.return_shares = 1;
    return result_of(load(keys, count, ids, &options));
}

static void the_end_of_a_prompt_is_found_by_its_own_tokens(void) {
    setup("memory:");
    kvkeep_key keys[4], other;
    // Two chunks, and six tokens in two blocks.
    CHECK_EQUAL(name(2 * CHUNK + 6, keys), 3);
    int32_t ids[12] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, KVKEEP_BLOCK_NONE, KVKEEP_BLOCK_NONE};
    OK(store_and_wait(keys, 3, ids));
    OK(kvkeep_end_session(cache, session));

    // The same prompt finds it, also when only a backend has it, and gets the pages back.
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(name(2 * CHUNK + 6, keys), 3);
    CHECK_EQUAL(hits_of(keys, 3), 3);
    int32_t to[12] = {20, 21, 22, 23, 24, 25, 26, 27, 28, 29, KVKEEP_BLOCK_NONE, KVKEEP_BLOCK_NONE};
    OK(load_and_wait(keys, 3, to).status);
    for (int i = 0; i < 10; i++) CHECK(block_is(to[i], ids[i]));
    OK(kvkeep_end_session(cache, session));

    // A shorter, a longer and another one do not.
    CHECK_EQUAL(name(2 * CHUNK + 5, keys), 3);
    CHECK_EQUAL(hits_of(keys, 3), 2);
    CHECK_EQUAL(name(2 * CHUNK + 7, keys), 3);
    CHECK_EQUAL(hits_of(keys, 3), 2);
    // But a longer one finds it under the key of its length.
    OK(kvkeep_get_tail_keys(cache, session, 6, 0, 1, 1, &keys[2], 1));
    CHECK_EQUAL(hits_of(keys, 3), 3);
    tokens[2 * CHUNK + 1]++;
    CHECK_EQUAL(name(2 * CHUNK + 6, keys), 3);
    CHECK_EQUAL(hits_of(keys, 3), 2);
    // Nor does a full chunk have the key of a tail: the tokens that fill it are part of its name.
    OK(kvkeep_get_tail_keys(cache, session, 6, 0, 1, 1, &other, 1));
    OK(kvkeep_append_tokens(cache, session, tokens, CHUNK - 6, NULL));
    OK(kvkeep_get_session_keys(cache, session, 2, 1, 0, 1, 1, keys, 1));
    CHECK(memcmp(&keys[0], &other, sizeof other) != 0);
    leave();
}

static void tails_have_a_key_for_each_rank_and_group(void) {
    setup(NULL);
    kvkeep_key keys[6];
    CHECK_EQUAL(name(3, keys), 1);
    OK(kvkeep_get_tail_keys(cache, session, 3, 5, 2, 3, &keys[0], 6));
    for (uint32_t i = 0; i < 6; i++) {
        CHECK(memcmp(keys[i].hash, keys[0].hash, sizeof keys[0].hash) == 0);
        CHECK_EQUAL(keys[i].rank, 5 + i / 3);
        CHECK_EQUAL(keys[i].group, i % 3);
    }
    leave();
}

static void p6_tails_that_there_are_not(void) {
    setup(NULL);
    kvkeep_key keys[2];
    CHECK_EQUAL(name(CHUNK + 3, keys), 2);
    FAILS(kvkeep_get_tail_keys(cache, session, 0, 0, 1, 1, keys, 1), KVKEEP_ERR_INVALID, "tail_tokens is 0");
    FAILS(kvkeep_get_tail_keys(cache, session, 4, 0, 1, 1, keys, 1), KVKEEP_ERR_INVALID, "has 3 tokens");
    FAILS(kvkeep_get_tail_keys(cache, session, 3, 0, 1, 2, keys, 1), KVKEEP_ERR_INVALID, "key_count is 1");
    FAILS(kvkeep_get_tail_keys(cache, session, 3, UINT32_MAX, 1, 1, keys, 1), KVKEEP_ERR_INVALID, "overflow");
    FAILS(kvkeep_get_tail_keys(cache, session, 3, 0, 1, 1, NULL, 1), KVKEEP_ERR_INVALID, "keys is NULL");
    FAILS(kvkeep_get_tail_keys(cache, session, 3, 0, 0, 1, keys, 0), KVKEEP_ERR_INVALID, "0");
    FAILS(kvkeep_get_tail_keys(cache, 4711, 3, 0, 1, 1, keys, 1), KVKEEP_ERR_NOT_FOUND, "4711");
    leave();
}

static void the_last_token_of_a_whole_hit_may_be_computed_in_its_page(void) {
    setup(NULL);
    kvkeep_key keys[2];
    CHECK_EQUAL(name(2 * CHUNK, keys), 2);
    int32_t ids[8], to[8], again[8];
    blocks_of(ids, 0, 8);
    blocks_of(to, 20, 8);
    blocks_of(again, 40, 8);
    OK(store_and_wait(keys, 2, ids));
    OK(kvkeep_end_session(cache, session));

    CHECK_EQUAL(name(2 * CHUNK, keys), 2);
    CHECK_EQUAL(hits_of(keys, 2), 2);
    OK(load_and_wait(keys, 2, to).status);
    // The engine computes the last token for its logits, and writes its entry again, here a wrong one.
    for (int s = 0; s < 2 * LAYERS; s++) memset(&pages[s][27][BLOCK / TOKENS * 3], 0xdd, BLOCK / TOKENS);
    // To store the chunk again copies nothing, and the object is as it was.
    kvkeep_job_result result = result_of(store(keys, 2, to));
    OK(result.status);
    CHECK_EQUAL(result.copied_bytes, 0);
    OK(load_and_wait(keys, 2, again).status);
    for (int i = 0; i < 8; i++) CHECK(block_is(40 + i, i));
    leave();
}

static void a_preempted_request_goes_on_where_it_was(void) {
    setup("memory:");
    kvkeep_key keys[3];
    CHECK_EQUAL(name(2 * CHUNK + 8, keys), 3);
    int32_t ids[12] = {30, 3, 31, 4, 32, 5, 33, 6, 34, 7, KVKEEP_BLOCK_NONE, KVKEEP_BLOCK_NONE}, to[12];
    uint64_t job = store(keys, 3, ids);
    // The session may end before the store is done; its pages are free only when it is.
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_wait_job(cache, job, 60000));
    memset(pages, 0xee, sizeof before);
    OK(result_of(job).status);
    OK(kvkeep_release_job(cache, job));

    CHECK_EQUAL(name(2 * CHUNK + 8, keys), 3);
    CHECK_EQUAL(hits_of(keys, 3), 3);
    blocks_of(to, 50, 12);
    to[10] = to[11] = KVKEEP_BLOCK_NONE;
    OK(load_and_wait(keys, 3, to).status);
    for (int i = 0; i < 10; i++) CHECK(block_is(to[i], ids[i]));
    leave();
}

static void the_tail_of_a_preempted_request_may_go_when_it_was_read(void) {
    setup("memory:");
    kvkeep_key key;
    CHECK_EQUAL(name(8, &key), 1);
    int32_t ids[PER_CHUNK] = {30, 3, KVKEEP_BLOCK_NONE, KVKEEP_BLOCK_NONE}, to[PER_CHUNK] = {50, 51, -1, -1};
    kvkeep_transfer_options options = transfer_options();
    options.lifetime = KVKEEP_LIFETIME_TEMPORARY;
    uint64_t job;
    OK(kvkeep_submit_store(cache, pool, session, &key, 1, ids, PER_CHUNK, &options, &job, NULL, NULL));
    OK(result_of(job).status);
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).writes_asked, 0);

    CHECK_EQUAL(name(8, &key), 1);
    CHECK_EQUAL(hits_of(&key, 1), 1);
    OK(load_and_wait(&key, 1, to).status);
    for (int i = 0; i < 2; i++) CHECK(block_is(to[i], ids[i]));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    leave();
}

static void an_aborted_request_leaves_its_pages_when_its_transfers_have_ended(void) {
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    enter_with_hanging_loads(keys, 4);
    int32_t ids[16];
    blocks_of(ids, 0, 16);
    uint64_t transfer = load(keys, 4, ids, NULL), prefetch;
    OK(kvkeep_submit_prefetch(cache, session, keys, 4, NULL, &prefetch, NULL, NULL));
    OK(kvkeep_abort_session(cache, session));
    // The prefetch went with the session. The transfer is there to be waited for.
    FAILS(kvkeep_wait_job(cache, prefetch, 0), KVKEEP_ERR_NOT_FOUND, "not");
    OK(kvkeep_wait_job(cache, transfer, 60000));
    CHECK_STATUS(result_of(transfer).status, KVKEEP_ERR_CANCELLED);
    check_blocks(transfer, 16, KVKEEP_ERR_CANCELLED);
    for (size_t i = 0; i < sizeof before; i++) CHECK_EQUAL(((uint8_t *)pages)[i], 0xee);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    CHECK_EQUAL(stats_of(cache).sessions, 0);
    // What hangs keeps its memory.
    OK(kvkeep_close(cache));
}

static void a_load_that_falls_short_returns_the_shares_all_the_same(void) {
    setup(NULL);
    kvkeep_key keys[3];
    CHECK_EQUAL(name(3 * CHUNK, keys), 3);
    int32_t ids[12];
    blocks_of(ids, 0, 12);
    OK(store_and_wait(keys, 3, ids));
    CHECK_EQUAL(hits_of(keys, 3), 3);
    CHECK_EQUAL(stats_of(cache).l1_shares, 3);
    // The middle one is lost.
    uint64_t other = session;
    OK(kvkeep_finish_read(cache, other, &keys[1], 1, 0, NULL));
    OK(kvkeep_evict(cache, space, &keys[1], 1, NULL));
    blocks_of(ids, 20, 12);
    kvkeep_transfer_options options = transfer_options();
    options.return_shares = 1;
    uint64_t job = load(keys, 3, ids, &options);
    CHECK_STATUS(result_of(job).status, KVKEEP_PARTIAL);
    int32_t statuses[12];
    OK(kvkeep_query_blocks(cache, job, statuses, 12));
    for (int i = 0; i < 12; i++) CHECK_STATUS(statuses[i], i / 4 == 1 ? KVKEEP_ERR_NOT_FOUND : KVKEEP_OK);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    leave();
}

static void the_end_of_a_session_releases_all_but_its_transfers(void) {
    setup("memory:");
    kvkeep_key keys[2], staged;
    CHECK_EQUAL(name(2 * CHUNK, keys), 2);
    int32_t ids[8];
    blocks_of(ids, 0, 8);
    OK(store_and_wait(keys, 2, ids));
    uint64_t prefetch, transfer;
    OK(kvkeep_submit_prefetch(cache, session, keys, 2, NULL, &prefetch, NULL, NULL));
    OK(kvkeep_wait_job(cache, prefetch, 60000));
    keys_of(&staged, 77, 1);
    stage_in(cache, session, &staged, 1, 4096, KVKEEP_LIFETIME_CACHED);
    blocks_of(ids, 20, 8);
    transfer = load(keys, 2, ids, NULL);
    OK(kvkeep_end_session(cache, session));
    FAILS(kvkeep_wait_job(cache, prefetch, 0), KVKEEP_ERR_NOT_FOUND, "not");
    OK(kvkeep_wait_job(cache, transfer, 60000));
    check_nothing_is_held(cache);
    OK(kvkeep_release_job(cache, transfer));
    FAILS(kvkeep_wait_job(cache, transfer, 0), KVKEEP_ERR_NOT_FOUND, "not");
    leave();
}

int main(void) {
    watchdog();
    pages_begin();
    RUN(the_end_of_a_prompt_is_found_by_its_own_tokens);
    RUN(tails_have_a_key_for_each_rank_and_group);
    RUN(p6_tails_that_there_are_not);
    RUN(the_last_token_of_a_whole_hit_may_be_computed_in_its_page);
    RUN(a_preempted_request_goes_on_where_it_was);
    RUN(the_tail_of_a_preempted_request_may_go_when_it_was_read);
    RUN(an_aborted_request_leaves_its_pages_when_its_transfers_have_ended);
    RUN(a_load_that_falls_short_returns_the_shares_all_the_same);
    RUN(the_end_of_a_session_releases_all_but_its_transfers);
    return 0;
}
