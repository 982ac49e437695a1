// A store whose functions the host program has: what it must give, what it is given, and that nothing it does wrong harms a caller.
#include "memory_plugin.h"

static uint64_t backend;
static char logged[1 << 14];
static pthread_mutex_t logging = PTHREAD_MUTEX_INITIALIZER;

static void note_line(void *userdata, int32_t level, const char *message) {
    (void)userdata, (void)level;
    pthread_mutex_lock(&logging);
    size_t length = strlen(logged);
    snprintf(logged + length, sizeof logged - length, "%s\n", message);
    pthread_mutex_unlock(&logging);
}

static int is_logged(const char *words) {
    pthread_mutex_lock(&logging);
    int found = strstr(logged, words) != NULL;
    pthread_mutex_unlock(&logging);
    return found;
}

// A cache over the plug-in alone, whose requests are late after so many milliseconds.
static void enter_over_plugin(uint32_t timeout_ms, const char *parameters) {
    reset_plugin();
    logged[0] = '\0';
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_timeout_ms = timeout_ms;
    options.log = note_line;
    options.log_level = KVKEEP_LOG_INFO;
    enter(open_with(&options));
    kvkeep_backend_vtable vtable = plugin_vtable();
    OK(kvkeep_add_backend_vtable(cache, &vtable, parameters, &backend));
    CHECK(backend != 0);
}

static kvkeep_backend_state state_of_backend(void) {
    kvkeep_backend_state state;
    size_t count;
    OK(kvkeep_query_backends(cache, &state, 1, &count));
    CHECK_EQUAL(count, 1);
    return state;
}

static void leave_plugin(void) {
    leave();
    CHECK_EQUAL(plugin.opened, 1);
    CHECK_EQUAL(plugin.closed, 1);
    reset_plugin();
}

static void what_a_plug_in_stores_is_found_again(void) {
    enter_over_plugin(0, "threads=3&batch=2&server=a%20b");
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(table_count(), COUNT);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    // Two objects a call.
    CHECK_EQUAL(plugin_count(&plugin.loads), COUNT / 2);
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_flush(cache, 30000));
    AWAIT(plugin_count(&plugin.unpins) == COUNT);
    AWAIT(plugin_count(&plugin.touches) >= COUNT);
    CHECK_EQUAL(stats_of(cache).l2_pins, 0);
    AWAIT(state_of_backend().objects == COUNT);
    kvkeep_backend_state state = state_of_backend();
    CHECK_EQUAL(state.evictions, 7);
    CHECK_EQUAL(state.capacity_bytes, TABLE * SIZE);
    CHECK_EQUAL(state.health, KVKEEP_BACKEND_GOOD);
    CHECK(strcmp(state.url, "plugin:table?threads=3&batch=2&server=a b") == 0);
    CHECK_EQUAL(plugin.refused, 0);
    leave_plugin();
}

static void answers_from_another_thread_are_as_good(void) {
    enter_over_plugin(0, NULL);
    be(FROM_A_THREAD);
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    be(WELL);
    leave_plugin();
}

static void what_is_deleted_is_gone_and_may_come_again(void) {
    enter_over_plugin(0, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    int32_t statuses[COUNT];
    CHECK(kvkeep_delete(cache, space, keys, COUNT, statuses) >= 0);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave_plugin();
}

static void a_space_is_forgotten_by_its_list(void) {
    enter_over_plugin(0, NULL);
    put(cache, open_space(cache, "another model"), keys, COUNT, SIZE);
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(table_count(), 2 * COUNT);
    uint64_t removed;
    OK(kvkeep_forget_space(cache, space, &removed));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(table_count(), COUNT);
    CHECK(plugin.lists >= COUNT / 3);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    leave_plugin();
}

static void a_plug_in_without_a_list_is_not_asked_about_a_forgotten_space(void) {
    reset_plugin();
    enter(open_l1(4 * MIB));
    kvkeep_backend_vtable vtable = plugin_vtable();
    vtable.list = NULL;
    vtable.touch = vtable.unpin = NULL;
    vtable.usage = vtable.health = NULL;
    OK(kvkeep_add_backend_vtable(cache, &vtable, "", NULL));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_abort_session(cache, session));
    session = begin(cache, space);
    uint64_t removed;
    OK(kvkeep_forget_space(cache, space, &removed));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(table_count(), COUNT);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    leave_plugin();
}

static void l1_learns_of_what_a_plug_in_lost(void) {
    enter_over_plugin(0, NULL);
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_key_state state;
    OK(kvkeep_query_keys(cache, space, &keys[0], 1, &state));
    CHECK(state.flags & KVKEEP_KEY_STORED);
    struct table_entry **entry = NULL;
    for (int i = 0; i < TABLE && !entry; i++) {
        if (plugin.table[i] && memcmp(&plugin.table[i]->key.key, &keys[0], sizeof keys[0]) == 0)
            entry = &plugin.table[i];
    }
    CHECK(entry != NULL);
    kvkeep_backend_key key = (*entry)->key;
    pthread_mutex_lock(&plugin.mutex);
    free(*entry);
    *entry = NULL;
    pthread_mutex_unlock(&plugin.mutex);
    plugin.host->lost(plugin.host->backend, &key, 1);
    do {
        OK(kvkeep_query_keys(cache, space, &keys[0], 1, &state));
    } while (state.flags & KVKEEP_KEY_STORED);
    OK(kvkeep_query_keys(cache, space, &keys[1], 1, &state));
    CHECK(state.flags & KVKEEP_KEY_STORED);
    // Nonsense is refused, and harms nobody.
    plugin.host->lost(plugin.host->backend, NULL, 3);
    plugin.host->lost(999999, &key, 1);
    plugin.host->log(plugin.host->backend, KVKEEP_LOG_WARN, "the server is slow");
    plugin.host->log(999999, KVKEEP_LOG_WARN, "never seen");
    CHECK(is_logged("plug-in table: the server is slow") && !is_logged("never seen"));
    leave_plugin();
}

static void p4_a_second_answer_is_refused(void) {
    enter_over_plugin(0, NULL);
    be(TWICE);
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    AWAIT(plugin_count(&plugin.refused) >= 3);
    CHECK(is_logged("completed a request twice"));
    be(WELL);
    kvkeep_backend_state state = state_of_backend();
    CHECK_EQUAL(state.health, KVKEEP_BACKEND_NOTED);
    CHECK(strstr(state.message, "answers were refused") != NULL);
    // Nor is an answer to a request that never was, of this plug-in or none.
    kvkeep_backend_answer answer;
    KVKEEP_INIT(&answer);
    CHECK_STATUS(plugin.host->complete(0, &answer), KVKEEP_ERR_INVALID);
    CHECK_STATUS(plugin.host->complete(UINT64_MAX, &answer), KVKEEP_ERR_INVALID);
    CHECK_STATUS(plugin.host->complete(plugin.host->backend << 40 | 0xfffff, &answer), KVKEEP_ERR_INVALID);
    leave_plugin();
}

// Whatever it answers to a lookup or a load, its caller gets a miss, and nothing else.
static void reads_that_go_wrong(enum misbehaviour how, int loads_only, int corrupt) {
    enter_over_plugin(0, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    plugin.loads_only = loads_only;
    be(how);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, 0);
    be(WELL);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.corruptions > 0, corrupt);
    CHECK_EQUAL(stats.l1_objects, 0);
    check_nothing_is_held(cache);
    // What was broken is deleted; the rest is found as before.
    OK(kvkeep_flush(cache, 30000));
    if (corrupt) {
        AWAIT(table_count() == 0);
    } else {
        CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    }
    OK(kvkeep_flush(cache, 30000));
    leave_plugin();
}

static void p7_nonsense_is_a_miss(void) {
    for (int loads_only = 0; loads_only < 2; loads_only++) {
        reads_that_go_wrong(STATUS_POSITIVE, loads_only, 0);
        reads_that_go_wrong(STATUS_UNKNOWN, loads_only, 0);
        reads_that_go_wrong(KEY_STATUS, loads_only, 0);
        reads_that_go_wrong(WRONG_COUNT, loads_only, 0);
        reads_that_go_wrong(NO_ANSWER, loads_only, 0);
        reads_that_go_wrong(OTHER_ABI, loads_only, 0);
    }
    reads_that_go_wrong(HUGE_SIZE, 0, 0);
    reads_that_go_wrong(NO_SIZES, 0, 0);
}

static void p7_wrong_bytes_are_a_miss(void) {
    reads_that_go_wrong(WRONG_HEADER, 1, 1);
    reads_that_go_wrong(WRONG_BYTES, 1, 1);
    reads_that_go_wrong(SHORT, 1, 1);
}

static void p4_nonsense_about_a_store_drops_the_store(void) {
    static const enum misbehaviour kinds[] = {STATUS_POSITIVE, STATUS_UNKNOWN, KEY_STATUS,
                                              WRONG_COUNT,     NO_ANSWER,      OTHER_ABI};
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        enter_over_plugin(0, NULL);
        be(kinds[i]);
        // It is tried again, and the plug-in has it by then.
        put(cache, space, keys, 1, SIZE);
        OK(kvkeep_flush(cache, 60000));
        kvkeep_stats stats = stats_of(cache);
        CHECK_EQUAL(stats.dropped_failed, 1);
        CHECK_EQUAL(stats.writes_pending, 0);
        be(WELL);
        leave_plugin();
    }
}

static void p4_a_late_plug_in_is_fenced_until_it_answers(void) {
    enter_over_plugin(200, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    be(LATE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).backend_timeouts, 1);
    CHECK_EQUAL(state_of_backend().health, KVKEEP_BACKEND_FENCED);
    CHECK(strstr(state_of_backend().message, "fenced") != NULL);
    // It is not asked while it is fenced.
    int lookups = plugin_count(&plugin.lookups);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK_EQUAL(plugin_count(&plugin.lookups), lookups);
    be(WELL);
    release_held();
    AWAIT(state_of_backend().health == KVKEEP_BACKEND_GOOD);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave_plugin();
}

static void note_end(void *userdata, const kvkeep_completion *completion) {
    (void)completion;
    pthread_mutex_lock(&plugin.mutex);
    *(int *)userdata = 1;
    pthread_mutex_unlock(&plugin.mutex);
}

// Lookups are answered, and each load is kept.
static void enter_with_late_loads(uint32_t timeout_ms) {
    enter_over_plugin(timeout_ms, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    plugin.loads_only = 1;
    be(LATE);
}

static void p2_memory_of_a_late_load_is_given_to_nobody(void) {
    enter_with_late_loads(200);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK(stats_of(cache).l1_locked_bytes >= COUNT * SIZE);
    CHECK(is_logged("did not answer a load"));
    be(WELL);
    release_held();
    AWAIT(stats_of(cache).l1_locked_bytes == 0);
    leave_plugin();
}

static void p4_a_cancelled_job_completes_though_the_plug_in_does_not(void) {
    enter_with_late_loads(500);
    int ended = 0;
    uint64_t job;
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, note_end, &ended));
    AWAIT(plugin_count(&plugin.held_count) > 0);
    OK(kvkeep_cancel_job(cache, job));
    AWAIT(plugin_count(&ended));
    be(WELL);
    release_held();
    leave_plugin();
}

static void p4_close_returns_though_requests_are_never_answered(void) {
    enter_with_late_loads(200);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK(plugin_count(&plugin.held_count) > 0);
    const kvkeep_backend_host host = *plugin.host;
    begun_count = 0;
    OK(kvkeep_close(cache));
    CHECK_EQUAL(plugin.closed, 1);
    CHECK(is_logged("without completing") && is_logged("stay mapped"));
    // An answer that comes after all still finds its request, once.
    struct answer_held *late = plugin.held[0];
    OK(host.complete(late->request, &late->answer));
    CHECK_STATUS(host.complete(late->request, &late->answer), KVKEEP_ERR_INVALID);
    for (int i = 1; i < plugin.held_count; i++) {
        OK(host.complete(plugin.held[i]->request, &plugin.held[i]->answer));
        free(plugin.held[i]);
    }
    free(late);
    reset_plugin();
}

static void close_has_the_plug_in_complete_what_is_under_way(void) {
    enter_with_late_loads(30000);
    plugin.complete_when_closed = 1;
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
    AWAIT(plugin_count(&plugin.held_count) > 0);
    begun_count = 0;
    OK(kvkeep_close(cache));
    CHECK_EQUAL(plugin.closed, 1);
    CHECK(!is_logged("without completing"));
    reset_plugin();
}

static void p4_a_plug_in_that_blocks_delays_nobody_else(void) {
    enter_over_plugin(200, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    be(BLOCKS);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    AWAIT(plugin_count(&plugin.blocked) == 1);
    // It cannot be closed while it is in a call of its own.
    FAILS(kvkeep_remove_backend(cache, backend), KVKEEP_ERR_TIMEOUT, "did not close");
    CHECK_EQUAL(plugin_count(&plugin.closed), 0);
    be(WELL);
    release_held();
    AWAIT(plugin_count(&plugin.closed) == 1);
    leave_plugin();
}

static void p4_a_cache_closes_though_a_plug_in_blocks(void) {
    enter_over_plugin(200, NULL);
    put_below(cache, space, keys, COUNT, SIZE);
    be(BLOCKS);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, NULL, &job, NULL, NULL));
    AWAIT(plugin_count(&plugin.blocked) == 1);
    begun_count = 0;
    OK(kvkeep_close(cache));
    CHECK(is_logged("did not close"));
    CHECK_EQUAL(plugin_count(&plugin.closed), 0);
    be(WELL);
    release_held();
    AWAIT(plugin_count(&plugin.closed) == 1);
    reset_plugin();
}

static void a_plug_in_is_removed_while_jobs_run(void) {
    enter_over_plugin(0, "threads=2");
    put_below(cache, space, keys, COUNT, SIZE);
    for (int round = 0; round < 20; round++) {
        kvkeep_prefetch_options options;
        KVKEEP_INIT(&options);
        uint64_t job, own = begin(cache, space);
        OK(kvkeep_submit_prefetch(cache, own, keys, COUNT, &options, &job, NULL, NULL));
        OK(kvkeep_remove_backend(cache, backend));
        CHECK_EQUAL(plugin_count(&plugin.closed), round + 1);
        kvkeep_job_result result = answer_of(cache, job);
        CHECK(result.hit_chunks == COUNT || result.hit_chunks == 0);
        OK(kvkeep_abort_session(cache, own));
        kvkeep_backend_vtable vtable = plugin_vtable();
        OK(kvkeep_add_backend_vtable(cache, &vtable, NULL, &backend));
        uint64_t removed;
        CHECK(kvkeep_clear(cache, space, 0, &removed) >= 0);
    }
    leave();
    CHECK_EQUAL(plugin.opened, plugin.closed);
    CHECK_EQUAL(plugin.refused, 0);
    reset_plugin();
}

static void a_vtable_that_is_none_is_refused(void) {
    reset_plugin();
    enter(open_l1(4 * MIB));
    kvkeep_backend_vtable vtable = plugin_vtable();
    uint64_t number = 77;
    FAILS(kvkeep_add_backend_vtable(cache, NULL, NULL, &number), KVKEEP_ERR_INVALID, "vtable is NULL");
#define WITHOUT(function) \
    vtable = plugin_vtable(); \
    vtable.function = NULL; \
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_INVALID, "has no function " #function)
    WITHOUT(open);
    WITHOUT(lookup);
    WITHOUT(load);
    WITHOUT(store);
    WITHOUT(remove);
    WITHOUT(close);
    vtable = plugin_vtable();
    vtable.name = NULL;
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_INVALID, "vtable->name");
    vtable.name = "a name of far more bytes than the sixty-three that the name of a store may have";
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_INVALID, "vtable->name");
    vtable = plugin_vtable();
    vtable.abi_version++;
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_VERSION, "abi_version");
    vtable = plugin_vtable();
    vtable.struct_size -= 8;
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_INVALID, "struct_size");
    vtable = plugin_vtable();
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "threads=0", &number), KVKEEP_ERR_INVALID, "threads");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "threads=65", &number), KVKEEP_ERR_INVALID, "too many");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "batch=many", &number), KVKEEP_ERR_INVALID, "batch");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "server", &number), KVKEEP_ERR_INVALID, "has no value");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "a=%zz", &number), KVKEEP_ERR_INVALID, "percent-encoded");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "a=%00", &number), KVKEEP_ERR_INVALID, "NUL");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "\xff", &number), KVKEEP_ERR_INVALID, "UTF-8");
    // Its own errors come through with its words, and nonsense is an error too.
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "status=-17", &number), KVKEEP_ERR_PERMISSION,
          "the server said -17; start it");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "status=5", &number), KVKEEP_ERR_IO, "did not open");
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, "status=-555", &number), KVKEEP_ERR_IO, "did not open");
    CHECK_EQUAL(number, 77);
    CHECK_EQUAL(plugin.opened, 0);
    leave();
    CHECK_EQUAL(plugin.closed, 0);
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, &number), KVKEEP_ERR_CLOSED, "not open");
    FAILS(kvkeep_add_backend_vtable(NULL, &vtable, NULL, &number), KVKEEP_ERR_CLOSED, "not open");
}

static void more_than_seven_are_refused_and_closed(void) {
    reset_plugin();
    enter(open_l1(4 * MIB));
    kvkeep_backend_vtable vtable = plugin_vtable();
    // All of them have one table, which remembers the host of the last alone.
    vtable.usage = vtable.health = NULL;
    for (int i = 0; i < KVKEEP_TIERS_MAX - 1; i++) OK(kvkeep_add_backend_vtable(cache, &vtable, NULL, NULL));
    FAILS(kvkeep_add_backend_vtable(cache, &vtable, NULL, NULL), KVKEEP_ERR_LIMIT, "7 backends are open");
    CHECK_EQUAL(plugin.closed, 1);
    leave();
    CHECK_EQUAL(plugin.closed, KVKEEP_TIERS_MAX);
}

int main(void) {
    watchdog();
    RUN(what_a_plug_in_stores_is_found_again);
    RUN(answers_from_another_thread_are_as_good);
    RUN(what_is_deleted_is_gone_and_may_come_again);
    RUN(a_space_is_forgotten_by_its_list);
    RUN(a_plug_in_without_a_list_is_not_asked_about_a_forgotten_space);
    RUN(l1_learns_of_what_a_plug_in_lost);
    RUN(p4_a_second_answer_is_refused);
    RUN(p7_nonsense_is_a_miss);
    RUN(p7_wrong_bytes_are_a_miss);
    RUN(p4_nonsense_about_a_store_drops_the_store);
    RUN(p4_a_late_plug_in_is_fenced_until_it_answers);
    RUN(p2_memory_of_a_late_load_is_given_to_nobody);
    RUN(p4_a_cancelled_job_completes_though_the_plug_in_does_not);
    RUN(p4_close_returns_though_requests_are_never_answered);
    RUN(close_has_the_plug_in_complete_what_is_under_way);
    RUN(p4_a_plug_in_that_blocks_delays_nobody_else);
    RUN(p4_a_cache_closes_though_a_plug_in_blocks);
    RUN(a_plug_in_is_removed_while_jobs_run);
    RUN(a_vtable_that_is_none_is_refused);
    RUN(more_than_seven_are_refused_and_closed);
    return 0;
}
