// What a lookup tells before anything is loaded: an event of its own, a job that pauses until it is resumed, and the least that is known.
#include "jobs.h"
#include "completions.h"

#include <poll.h>

enum { COUNT = 4 };

static kvkeep_key keys[COUNT];

// Some of the keys are in L1, the others in the backend alone.
static void setup_with(const char *url, size_t in_l1) {
    setup_l2(url);
    keys_of(keys, 1, COUNT);
    put_below(cache, space, keys, COUNT, SIZE);
    if (in_l1 > 0) {
        kvkeep_job_result result = answer_of(cache, submit(keys, in_l1, NULL));
        CHECK_EQUAL(result.hit_chunks, in_l1);
        OK(kvkeep_end_session(cache, session));
        session = begin(cache, space);
    }
}

static kvkeep_prefetch_options pausing(void) {
    kvkeep_prefetch_options options = plain_options();
    options.pause_after_lookup = 1;
    return options;
}

static uint32_t await_lookup(uint64_t job) {
    uint32_t chunks;
    AWAIT(kvkeep_query_lookup_hits(cache, job, &chunks) == KVKEEP_OK);
    return chunks;
}

// What a callback was called with, in order.
struct told {
    struct completions completions;
    kvkeep_completion all[8];
};

static void note_in_order(void *userdata, const kvkeep_completion *completion) {
    struct told *told = userdata;
    CHECK(told->completions.count < 8);
    told->all[told->completions.count] = *completion;
    note_completion(&told->completions, completion);
}

static void check_told(const kvkeep_completion told[2], uint64_t job) {
    CHECK_EQUAL(told[0].job, job);
    CHECK_EQUAL(told[0].session, session);
    CHECK_EQUAL(told[0].kind, KVKEEP_JOB_LOOKUP);
    OK(told[0].status);
    CHECK_EQUAL(told[0].hit_chunks, COUNT);
    CHECK_EQUAL(told[0].loaded_bytes, 0);
    CHECK_EQUAL(told[1].job, job);
    CHECK_EQUAL(told[1].kind, KVKEEP_JOB_PREFETCH);
    CHECK_EQUAL(told[1].hit_chunks, COUNT);
}

static void p4_a_callback_tells_the_answer_of_a_lookup_before_the_end(void) {
    for (size_t in_l1 = 0; in_l1 <= COUNT; in_l1 += COUNT / 2) {
        setup_with("memory:", in_l1);
        struct told told = {.completions = NO_COMPLETIONS};
        kvkeep_prefetch_options options = plain_options();
        options.notify_lookup = 1;
        uint64_t job;
        OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, note_in_order, &told));
        OK(kvkeep_wait_job(cache, job, 30000));
        await_completions(&told.completions, 2);
        check_told(told.all, job);
        OK(kvkeep_end_session(cache, session));
        OK(kvkeep_close(cache));
        CHECK_EQUAL(told.completions.count, 2);
    }
}

static void p4_the_event_descriptor_tells_it_while_the_job_pauses(void) {
    setup_with("memory:", 2);
    kvkeep_prefetch_options options = pausing();
    options.notify = KVKEEP_NOTIFY_EVENT_FD;
    options.notify_lookup = 1;
    uint64_t job = submit(keys, COUNT, &options);
    struct pollfd waiting = {-1, POLLIN, 0};
    OK(kvkeep_get_event_fd(cache, &waiting.fd));
    kvkeep_completion told[3];
    size_t count;
    CHECK_EQUAL(poll(&waiting, 1, -1), 1);
    OK(kvkeep_take_completions(cache, told, 3, &count));
    CHECK_EQUAL(count, 1);
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    CHECK_STATUS(kvkeep_query_job(cache, job, &result), KVKEEP_PENDING);
    OK(kvkeep_resume_job(cache, job));
    CHECK_EQUAL(poll(&waiting, 1, -1), 1);
    OK(kvkeep_take_completions(cache, told + 1, 2, &count));
    CHECK_EQUAL(count, 1);
    check_told(told, job);
    check_hits(job, keys, "1111", 1);
    teardown();
}

static void a_job_that_pauses_loads_nothing_until_it_is_resumed(void) {
    setup_with("memory:", 2);
    uint64_t loads = stats_of(cache).loads;
    kvkeep_prefetch_options options = pausing();
    uint64_t job = submit(keys, COUNT, &options);
    CHECK_EQUAL(await_lookup(job), COUNT);
    // What it found is held: in L1 by shares, below by pins.
    CHECK_EQUAL(stats_of(cache).l1_shares, 2);
    CHECK_EQUAL(stats_of(cache).l2_pins, 2);
    FAILS(kvkeep_wait_job(cache, job, 0), KVKEEP_ERR_TIMEOUT, "job");
    int32_t statuses[COUNT];
    CHECK_STATUS(kvkeep_delete(cache, space, keys, COUNT, statuses), KVKEEP_PARTIAL);
    for (size_t i = 0; i < COUNT; i++) CHECK_STATUS(statuses[i], KVKEEP_ERR_LOCKED);
    // Another job's loads are not kept up.
    CHECK_EQUAL(answer_of(cache, submit(keys, COUNT - 1, NULL)).hit_chunks, COUNT - 1);
    CHECK_EQUAL(stats_of(cache).loads, loads + 1);
    for (int again = 0; again < 2; again++) OK(kvkeep_resume_job(cache, job));
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(stats_of(cache).loads, loads + 2);
    CHECK_EQUAL(stats_of(cache).l2_pins, 0);
    OK(kvkeep_resume_job(cache, job));
    teardown();
}

static void a_job_with_nothing_to_load_does_not_pause(void) {
    setup_with("memory:", COUNT);
    kvkeep_prefetch_options options = pausing();
    CHECK_EQUAL(result_of(submit(keys, COUNT, &options)).hit_chunks, COUNT);
    kvkeep_key absent = key_of(100);
    CHECK_EQUAL(result_of(submit(&absent, 1, &options)).hit_chunks, 0);
    teardown();
}

static void p1_a_job_that_is_never_resumed_leaves_nothing(void) {
    for (int way = 0; way < 5; way++) {
        setup_with("memory:", 2);
        kvkeep_prefetch_options options = pausing();
        options.policy = way == 3 ? KVKEEP_PREFETCH_POLICY_DEADLINE : KVKEEP_PREFETCH_POLICY_WAIT;
        if (way >= 2) options.deadline_ms = 1000;
        uint64_t job = submit(keys, COUNT, &options);
        CHECK_EQUAL(await_lookup(job), COUNT);
        kvkeep_job_result result;
        switch (way) {
        case 0:
            OK(kvkeep_cancel_job(cache, job));
            result = result_of(job);
            CHECK_STATUS(result.status, KVKEEP_ERR_CANCELLED);
            break;
        case 1: OK(kvkeep_release_job(cache, job)); break;
        case 2:
            // At its deadline it has what L1 had.
            result = result_of(job);
            OK(result.status);
            CHECK_EQUAL(result.hit_chunks, 2);
            CHECK(strstr(result.message, "deadline") != NULL);
            check_hits(job, keys, "1100", 1);
            break;
        case 3:
            result = result_of(job);
            CHECK_STATUS(result.status, KVKEEP_ERR_TIMEOUT);
            CHECK_EQUAL(result.hit_chunks, 0);
            break;
        default: break;
        }
        OK(kvkeep_end_session(cache, session));
        AWAIT(stats_of(cache).l2_pins == 0);
        check_nothing_is_held(cache);
        teardown();
    }
}

static void a_job_resumed_before_its_answer_does_not_pause(void) {
    setup_with("fault:memory:?fault.delay=1&fault.delay_ms=50", 0);
    kvkeep_prefetch_options options = pausing();
    uint64_t job = submit(keys, COUNT, &options);
    OK(kvkeep_resume_job(cache, job));
    CHECK_EQUAL(result_of(job).hit_chunks, COUNT);
    teardown();
}

static void a_backend_does_not_stay_for_a_job_that_pauses(void) {
    setup_with("memory:", 2);
    kvkeep_prefetch_options options = pausing();
    options.policy = KVKEEP_PREFETCH_POLICY_WAIT;
    uint64_t job = submit(keys, COUNT, &options);
    CHECK_EQUAL(await_lookup(job), COUNT);
    OK(kvkeep_remove_backend(cache, 1));
    OK(kvkeep_resume_job(cache, job));
    kvkeep_job_result result = result_of(job);
    OK(result.status);
    CHECK_EQUAL(result.hit_chunks, 2);
    CHECK_EQUAL(result.failed_keys, 2);
    teardown();
}

static void what_is_known_already_is_told_while_the_rest_is_asked_for(void) {
    setup_l2("fault:memory:?fault.lookup_hang=1");
    keys_of(keys, 1, COUNT);
    put(cache, space, keys, 2, SIZE);
    uint64_t job = submit(keys, COUNT, NULL);
    uint32_t chunks = 9;
    CHECK_STATUS(kvkeep_query_lookup_hits(cache, job, &chunks), KVKEEP_PENDING);
    CHECK_EQUAL(chunks, 2);
    OK(kvkeep_cancel_job(cache, job));
    CHECK_STATUS(answer_of(cache, job).status, KVKEEP_ERR_CANCELLED);
    teardown();
}

static void what_cannot_be_asked_says_why(void) {
    setup();
    keys_of(keys, 1, COUNT);
    kvkeep_prefetch_options options = plain_options();
    options.notify_lookup = 1;
    uint64_t job;
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "pass a callback");
    options.notify_lookup = 2;
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "notify_lookup is 2");
    options = pausing();
    options.pause_after_lookup = 2;
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 1, &options, &job, NULL, NULL), KVKEEP_ERR_INVALID,
          "pause_after_lookup is 2");
    FAILS(kvkeep_resume_job(cache, 12345), KVKEEP_ERR_NOT_FOUND, "job");
    teardown();
}

int main(void) {
    watchdog();
    RUN(p4_a_callback_tells_the_answer_of_a_lookup_before_the_end);
    RUN(p4_the_event_descriptor_tells_it_while_the_job_pauses);
    RUN(a_job_that_pauses_loads_nothing_until_it_is_resumed);
    RUN(a_job_with_nothing_to_load_does_not_pause);
    RUN(p1_a_job_that_is_never_resumed_leaves_nothing);
    RUN(a_job_resumed_before_its_answer_does_not_pause);
    RUN(a_backend_does_not_stay_for_a_job_that_pauses);
    RUN(what_is_known_already_is_told_while_the_rest_is_asked_for);
    RUN(what_cannot_be_asked_says_why);
    return 0;
}
