// Jobs over memory and one or two backends: what counts as a hit, how the end is told, what is held after it.
#include "fixture.h"

#include <poll.h>
#include <pthread.h>

enum { SIZE = 4096 };

static kvkeep *cache;
static uint64_t space, session;

static void setup_l2(const char *url) {
    cache = open_l2(4 * MIB, url);
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static void setup(void) {
    setup_l2("memory:");
}

static void teardown(void) {
    close_empty(cache);
}

static kvkeep_prefetch_options plain_options(void) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    return options;
}

static uint64_t submit(const kvkeep_key *keys, size_t count, const kvkeep_prefetch_options *options) {
    uint64_t job = 0;
    OK(kvkeep_submit_prefetch(cache, session, keys, count, options, &job, NULL, NULL));
    CHECK(job != 0);
    return job;
}

static kvkeep_prefetch_result result_of(uint64_t job) {
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_query_prefetch(cache, job, &result));
    uint32_t chunks = 0;
    OK(kvkeep_query_lookup_hits(cache, job, &chunks));
    CHECK_EQUAL(chunks, result.lookup_chunks);
    return result;
}

static int in_bitmap(uint64_t job, size_t key) {
    uint8_t bitmap[BATCH_MAX / 8];
    memset(bitmap, 0xff, sizeof bitmap);
    OK(kvkeep_query_bitmap(cache, job, bitmap, sizeof bitmap));
    CHECK_EQUAL(bitmap[sizeof bitmap - 1], 0);
    return bitmap[key / 8] >> key % 8 & 1;
}

// The bitmap, the shares and the bytes tell the same: key i is held where `held[i]` is '1'.
static void check_hits(uint64_t job, const kvkeep_key *keys, const char *held, uint64_t shares_each) {
    uint64_t count = 0;
    for (size_t i = 0; held[i]; i++) {
        CHECK_EQUAL(in_bitmap(job, i), held[i] == '1');
        kvkeep_view view;
        kvkeep_unsafe_read(cache, session, &keys[i], 1, &view);
        CHECK_STATUS(view.status, held[i] == '1' ? KVKEEP_OK : KVKEEP_ERR_NOT_HELD);
        if (held[i] == '1') {
            CHECK(holds(&keys[i], &view));
            count++;
        }
    }
    CHECK_EQUAL(stats_of(cache).l1_shares, count * shares_each);
}

static void hits_in_l1_are_done_when_submit_returns(void) {
    setup();
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put(cache, space, keys, 8, SIZE);
    uint64_t job = submit(keys, 8, NULL);
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_query_prefetch(cache, job, &result));
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
    kvkeep_prefetch_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 8);
    CHECK_EQUAL(result.tier_keys[0], 2);
    CHECK_EQUAL(result.tier_keys[1], 6);
    CHECK_EQUAL(result.loaded_bytes, 6 * SIZE);
    CHECK_EQUAL(result.failed_keys, 0);
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
    kvkeep_prefetch_result result = result_of(job);
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
    kvkeep_prefetch_result result = result_of(job);
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
    kvkeep_prefetch_result result = result_of(job);
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
    options.mode = KVKEEP_PREFETCH_ANY;
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
    kvkeep_prefetch_result result = result_of(job);
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
    kvkeep_group_rule rule = {1, KVKEEP_PREFETCH_WINDOW, 2, 0};
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
    options.retention = KVKEEP_RETENTION_TEMPORARY;
    uint64_t job = submit(keys, 4, &options);
    CHECK_EQUAL(result_of(job).hit_chunks, 4);
    check_hits(job, keys, "1111", 1);
    OK(kvkeep_finish_read(cache, session, keys, 4, 0, NULL));
    CHECK_EQUAL(stats_of(cache).l1_objects, 0);
    teardown();
}

struct told {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    pthread_t submitter;
    int count, close_refused;
    kvkeep_completion last;
};

static struct told nobody_told(void) {
    struct told told;
    memset(&told, 0, sizeof told);
    CHECK_EQUAL(pthread_mutex_init(&told.mutex, NULL), 0);
    CHECK_EQUAL(pthread_cond_init(&told.changed, NULL), 0);
    told.submitter = pthread_self();
    return told;
}

static void tell(void *userdata, const kvkeep_completion *completion) {
    struct told *told = userdata;
    char name[32] = "";
    CHECK(!pthread_equal(pthread_self(), told->submitter));
    CHECK_EQUAL(pthread_getname_np(pthread_self(), name, sizeof name), 0);
    CHECK(strcmp(name, "kvkeep-callback") == 0);
    // A callback may call anything but close.
    stats_of(cache);
    FAILS(kvkeep_close(cache), KVKEEP_ERR_INVALID, "callback");
    pthread_mutex_lock(&told->mutex);
    told->count++;
    told->close_refused++;
    told->last = *completion;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->mutex);
}

// The callback while the cache closes: its handle is closed to it then.
static void tell_simply(void *userdata, const kvkeep_completion *completion) {
    struct told *told = userdata;
    pthread_mutex_lock(&told->mutex);
    told->count++;
    told->last = *completion;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->mutex);
}

static void await_told(struct told *told, int count) {
    pthread_mutex_lock(&told->mutex);
    while (told->count < count) pthread_cond_wait(&told->changed, &told->mutex);
    CHECK_EQUAL(told->count, count);
    pthread_mutex_unlock(&told->mutex);
}

static void p4_a_callback_comes_once_from_a_library_thread(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_below(cache, space, keys, 4, SIZE);
    struct told told = nobody_told();
    uint64_t job;
    // From below, and then from L1: the callback comes from its thread either way.
    for (int round = 1; round <= 2; round++) {
        OK(kvkeep_submit_prefetch(cache, session, keys, 4, NULL, &job, tell, &told));
        await_told(&told, round);
        CHECK_EQUAL(told.last.job, job);
        CHECK_EQUAL(told.last.session, session);
        OK(told.last.status);
        CHECK_EQUAL(told.last.hit_chunks, 4);
        CHECK_EQUAL(told.last.loaded_bytes, round == 1 ? 4 * SIZE : 0);
        CHECK(told.last.message[0] == '\0');
        CHECK_EQUAL(result_of(job).hit_chunks, 4);
    }
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_close(cache));
    CHECK_EQUAL(told.count, 2);
}

static void p4_the_event_descriptor_gives_each_completion_once(void) {
    setup();
    kvkeep_key keys[16];
    keys_of(keys, 1, 16);
    put_below(cache, space, keys, 16, SIZE);
    int32_t fd = -1;
    OK(kvkeep_event_fd(cache, &fd));
    kvkeep_completion completions[16];
    size_t count = 9;
    OK(kvkeep_drain_completions(cache, completions, 16, &count));
    CHECK_EQUAL(count, 0);
    struct pollfd waiting = {fd, POLLIN, 0};
    CHECK_EQUAL(poll(&waiting, 1, 0), 0);
    kvkeep_prefetch_options options = plain_options();
    options.notify = KVKEEP_NOTIFY_EVENT_FD;
    uint64_t jobs[16];
    for (int i = 0; i < 16; i++) jobs[i] = submit(&keys[i], 1, &options);
    int seen[16] = {0};
    for (int total = 0; total < 16;) {
        CHECK_EQUAL(poll(&waiting, 1, -1), 1);
        OK(kvkeep_drain_completions(cache, completions, 3, &count));
        CHECK(count <= 3);
        for (size_t i = 0; i < count; i++) {
            for (int job = 0; job < 16; job++) seen[job] += jobs[job] == completions[i].job;
            CHECK_EQUAL(completions[i].hit_chunks, 1);
        }
        total += (int)count;
    }
    for (int i = 0; i < 16; i++) CHECK_EQUAL(seen[i], 1);
    OK(kvkeep_drain_completions(cache, completions, 16, &count));
    CHECK_EQUAL(count, 0);
    CHECK_EQUAL(poll(&waiting, 1, 0), 0);
    teardown();
}

static void only_one_way_of_telling(void) {
    setup();
    kvkeep_key key = key_of(1);
    kvkeep_prefetch_options options = plain_options();
    options.notify = KVKEEP_NOTIFY_EVENT_FD;
    uint64_t job;
    struct told told = nobody_told();
    FAILS(kvkeep_submit_prefetch(cache, session, &key, 1, &options, &job, tell, &told), KVKEEP_ERR_INVALID,
          "callback");
    CHECK_EQUAL(told.count, 0);
    teardown();
}

static void a_released_job_is_gone_for_every_query_and_its_shares_stay(void) {
    setup();
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, keys, 2, SIZE);
    uint64_t job = submit(keys, 2, NULL);
    uint32_t chunks;
    uint8_t bits;
    kvkeep_prefetch_result result = result_of(job);
    OK(kvkeep_query_bitmap(cache, job, &bits, 1));
    CHECK_EQUAL(stats_of(cache).jobs, 1);
    OK(kvkeep_release_job(cache, job));
    FAILS(kvkeep_query_lookup_hits(cache, job, &chunks), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_query_prefetch(cache, job, &result), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_query_bitmap(cache, job, &bits, 1), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_wait(cache, job, 1000), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_release_job(cache, job), KVKEEP_ERR_NOT_FOUND, "job");
    CHECK_EQUAL(stats_of(cache).jobs, 0);
    check_held(cache, session, keys, 2);
    job = submit(keys, 2, NULL);
    OK(kvkeep_end_session(cache, session));
    FAILS(kvkeep_query_prefetch(cache, job, &result), KVKEEP_ERR_NOT_FOUND, "job");
    check_nothing_is_held(cache);
    teardown();
}

static void a_bitmap_must_have_room(void) {
    setup();
    kvkeep_key keys[9];
    keys_of(keys, 1, 9);
    uint64_t job = submit(keys, 9, NULL);
    uint8_t bits[2];
    OK(kvkeep_wait(cache, job, 60000));
    FAILS(kvkeep_query_bitmap(cache, job, bits, 1), KVKEEP_ERR_INVALID, "bitmap");
    OK(kvkeep_query_bitmap(cache, job, bits, 2));
    teardown();
}

static void p5_a_job_nobody_reads_is_released_at_its_deadline(void) {
    setup();
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, keys, 2, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.deadline_ms = 20;
    uint64_t job = submit(keys, 2, &options);
    AWAIT(stats_of(cache).jobs_reclaimed == 1);
    CHECK_EQUAL(stats_of(cache).jobs, 0);
    uint32_t chunks;
    // A daemon's client is told of it a moment later.
    AWAIT(kvkeep_query_lookup_hits(cache, job, &chunks) != KVKEEP_OK);
    FAILS(kvkeep_query_lookup_hits(cache, job, &chunks), KVKEEP_ERR_NOT_FOUND, "job");
    check_held(cache, session, keys, 2);
    teardown();
}

static void p9_jobs_are_bounded(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    options.jobs_max = 3;
    cache = open_with(&options);
    space = open_space(cache, "model");
    session = begin(cache, space);
    kvkeep_key key = key_of(1);
    uint64_t jobs[3], more;
    for (int i = 0; i < 3; i++) jobs[i] = submit(&key, 1, NULL);
    FAILS(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &more, NULL, NULL), KVKEEP_ERR_LIMIT, "job");
    OK(kvkeep_release_job(cache, jobs[1]));
    submit(&key, 1, NULL);
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
    kvkeep_prefetch_result result = result_of(job);
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
    kvkeep_prefetch_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 2);
    CHECK(result.lookup_us >= 30000);
    check_hits(job, keys, "1100", 1);
    teardown();
}

static void polling_can_be_cancelled(void) {
    setup();
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, keys, 1, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    uint64_t job = submit(keys, 2, &options);
    FAILS(kvkeep_wait(cache, job, 5), KVKEEP_ERR_TIMEOUT, "job");
    OK(kvkeep_cancel(cache, job));
    kvkeep_prefetch_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(result.hit_chunks, 0);
    check_nothing_is_held(cache);
    OK(kvkeep_cancel(cache, job));
    CHECK_EQUAL(stats_of(cache).jobs_cancelled, 1);
    CHECK_EQUAL(stats_of(cache).jobs_completed, 1);
    teardown();
}

static void a_done_job_is_not_cancelled(void) {
    setup();
    kvkeep_key key = key_of(1);
    put(cache, space, &key, 1, SIZE);
    uint64_t job = submit(&key, 1, NULL);
    OK(kvkeep_cancel(cache, job));
    OK(result_of(job).status);
    check_hits(job, &key, "1", 1);
    teardown();
}

static void p4_abort_cancels_its_jobs_once(void) {
    setup();
    kvkeep_key key = key_of(1);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    struct told told = nobody_told();
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, &key, 1, &options, &job, tell, &told));
    OK(kvkeep_abort_session(cache, session));
    await_told(&told, 1);
    CHECK_STATUS(told.last.status, KVKEEP_ERR_CANCELLED);
    CHECK(strlen(told.last.message) > 10);
    check_nothing_is_held(cache);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(told.count, 1);
}

static void p4_close_completes_every_job_once(void) {
    setup();
    kvkeep_key keys[32];
    keys_of(keys, 1, 32);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    struct told told = nobody_told();
    uint64_t job;
    for (int i = 0; i < 32; i++) {
        OK(kvkeep_submit_prefetch(cache, session, &keys[i], 1, &options, &job, tell_simply, &told));
    }
    OK(kvkeep_close(cache));
    CHECK_EQUAL(told.count, 32);
    CHECK_STATUS(told.last.status, KVKEEP_ERR_CANCELLED);
}

static void policies_at_the_deadline(void) {
    setup();
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, keys, 1, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    options.deadline_ms = 30;
    struct told told = nobody_told();
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 2, &options, &job, tell, &told));
    await_told(&told, 1);
    OK(told.last.status);
    CHECK_EQUAL(told.last.hit_chunks, 1);
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    OK(kvkeep_finish_read(cache, session, keys, 1, 0, NULL));
    options.policy = KVKEEP_POLICY_DEADLINE;
    OK(kvkeep_submit_prefetch(cache, session, keys, 2, &options, &job, tell, &told));
    await_told(&told, 2);
    CHECK_STATUS(told.last.status, KVKEEP_ERR_TIMEOUT);
    CHECK_EQUAL(told.last.hit_chunks, 0);
    CHECK(strlen(told.last.message) > 10);
    check_nothing_is_held(cache);
    teardown();
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
    RUN(p4_a_callback_comes_once_from_a_library_thread);
    RUN(p4_the_event_descriptor_gives_each_completion_once);
    RUN(only_one_way_of_telling);
    RUN(a_released_job_is_gone_for_every_query_and_its_shares_stay);
    RUN(a_bitmap_must_have_room);
    RUN(p5_a_job_nobody_reads_is_released_at_its_deadline);
    RUN(p9_jobs_are_bounded);
    RUN(p9_what_does_not_fit_l1_ends_the_prefix);
    RUN(a_job_polls_for_what_comes_late);
    RUN(polling_ends_with_its_time);
    RUN(polling_can_be_cancelled);
    RUN(a_done_job_is_not_cancelled);
    RUN(p4_abort_cancels_its_jobs_once);
    RUN(p4_close_completes_every_job_once);
    RUN(policies_at_the_deadline);
    return 0;
}
