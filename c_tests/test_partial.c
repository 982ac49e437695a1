// After PARTIAL, kvkeep_last_error() says how many keys fell short, which one first, why, and what to do.
#include "below.h"

static void check_said(const char *words) {
    if (strstr(kvkeep_last_error(), words) == NULL) {
        fprintf(stderr, "said \"%s\", not \"%s\"\n", kvkeep_last_error(), words);
        CHECK(0);
    }
}

static void enter_l1(void) {
    kvkeep_options options = quiet_options(MIB);
    enter(open_with(&options));
    put(cache, space, keys, 2, SIZE);
    // An earlier error, which is not to be taken for a later one.
    CHECK_STATUS(kvkeep_end_session(cache, 12345), KVKEEP_ERR_NOT_FOUND);
}

static void a_key_that_is_absent_is_named(void) {
    enter_l1();
    kvkeep_view views[4];
    CHECK_STATUS(kvkeep_reserve_read(cache, session, keys, 4, 0, views), KVKEEP_PARTIAL);
    check_said("2 of 4 keys fell short; the first is keys[2], ");
    check_said("KVKEEP_ERR_NOT_FOUND: it is not ready in L1: have it loaded by kvkeep_submit_prefetch");
    OK(kvkeep_finish_read(cache, session, keys, 2, 0, NULL));
    leave();
}

static void a_key_that_is_staged_names_its_session(void) {
    enter_l1();
    kvkeep_session_options options;
    KVKEEP_INIT(&options);
    options.request_id = "writes it";
    uint64_t writer, sizes[1] = {SIZE};
    OK(kvkeep_begin_session(cache, space, &options, &writer));
    kvkeep_view view;
    OK(kvkeep_reserve_write(cache, writer, &keys[2], 1, sizes, KVKEEP_LIFETIME_CACHED, &view));
    CHECK_STATUS(kvkeep_reserve_read(cache, session, &keys[2], 1, 0, &view), KVKEEP_PARTIAL);
    char words[80];
    snprintf(words, sizeof words, "session %llu (\"writes it\", pid %d) has it staged", (unsigned long long)writer,
             getpid());
    check_said(words);
    OK(kvkeep_end_session(cache, writer));
    CHECK_STATUS(kvkeep_reserve_read(cache, session, &keys[2], 1, 0, &view), KVKEEP_PARTIAL);
    check_said("it is not ready in L1");
    leave();
}

static void each_reason_has_its_remedy(void) {
    enter_l1();
    int32_t statuses[4];
    uint64_t sizes[4] = {SIZE, SIZE, 0, SIZE};
    kvkeep_view views[4];
    CHECK_STATUS(kvkeep_reserve_write(cache, session, keys, 4, sizes, KVKEEP_LIFETIME_CACHED, views), KVKEEP_PARTIAL);
    check_said("3 of 4 keys fell short; the first is keys[0], ");
    check_said("KVKEEP_ERR_EXISTS: it is ready already");
    OK(kvkeep_abort_write(cache, session, &keys[3], 1, NULL));
    CHECK_STATUS(kvkeep_abort_write(cache, session, keys, 2, NULL), KVKEEP_PARTIAL);
    check_said("some of the 2 keys were not OK: pass statuses");
    CHECK_STATUS(kvkeep_finish_write(cache, session, keys, 2, statuses), KVKEEP_PARTIAL);
    check_said("this session has not staged it: reserve it by kvkeep_reserve_write first");
    CHECK_STATUS(kvkeep_finish_read(cache, session, keys, 2, 0, statuses), KVKEEP_PARTIAL);
    check_said("KVKEEP_ERR_NOT_HELD: the session holds fewer shares of it");
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, views));
    CHECK_STATUS(kvkeep_evict(cache, space, keys, 2, statuses), KVKEEP_PARTIAL);
    check_said("1 of 2 keys fell short; the first is keys[0], ");
    check_said("KVKEEP_ERR_LOCKED: it is in use: kvkeep_explain_key says by whom");
    CHECK_STATUS(kvkeep_clear(cache, space, 0, NULL), KVKEEP_PARTIAL);
    check_said("in use stay");
    OK(kvkeep_finish_read(cache, session, keys, 1, 0, NULL));
    CHECK_STATUS(kvkeep_delete(cache, space, &keys[3], 1, statuses), KVKEEP_PARTIAL);
    check_said("no tier is known to have it");
    leave();
}

static void memory_that_is_refused_names_its_holder(void) {
    enter_l1();
    uint64_t sizes[4] = {MIB / 2, MIB / 4, MIB / 2, MIB / 2};
    kvkeep_view views[4];
    CHECK_STATUS(kvkeep_reserve_write(cache, session, &keys[2], 4, sizes, KVKEEP_LIFETIME_CACHED, views),
                 KVKEEP_PARTIAL);
    check_said("no memory for 2 of 4 keys: session ");
    check_said("holds 75 % of L1: return its shares or end it, or make L1 larger (\"");
    check_said("has 786432 of 1048576 bytes");
    OK(kvkeep_abort_write(cache, session, &keys[2], 2, NULL));
    leave();
}

static void what_does_not_fit_says_how_much_there_is(void) {
    enter(open_l2(MIB, "memory:"));
    kvkeep_backend_state state;
    size_t count, length;
    char text[8];
    CHECK_STATUS(kvkeep_query_backends(cache, NULL, 0, &count), KVKEEP_PARTIAL);
    check_said("there are 1 backends");
    OK(kvkeep_query_backends(cache, &state, 1, &count));
    CHECK_STATUS(kvkeep_get_metrics(cache, text, sizeof text, &length), KVKEEP_PARTIAL);
    char words[64];
    snprintf(words, sizeof words, "needs a buffer of %zu bytes", length + 1);
    check_said(words);
    leave();
}

int main(void) {
    watchdog();
    RUN(a_key_that_is_absent_is_named);
    RUN(a_key_that_is_staged_names_its_session);
    RUN(each_reason_has_its_remedy);
    RUN(memory_that_is_refused_names_its_holder);
    RUN(what_does_not_fit_says_how_much_there_is);
    return 0;
}
