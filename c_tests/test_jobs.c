// How the end of a job is told, and what else may end it: its release, its deadline, its session, the cache.
#include "jobs.h"
#include "completions.h"

#include <poll.h>

static pthread_t submitter;

// A callback comes from a thread of its own and may call anything but close.
static void tell_from_its_thread(void *userdata, const kvkeep_completion *completion) {
    char name[32] = "";
    CHECK(!pthread_equal(pthread_self(), submitter));
    CHECK_EQUAL(pthread_getname_np(pthread_self(), name, sizeof name), 0);
    CHECK(strcmp(name, "kvkeep-callback") == 0);
    stats_of(cache);
    FAILS(kvkeep_close(cache), KVKEEP_ERR_INVALID, "callback");
    note_completion(userdata, completion);
}

static void p4_a_callback_comes_once_from_a_library_thread(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_below(cache, space, keys, 4, SIZE);
    struct completions completions = NO_COMPLETIONS;
    uint64_t job;
    // From below, and then from L1: the callback comes from its thread either way.
    for (int round = 1; round <= 2; round++) {
        OK(kvkeep_submit_prefetch(cache, session, keys, 4, NULL, &job, tell_from_its_thread, &completions));
        await_completions(&completions, round);
        CHECK_EQUAL(completions.last.job, job);
        CHECK_EQUAL(completions.last.session, session);
        OK(completions.last.status);
        CHECK_EQUAL(completions.last.hit_chunks, 4);
        CHECK_EQUAL(completions.last.loaded_bytes, round == 1 ? 4 * SIZE : 0);
        CHECK(completions.last.message[0] == '\0');
        CHECK_EQUAL(result_of(job).hit_chunks, 4);
    }
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_close(cache));
    CHECK_EQUAL(completions.count, 2);
}

static void p4_the_event_descriptor_gives_each_completion_once(void) {
    setup();
    kvkeep_key keys[16];
    keys_of(keys, 1, 16);
    put_below(cache, space, keys, 16, SIZE);
    int32_t fd = -1;
    OK(kvkeep_get_event_fd(cache, &fd));
    kvkeep_completion completions[16];
    size_t count = 9;
    OK(kvkeep_take_completions(cache, completions, 16, &count));
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
        OK(kvkeep_take_completions(cache, completions, 3, &count));
        CHECK(count <= 3);
        for (size_t i = 0; i < count; i++) {
            for (int job = 0; job < 16; job++) seen[job] += jobs[job] == completions[i].job;
            CHECK_EQUAL(completions[i].hit_chunks, 1);
        }
        total += (int)count;
    }
    for (int i = 0; i < 16; i++) CHECK_EQUAL(seen[i], 1);
    OK(kvkeep_take_completions(cache, completions, 16, &count));
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
    struct completions completions = NO_COMPLETIONS;
    FAILS(kvkeep_submit_prefetch(cache, session, &key, 1, &options, &job, tell_from_its_thread, &completions),
          KVKEEP_ERR_INVALID, "callback");
    CHECK_EQUAL(completions.count, 0);
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
    kvkeep_job_result result = result_of(job);
    OK(kvkeep_query_bitmap(cache, job, &bits, 1));
    CHECK_EQUAL(stats_of(cache).jobs, 1);
    OK(kvkeep_release_job(cache, job));
    FAILS(kvkeep_query_lookup_hits(cache, job, &chunks), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_query_job(cache, job, &result), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_query_bitmap(cache, job, &bits, 1), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_wait_job(cache, job, 1000), KVKEEP_ERR_NOT_FOUND, "job");
    FAILS(kvkeep_release_job(cache, job), KVKEEP_ERR_NOT_FOUND, "job");
    CHECK_EQUAL(stats_of(cache).jobs, 0);
    check_held(cache, session, keys, 2);
    job = submit(keys, 2, NULL);
    OK(kvkeep_end_session(cache, session));
    FAILS(kvkeep_query_job(cache, job, &result), KVKEEP_ERR_NOT_FOUND, "job");
    check_nothing_is_held(cache);
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

static void setup_for_three_jobs(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    options.jobs_max = 3;
    cache = open_with(&options);
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static void p9_jobs_are_bounded(void) {
    setup_for_three_jobs();
    kvkeep_key key = key_of(1);
    uint64_t jobs[3], more;
    for (int i = 0; i < 3; i++) jobs[i] = submit(&key, 1, NULL);
    FAILS(kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &more, NULL, NULL), KVKEEP_ERR_LIMIT, "job");
    OK(kvkeep_release_job(cache, jobs[1]));
    submit(&key, 1, NULL);
    teardown();
}

static void p9_completions_that_nobody_takes_are_bounded(void) {
    setup_for_three_jobs();
    kvkeep_key key = key_of(1);
    kvkeep_prefetch_options by_event = plain_options();
    by_event.notify = KVKEEP_NOTIFY_EVENT_FD;
    uint64_t more = 77;
    for (int i = 0; i < 3; i++) OK(kvkeep_release_job(cache, submit(&key, 1, &by_event)));
    // A daemon's client has a queue of its own, of a bound that nobody sets.
    if (stats_of(cache).clients == 0) {
        FAILS(kvkeep_submit_prefetch(cache, session, &key, 1, &by_event, &more, NULL, NULL), KVKEEP_ERR_LIMIT,
              "3 completions wait to be taken");
        CHECK_EQUAL(more, 77);
    }
    kvkeep_completion taken[4];
    size_t count;
    OK(kvkeep_take_completions(cache, taken, 1, &count));
    CHECK_EQUAL(count, 1);
    submit(&key, 1, &by_event);
    OK(kvkeep_take_completions(cache, taken, 4, &count));
    CHECK_EQUAL(count, 3);
    teardown();
}

struct waiting {
    uint64_t job;
    kvkeep_status status;
    char message[256];
};

static void *wait_for_long(void *data) {
    struct waiting *waiting = data;
    waiting->status = kvkeep_wait_job(cache, waiting->job, 1000000);
    snprintf(waiting->message, sizeof waiting->message, "%s", kvkeep_last_error());
    return NULL;
}

static void who_waits_for_a_job_that_is_released_is_told(void) {
    setup();
    kvkeep_key key = key_of(1);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 1000000;
    options.deadline_ms = 1000000;
    struct waiting waiting = {submit(&key, 1, &options), KVKEEP_OK, ""};
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, wait_for_long, &waiting), 0);
    OK(kvkeep_release_job(cache, waiting.job));
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    CHECK_STATUS(waiting.status, KVKEEP_ERR_NOT_FOUND);
    CHECK(strstr(waiting.message, "job") && strstr(waiting.message, "released"));
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
    FAILS(kvkeep_wait_job(cache, job, 5), KVKEEP_ERR_TIMEOUT, "job");
    OK(kvkeep_cancel_job(cache, job));
    kvkeep_job_result result = result_of(job);
    CHECK_STATUS(result.status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(result.hit_chunks, 0);
    check_nothing_is_held(cache);
    OK(kvkeep_cancel_job(cache, job));
    CHECK_EQUAL(stats_of(cache).jobs_cancelled, 1);
    CHECK_EQUAL(stats_of(cache).jobs_completed, 1);
    teardown();
}

static void a_done_job_is_not_cancelled(void) {
    setup();
    kvkeep_key key = key_of(1);
    put(cache, space, &key, 1, SIZE);
    uint64_t job = submit(&key, 1, NULL);
    OK(kvkeep_cancel_job(cache, job));
    OK(result_of(job).status);
    check_hits(job, &key, "1", 1);
    teardown();
}

static void p4_abort_cancels_its_jobs_once(void) {
    setup();
    kvkeep_key key = key_of(1);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    struct completions completions = NO_COMPLETIONS;
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, &key, 1, &options, &job, tell_from_its_thread, &completions));
    OK(kvkeep_abort_session(cache, session));
    await_completions(&completions, 1);
    CHECK_STATUS(completions.last.status, KVKEEP_ERR_CANCELLED);
    CHECK(strlen(completions.last.message) > 10);
    check_nothing_is_held(cache);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(completions.count, 1);
}

static void p4_close_completes_every_job_once(void) {
    setup();
    kvkeep_key keys[32];
    keys_of(keys, 1, 32);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    struct completions completions = NO_COMPLETIONS;
    uint64_t job;
    // Told while the cache closes, to which a callback's handle is closed, too.
    for (int i = 0; i < 32; i++) {
        OK(kvkeep_submit_prefetch(cache, session, &keys[i], 1, &options, &job, note_completion, &completions));
    }
    OK(kvkeep_close(cache));
    CHECK_EQUAL(completions.count, 32);
    CHECK_STATUS(completions.last.status, KVKEEP_ERR_CANCELLED);
}

static void policies_at_the_deadline(void) {
    setup();
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    put(cache, space, keys, 1, SIZE);
    kvkeep_prefetch_options options = plain_options();
    options.lookup_timeout_ms = 100000;
    options.deadline_ms = 30;
    struct completions completions = NO_COMPLETIONS;
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 2, &options, &job, tell_from_its_thread, &completions));
    await_completions(&completions, 1);
    OK(completions.last.status);
    CHECK_EQUAL(completions.last.hit_chunks, 1);
    CHECK_EQUAL(stats_of(cache).l1_shares, 1);
    OK(kvkeep_finish_read(cache, session, keys, 1, 0, NULL));
    options.policy = KVKEEP_PREFETCH_POLICY_DEADLINE;
    OK(kvkeep_submit_prefetch(cache, session, keys, 2, &options, &job, tell_from_its_thread, &completions));
    await_completions(&completions, 2);
    CHECK_STATUS(completions.last.status, KVKEEP_ERR_TIMEOUT);
    CHECK_EQUAL(completions.last.hit_chunks, 0);
    CHECK(strlen(completions.last.message) > 10);
    check_nothing_is_held(cache);
    teardown();
}

int main(void) {
    watchdog();
    submitter = pthread_self();
    RUN(p4_a_callback_comes_once_from_a_library_thread);
    RUN(p4_the_event_descriptor_gives_each_completion_once);
    RUN(only_one_way_of_telling);
    RUN(a_released_job_is_gone_for_every_query_and_its_shares_stay);
    RUN(p5_a_job_nobody_reads_is_released_at_its_deadline);
    RUN(p9_jobs_are_bounded);
    RUN(p9_completions_that_nobody_takes_are_bounded);
    RUN(who_waits_for_a_job_that_is_released_is_told);
    RUN(polling_can_be_cancelled);
    RUN(a_done_job_is_not_cancelled);
    RUN(p4_abort_cancels_its_jobs_once);
    RUN(p4_close_completes_every_job_once);
    RUN(policies_at_the_deadline);
    return 0;
}
