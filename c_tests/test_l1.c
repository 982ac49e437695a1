// Objects in memory: their states, shares and memory.
#include "l1.h"

static int32_t read_status(uint64_t reader, const kvkeep_key *key, int32_t extra_count) {
    kvkeep_view view;
    kvkeep_reserve_read(cache, reader, key, 1, extra_count, &view);
    return view.status;
}

static int32_t finish_status(uint64_t reader, const kvkeep_key *key, int32_t extra_count) {
    int32_t status;
    kvkeep_finish_read(cache, reader, key, 1, extra_count, &status);
    return status;
}

static void p1_only_committed_bytes_are_read(void) {
    setup(MIB);
    uint64_t other = begin(cache, space);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    int32_t status;
    CHECK_STATUS(read_status(session, &key, 0), KVKEEP_ERR_NOT_FOUND);
    stage_in(cache, session, &key, 1, 5000, KVKEEP_LIFETIME_CACHED);
    CHECK_STATUS(read_status(session, &key, 0), KVKEEP_ERR_NOT_FOUND);
    CHECK_STATUS(read_status(other, &key, 0), KVKEEP_ERR_NOT_FOUND);
    CHECK_STATUS(write_status(session, &key, 5000), KVKEEP_ERR_EXISTS);
    CHECK_EQUAL(stats_of(cache).l1_staged, 1);
    OK(kvkeep_finish_write(cache, session, &key, 1, &status));
    OK(status);
    OK(kvkeep_reserve_read(cache, other, &key, 1, 0, &view));
    CHECK_EQUAL(view.size, 5000);
    CHECK(holds(&key, &view));
    CHECK_STATUS(write_status(other, &key, 5000), KVKEEP_ERR_EXISTS);
    CHECK_STATUS(kvkeep_finish_write(cache, session, &key, 1, &status), KVKEEP_PARTIAL);
    CHECK_STATUS(status, KVKEEP_ERR_NOT_FOUND);
    teardown();
}

static void p1_the_first_commit_wins_and_the_second_succeeds(void) {
    setup(MIB);
    uint64_t other = begin(cache, space), size = 4096;
    kvkeep_key key = key_of(1);
    kvkeep_view first, second, read;
    OK(kvkeep_reserve_write(cache, session, &key, 1, &size, KVKEEP_LIFETIME_CACHED, &first));
    OK(kvkeep_reserve_write(cache, other, &key, 1, &size, KVKEEP_LIFETIME_CACHED, &second));
    CHECK(first.data != second.data);
    fill(&key, &first);
    memset(second.data, 0x5a, size);
    OK(kvkeep_finish_write(cache, session, &key, 1, NULL));
    OK(kvkeep_finish_write(cache, other, &key, 1, NULL));
    OK(kvkeep_reserve_read(cache, other, &key, 1, 0, &read));
    CHECK(holds(&key, &read));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.commits, 2);
    CHECK_EQUAL(stats.commits_discarded, 1);
    CHECK_EQUAL(stats.l1_objects, 1);
    CHECK_EQUAL(stats.l1_staged, 0);
    teardown();
}

static void p1_a_second_commit_that_keeps_makes_a_temporary_object_kept(void) {
    setup(MIB);
    uint64_t other = begin(cache, space);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    stage_in(cache, session, &key, 1, 4096, KVKEEP_LIFETIME_TEMPORARY);
    stage_in(cache, other, &key, 1, 4096, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, &key, 1, 0, &view));
    OK(kvkeep_finish_write(cache, other, &key, 1, NULL));
    OK(finish_status(session, &key, 0));
    CHECK(is_ready(cache, space, &key));
    teardown();
}

static void views_are_aligned(void) {
    setup(4 * MIB);
    const uint64_t sizes[] = {4096, 100, 8192, 1, 65536, 5000, 12288};
    kvkeep_key keys[7];
    kvkeep_view views[7];
    keys_of(keys, 1, 7);
    OK(kvkeep_reserve_write(cache, session, keys, 7, sizes, KVKEEP_LIFETIME_CACHED, views));
    for (int i = 0; i < 7; i++) {
        uintptr_t alignment = sizes[i] % 4096 == 0 ? 4096 : 64;
        CHECK_EQUAL((uintptr_t)views[i].data % alignment, 0);
        CHECK_EQUAL(views[i].size, sizes[i]);
        CHECK_EQUAL(views[i].reserved, 0);
        fill(&keys[i], &views[i]);
    }
    OK(kvkeep_finish_write(cache, session, keys, 7, NULL));
    OK(kvkeep_reserve_read(cache, session, keys, 7, 0, views));
    for (int i = 0; i < 7; i++) CHECK(holds(&keys[i], &views[i]));
    teardown();
}

static void a_key_fails_alone(void) {
    setup(MIB);
    kvkeep_key keys[4];
    kvkeep_view views[4];
    int32_t statuses[4];
    keys_of(keys, 1, 4);
    put_in(cache, session, &keys[1], 1, 100);
    stage_in(cache, session, &keys[3], 1, 100, KVKEEP_LIFETIME_CACHED);
    CHECK_STATUS(kvkeep_reserve_read(cache, session, keys, 4, 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(views[0].status, KVKEEP_ERR_NOT_FOUND);
    OK(views[1].status);
    CHECK_STATUS(views[2].status, KVKEEP_ERR_NOT_FOUND);
    CHECK_STATUS(views[3].status, KVKEEP_ERR_NOT_FOUND);
    CHECK(views[0].data == NULL && views[1].data != NULL && views[3].data == NULL);
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, 4, 0, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_NOT_HELD);
    OK(statuses[1]);
    const uint64_t sizes[4] = {100, 100, 100, 100};
    CHECK_STATUS(kvkeep_reserve_write(cache, session, keys, 4, sizes, 0, views), KVKEEP_PARTIAL);
    OK(views[0].status);
    CHECK_STATUS(views[1].status, KVKEEP_ERR_EXISTS);
    OK(views[2].status);
    CHECK_STATUS(views[3].status, KVKEEP_ERR_EXISTS);
    CHECK_STATUS(kvkeep_finish_write(cache, session, keys, 4, statuses), KVKEEP_PARTIAL);
    OK(statuses[0]);
    CHECK_STATUS(statuses[1], KVKEEP_ERR_NOT_FOUND);
    OK(statuses[3]);
    teardown();
}

static void what_is_given_back_unwritten_was_never_there(void) {
    setup(MIB);
    kvkeep_key keys[2];
    int32_t statuses[2];
    keys_of(keys, 1, 2);
    stage_in(cache, session, keys, 1, 4096, KVKEEP_LIFETIME_CACHED);
    CHECK_STATUS(kvkeep_abort_write(cache, session, keys, 2, statuses), KVKEEP_PARTIAL);
    OK(statuses[0]);
    CHECK_STATUS(statuses[1], KVKEEP_ERR_NOT_FOUND);
    CHECK_STATUS(kvkeep_finish_write(cache, session, keys, 1, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_NOT_FOUND);
    CHECK_EQUAL(stats_of(cache).l1_used_bytes, 0);
    CHECK(!is_ready(cache, space, &keys[0]));
    teardown();
}

static void p3_every_share_is_returned_exactly_once(void) {
    setup(MIB);
    uint64_t other = begin(cache, space);
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 4096);
    CHECK_STATUS(finish_status(session, &key, 0), KVKEEP_ERR_NOT_HELD);
    OK(read_status(session, &key, 7));
    OK(read_status(other, &key, 0));
    CHECK_EQUAL(stats_of(cache).l1_shares, 9);
    for (int worker = 0; worker < 7; worker++) OK(finish_status(session, &key, 0));
    CHECK_STATUS(finish_status(session, &key, 1), KVKEEP_ERR_NOT_HELD);
    CHECK_EQUAL(stats_of(cache).l1_shares, 2);
    OK(finish_status(session, &key, 0));
    CHECK_STATUS(finish_status(session, &key, 0), KVKEEP_ERR_NOT_HELD);
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    OK(finish_status(other, &key, 0));
    OK(read_status(session, &key, 127));
    OK(read_status(session, &key, 127));
    CHECK_EQUAL(stats_of(cache).l1_shares, 256);
    OK(finish_status(session, &key, 127));
    OK(kvkeep_end_session(cache, session));
    check_nothing_is_held(cache);
    teardown();
}

static void p3_another_sessions_share_is_never_taken(void) {
    setup(MIB);
    uint64_t other = begin(cache, space);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    put_in(cache, session, &key, 1, 4096);
    OK(read_status(session, &key, 0));
    CHECK_STATUS(finish_status(other, &key, 0), KVKEEP_ERR_NOT_HELD);
    CHECK_STATUS(kvkeep_get_views(cache, other, &key, 1, &view), KVKEEP_PARTIAL);
    CHECK_STATUS(view.status, KVKEEP_ERR_NOT_HELD);
    CHECK(view.data == NULL);
    OK(kvkeep_get_views(cache, session, &key, 1, &view));
    CHECK(holds(&key, &view));
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    OK(kvkeep_end_session(cache, other));
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    teardown();
}

static void shares_that_cannot_be_counted_are_refused(void) {
    enum { BATCH = 4096, ROUNDS = (1 << 24) / 128 / BATCH };
    static kvkeep_key keys[BATCH];
    static kvkeep_view views[BATCH];
    static int32_t statuses[BATCH];
    setup(MIB);
    for (int i = 0; i < BATCH; i++) keys[i] = key_of(1);
    put_in(cache, session, keys, 1, 64);
    for (int round = 0; round < ROUNDS - 1; round++) OK(kvkeep_reserve_read(cache, session, keys, BATCH, 127, views));
    CHECK_STATUS(kvkeep_reserve_read(cache, session, keys, BATCH, 127, views), KVKEEP_PARTIAL);
    OK(views[BATCH - 2].status);
    CHECK_STATUS(views[BATCH - 1].status, KVKEEP_ERR_LIMIT);
    CHECK_EQUAL(stats_of(cache).l1_shares, (1 << 24) - 128);
    uint64_t other = begin(cache, space);
    CHECK_STATUS(read_status(other, &keys[0], 127), KVKEEP_ERR_LIMIT);
    OK(read_status(other, &keys[0], 126));
    OK(finish_status(other, &keys[0], 126));
    for (int round = 0; round < ROUNDS - 1; round++) OK(kvkeep_finish_read(cache, session, keys, BATCH, 127, statuses));
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, BATCH, 127, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[BATCH - 1], KVKEEP_ERR_NOT_HELD);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    teardown();
}

static void a_commit_that_takes_shares_leaves_eviction_no_gap(void) {
    setup(MIB);
    kvkeep_key keys[8];
    kvkeep_view views[8];
    keys_of(keys, 1, 8);
    stage_in(cache, session, keys, 8, 64 * KIB, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, keys, 8, 3, views));
    CHECK_EQUAL(stats_of(cache).l1_shares, 32);
    for (uint32_t i = 0; i < 32; i++) {
        kvkeep_key filler = key_of(100 + i);
        put(cache, space, &filler, 1, 64 * KIB);
    }
    for (int i = 0; i < 8; i++) CHECK(holds(&keys[i], &views[i]));
    OK(kvkeep_finish_read(cache, session, keys, 8, 3, NULL));
    check_nothing_is_held(cache);
    teardown();
}

static void temporaries_go_with_their_last_share(void) {
    setup(MIB);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    stage_in(cache, session, &key, 1, 4096, KVKEEP_LIFETIME_TEMPORARY);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, &key, 1, 1, &view));
    OK(finish_status(session, &key, 0));
    CHECK(holds(&key, &view));
    CHECK_EQUAL(stats_of(cache).l1_objects, 1);
    OK(finish_status(session, &key, 0));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    CHECK_STATUS(read_status(session, &key, 0), KVKEEP_ERR_NOT_FOUND);
    teardown();
}

static void p2_memory_in_use_is_never_reused(void) {
    setup(MIB);
    kvkeep_key held[8], more[32];
    kvkeep_view views[32];
    uint64_t sizes[32];
    keys_of(held, 1, 8);
    keys_of(more, 100, 32);
    put_in(cache, session, held, 8, 64 * KIB);
    OK(kvkeep_reserve_read(cache, session, held, 8, 0, views));
    uint64_t writer = begin(cache, space);
    for (int i = 0; i < 32; i++) sizes[i] = 64 * KIB;
    sizes[31] = 64;
    CHECK_STATUS(kvkeep_reserve_write(cache, writer, more, 32, sizes, 0, views), KVKEEP_PARTIAL);
    int given = 0;
    while (given < 32 && views[given].status == KVKEEP_OK) fill(&more[given], &views[given]), given++;
    CHECK(given >= 7 && given <= 8);
    // In key order: after the first key that does not fit no later one is given memory, however small.
    for (int i = given; i < 32; i++) CHECK_STATUS(views[i].status, KVKEEP_ERR_NO_MEMORY);
    CHECK_EQUAL(stats_of(cache).refusals, 1);
    check_held(cache, session, held, 8);
    OK(kvkeep_finish_write(cache, writer, more, (size_t)given, NULL));
    OK(kvkeep_end_session(cache, session));
    kvkeep_key filler[8];
    keys_of(filler, 200, 8);
    put(cache, space, filler, 8, 64 * KIB);
    CHECK_EQUAL(stats_of(cache).refusals, 1);
    teardown();
}

static void a_key_that_is_there_needs_no_memory(void) {
    setup(MIB);
    kvkeep_key keys[3] = {key_of(1), key_of(2), key_of(3)};
    put_in(cache, session, &keys[1], 1, 4096);
    OK(read_status(session, &keys[1], 0));
    const uint64_t sizes[3] = {2 * MIB, 4096, 4096};
    kvkeep_view views[3];
    CHECK_STATUS(kvkeep_reserve_write(cache, session, keys, 3, sizes, 0, views), KVKEEP_PARTIAL);
    CHECK_STATUS(views[0].status, KVKEEP_ERR_NO_MEMORY);
    CHECK_STATUS(views[1].status, KVKEEP_ERR_EXISTS);
    CHECK_STATUS(views[2].status, KVKEEP_ERR_NO_MEMORY);
    teardown();
}

static void delete_spares_what_is_in_use(void) {
    setup(MIB);
    kvkeep_key keys[3];
    int32_t statuses[3];
    keys_of(keys, 1, 3);
    put_in(cache, session, keys, 2, 4096);
    OK(read_status(session, &keys[0], 0));
    CHECK_STATUS(kvkeep_delete(cache, space, keys, 3, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_LOCKED);
    OK(statuses[1]);
    CHECK_STATUS(statuses[2], KVKEEP_ERR_NOT_FOUND);
    check_held(cache, session, keys, 1);
    CHECK(!is_ready(cache, space, &keys[1]));
    OK(finish_status(session, &keys[0], 0));
    OK(kvkeep_delete(cache, space, keys, 1, NULL));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    teardown();
}

static void p2_clear_frees_what_is_in_use_when_its_last_share_goes(void) {
    setup(MIB);
    kvkeep_key keys[4];
    kvkeep_view views[2];
    keys_of(keys, 1, 4);
    put_in(cache, session, keys, 3, 64 * KIB);
    stage_in(cache, session, &keys[3], 1, 4096, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_reserve_read(cache, session, keys, 1, 1, views));
    uint64_t removed = 77;
    CHECK_STATUS(kvkeep_clear(cache, space, 0, &removed), KVKEEP_PARTIAL);
    CHECK_EQUAL(removed, 2);
    CHECK(is_ready(cache, space, &keys[0]));
    OK(kvkeep_clear(cache, 0, 1, &removed));
    CHECK_EQUAL(removed, 1);
    CHECK(!is_ready(cache, space, &keys[0]));
    // A new object of the same name lives beside the hidden one.
    uint64_t writer = begin(cache, space);
    put_in(cache, writer, keys, 1, 4096);
    OK(kvkeep_reserve_read(cache, writer, keys, 1, 0, &views[1]));
    CHECK_EQUAL(views[1].size, 4096);
    CHECK(views[1].data != views[0].data);
    CHECK(holds(&keys[0], &views[0]));
    OK(finish_status(session, &keys[0], 0));
    CHECK(holds(&keys[0], &views[0]));
    OK(finish_status(session, &keys[0], 0));
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    CHECK_EQUAL(stats_of(cache).l1_objects, 1);
    OK(kvkeep_finish_write(cache, session, &keys[3], 1, NULL));
    OK(kvkeep_end_session(cache, writer));
    OK(kvkeep_end_session(cache, session));
    check_nothing_is_held(cache);
    teardown();
}

static void p2_copies_from_before_and_after_a_clear_stay_until_both_are_returned(void) {
    setup(MIB);
    kvkeep_key key = key_of(1);
    kvkeep_view before, after;
    put(cache, space, &key, 1, 64 * KIB);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 1, &before));
    OK(kvkeep_clear(cache, space, 1, NULL));
    put(cache, space, &key, 1, 64 * KIB);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &after));
    CHECK(before.data != after.data);
    // Whose share that was is not said: the other reader still has its bytes, whichever it reads.
    for (int returned = 0; returned < 2; returned++) {
        OK(finish_status(session, &key, 0));
        uint64_t writer = begin(cache, space);
        for (uint32_t n = 100; n < 120; n++) {
            kvkeep_key other = key_of(n);
            if (write_status(writer, &other, 64 * KIB) == KVKEEP_OK)
                OK(kvkeep_finish_write(cache, writer, &other, 1, NULL));
        }
        OK(kvkeep_end_session(cache, writer));
        CHECK(holds(&key, &before));
        CHECK(holds(&key, &after));
        CHECK_EQUAL(stats_of(cache).l1_locked_bytes, 128 * KIB);
        CHECK_STATUS(finish_status(session, &key, 2 - returned), KVKEEP_ERR_NOT_HELD);
    }
    OK(finish_status(session, &key, 0));
    CHECK_EQUAL(stats_of(cache).l1_locked_bytes, 0);
    CHECK_STATUS(finish_status(session, &key, 0), KVKEEP_ERR_NOT_HELD);
    OK(kvkeep_end_session(cache, session));
    check_nothing_is_held(cache);
    teardown();
}

static void clear_of_one_space_leaves_the_others(void) {
    setup(MIB);
    uint64_t other = open_space(cache, "other"), removed;
    kvkeep_key key = key_of(1);
    put(cache, space, &key, 1, 4096);
    put(cache, other, &key, 1, 4096);
    OK(kvkeep_clear(cache, other, 0, &removed));
    CHECK_EQUAL(removed, 1);
    CHECK(is_ready(cache, space, &key));
    OK(kvkeep_clear(cache, 0, 0, &removed));
    CHECK_EQUAL(removed, 1);
    CHECK_EQUAL(stats_of(cache).l1_used_bytes, 0);
    teardown();
}

static void one_batch_of_many_sizes_fits_again_after_it_is_gone(void) {
    setup(8 * MIB);
    kvkeep_key keys[64];
    kvkeep_view views[64];
    uint64_t sizes[64];
    for (uint32_t round = 0; round < 50; round++) {
        keys_of(keys, 1000 * round, 64);
        for (uint32_t i = 0; i < 64; i++) sizes[i] = 1 + (i * 7919 + round * 104729) % (64 * KIB);
        OK(kvkeep_reserve_write(cache, session, keys, 64, sizes, 0, views));
        for (int i = 0; i < 64; i++) fill(&keys[i], &views[i]);
        OK(kvkeep_finish_write_and_reserve_read(cache, session, keys, 64, 0, views));
        for (int i = 0; i < 64; i++) CHECK(holds(&keys[i], &views[i]));
        OK(kvkeep_finish_read(cache, session, keys, 64, 0, NULL));
    }
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(stats_of(cache).l1_used_bytes, 0);
    teardown();
}

static void views_lie_in_the_arena(void) {
    setup(MIB);
    void *base = NULL;
    size_t bytes = 0;
    OK(kvkeep_get_arena(cache, &base, &bytes));
    CHECK_EQUAL(bytes, stats_of(cache).l1_bytes);
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    put_in(cache, session, &key, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, &key, 1, 0, &view));
    CHECK((char *)view.data >= (char *)base && (char *)view.data + view.size <= (char *)base + bytes);
    FAILS(kvkeep_get_arena(cache, NULL, &bytes), KVKEEP_ERR_INVALID, "base is NULL");
    FAILS(kvkeep_get_arena(cache, &base, NULL), KVKEEP_ERR_INVALID, "bytes is NULL");
    teardown();
}

int main(void) {
    watchdog();
    RUN(p1_only_committed_bytes_are_read);
    RUN(p1_the_first_commit_wins_and_the_second_succeeds);
    RUN(p1_a_second_commit_that_keeps_makes_a_temporary_object_kept);
    RUN(views_are_aligned);
    RUN(a_key_fails_alone);
    RUN(what_is_given_back_unwritten_was_never_there);
    RUN(p3_every_share_is_returned_exactly_once);
    RUN(p3_another_sessions_share_is_never_taken);
    RUN(shares_that_cannot_be_counted_are_refused);
    RUN(a_commit_that_takes_shares_leaves_eviction_no_gap);
    RUN(temporaries_go_with_their_last_share);
    RUN(p2_memory_in_use_is_never_reused);
    RUN(a_key_that_is_there_needs_no_memory);
    RUN(delete_spares_what_is_in_use);
    RUN(p2_clear_frees_what_is_in_use_when_its_last_share_goes);
    RUN(p2_copies_from_before_and_after_a_clear_stay_until_both_are_returned);
    RUN(clear_of_one_space_leaves_the_others);
    RUN(one_batch_of_many_sizes_fits_again_after_it_is_gone);
    RUN(views_lie_in_the_arena);
    return 0;
}
