// Every function from any thread at once, and close while others still call.
#include "fixture.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

enum { THREADS = 4, KEYS = 24 };

static kvkeep *cache;
static uint64_t space;
static atomic_int stop, waiting;
static atomic_long calls;

static uint32_t next_random(uint32_t *state) {
    *state ^= *state << 13, *state ^= *state >> 17, *state ^= *state << 5;
    return *state;
}

static void check_views(const kvkeep_key *keys, const kvkeep_view *views, size_t count) {
    for (size_t i = 0; i < count; i++) {
        if (views[i].status == KVKEEP_OK) CHECK(holds(&keys[i], &views[i]));
        else CHECK(views[i].status == KVKEEP_ERR_NOT_FOUND || views[i].status == KVKEEP_ERR_NO_MEMORY);
    }
}

// One request that stores what it does not find; all threads want the same few keys in too little memory.
static void one_request(uint32_t *random) {
    uint32_t first = next_random(random) % KEYS;
    size_t count = 1 + next_random(random) % 6;
    kvkeep_key keys[6];
    kvkeep_view views[6];
    uint64_t sizes[6];
    keys_of(keys, first, count);
    for (size_t i = 0; i < count; i++) sizes[i] = 32 * KIB;
    uint64_t session = begin(cache, space);
    uint64_t job;
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    OK(kvkeep_submit_prefetch(cache, session, keys, count, NULL, &job, NULL, NULL));
    OK(kvkeep_wait_job(cache, job, 60000));
    OK(kvkeep_query_job(cache, job, &result));
    if (result.hit_chunks > 0) check_held(cache, session, keys, result.hit_chunks);
    size_t rest = count - result.hit_chunks;
    if (rest > 0) {
        kvkeep_key *wanted = &keys[result.hit_chunks];
        CHECK(kvkeep_reserve_write(cache, session, wanted, rest, sizes, 0, views) >= 0);
        for (size_t i = 0; i < rest; i++) {
            if (views[i].status == KVKEEP_OK) fill(&wanted[i], &views[i]);
        }
        CHECK(kvkeep_finish_write_and_reserve_read(cache, session, wanted, rest, 1, views) >= 0);
        check_views(wanted, views, rest);
    }
    switch (next_random(random) % 8) {
    case 0: OK(kvkeep_abort_session(cache, session)); return;
    case 1: CHECK(kvkeep_delete(cache, space, keys, count, NULL) >= 0); break;
    case 2: CHECK(kvkeep_touch(cache, space, keys, count, NULL) >= 0); break;
    case 3: CHECK(kvkeep_evict(cache, space, keys, count, NULL) >= 0); break;
    case 4: CHECK(kvkeep_clear(cache, space, next_random(random) % 2, NULL) >= 0); break;
    default: break;
    }
    OK(kvkeep_end_session(cache, session));
}

static void *make_requests(void *seed) {
    uint32_t random = 1 + (uint32_t)(uintptr_t)seed;
    for (int i = 0; i < 300; i++) one_request(&random);
    return NULL;
}

static void *look_on(void *unused) {
    (void)unused;
    char text[64 * 1024];
    size_t length;
    kvkeep_key key = key_of(3);
    while (!atomic_load(&stop)) {
        stats_of(cache);
        CHECK(kvkeep_get_metrics(cache, text, sizeof text, &length) >= 0);
        CHECK(kvkeep_explain_key(cache, space, &key, text, sizeof text, &length) >= 0);
        CHECK(kvkeep_explain_session(cache, 0, text, sizeof text, &length) >= 0);
    }
    return NULL;
}

static void p11_many_threads_at_once(void) {
    cache = open_l2(MIB, "memory:?capacity=512KiB");
    space = open_space(cache, "model");
    pthread_t threads[THREADS], onlooker;
    for (uintptr_t i = 0; i < THREADS; i++) {
        CHECK_EQUAL(pthread_create(&threads[i], NULL, make_requests, (void *)i), 0);
    }
    CHECK_EQUAL(pthread_create(&onlooker, NULL, look_on, NULL), 0);
    for (int i = 0; i < THREADS; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    atomic_store(&stop, 1);
    CHECK_EQUAL(pthread_join(onlooker, NULL), 0);
    OK(kvkeep_flush(cache, 60000));
    check_nothing_is_held(cache);
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.sessions, 0);
    CHECK_EQUAL(stats.jobs, 0);
    CHECK_EQUAL(stats.jobs_submitted, THREADS * 300);
    CHECK_EQUAL(stats.jobs_completed, THREADS * 300);
    CHECK_EQUAL(stats.corruptions, 0);
    OK(kvkeep_close(cache));
}

// Two keys are always stored and deleted together: nobody may see one without the other.
static void *read_pairs(void *unused) {
    (void)unused;
    kvkeep_key keys[2] = {key_of(1), key_of(2)};
    kvkeep_view views[2];
    while (!atomic_load(&stop)) {
        uint64_t session = begin(cache, space);
        CHECK(kvkeep_reserve_read(cache, session, keys, 2, 0, views) >= 0);
        CHECK_EQUAL(views[0].status, views[1].status);
        OK(kvkeep_abort_session(cache, session));
        atomic_fetch_add(&calls, 1);
        // The other thread goes on while nobody holds the pair: where threads take turns, its clear might never meet that.
        sched_yield();
    }
    return NULL;
}

static void p11_nobody_sees_half_a_batch(void) {
    cache = open_l1(MIB);
    space = open_space(cache, "model");
    atomic_store(&stop, 0);
    atomic_store(&calls, 0);
    pthread_t reader;
    CHECK_EQUAL(pthread_create(&reader, NULL, read_pairs, NULL), 0);
    kvkeep_key keys[2] = {key_of(1), key_of(2)};
    for (int round = 0; round < 2000 || atomic_load(&calls) < 1000; round++) {
        put(cache, space, keys, 2, 256);
        kvkeep_status status;
        // Clear takes all or, where the reader holds the pair, nothing.
        while ((status = kvkeep_clear(cache, space, 0, NULL)) != KVKEEP_OK) CHECK_STATUS(status, KVKEEP_PARTIAL);
    }
    atomic_store(&stop, 1);
    CHECK_EQUAL(pthread_join(reader, NULL), 0);
    OK(kvkeep_close(cache));
}

static void *call_until_closed(void *unused) {
    (void)unused;
    kvkeep_key key = key_of(1);
    kvkeep_view view;
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    for (;;) {
        uint64_t session, job;
        kvkeep_status status = kvkeep_begin_session(cache, space, NULL, &session);
        if (status == KVKEEP_OK) status = kvkeep_reserve_read(cache, session, &key, 1, 0, &view);
        if (status >= 0) status = kvkeep_submit_prefetch(cache, session, &key, 1, NULL, &job, NULL, NULL);
        if (status == KVKEEP_OK) status = kvkeep_query_stats(cache, &stats);
        if (status == KVKEEP_OK) status = kvkeep_end_session(cache, session);
        atomic_fetch_add(&calls, 1);
        if (status == KVKEEP_OK) continue;
        CHECK_STATUS(status, KVKEEP_ERR_CLOSED);
        return NULL;
    }
}

static void *wait_until_closed(void *unused) {
    (void)unused;
    kvkeep_key key = key_of(99);
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.lookup_timeout_ms = 1000000;
    options.deadline_ms = 1000000;
    uint64_t job, session = begin_for(cache, space, 1000000);
    OK(kvkeep_submit_prefetch(cache, session, &key, 1, &options, &job, NULL, NULL));
    atomic_store(&waiting, 1);
    kvkeep_status status = kvkeep_wait_job(cache, job, 1000000);
    // Its job was cancelled; or it was told that the cache was closed before it had begun to wait.
    CHECK(status == KVKEEP_OK || status == KVKEEP_ERR_CLOSED);
    return NULL;
}

static void p4_close_while_others_call(void) {
    for (int round = 0; round < 10; round++) {
        cache = open_l2(MIB, "memory:");
        space = open_space(cache, "model");
        kvkeep_key key = key_of(1);
        put(cache, space, &key, 1, 4096);
        atomic_store(&calls, 0);
        atomic_store(&waiting, 0);
        pthread_t threads[THREADS];
        for (int i = 0; i < THREADS; i++) {
            CHECK_EQUAL(pthread_create(&threads[i], NULL, i == 0 ? wait_until_closed : call_until_closed, NULL), 0);
        }
        AWAIT(atomic_load(&waiting) && atomic_load(&calls) > 100);
        OK(kvkeep_close(cache));
        for (int i = 0; i < THREADS; i++) CHECK_EQUAL(pthread_join(threads[i], NULL), 0);
    }
}

int main(void) {
    watchdog();
    RUN(p11_many_threads_at_once);
    RUN(p11_nobody_sees_half_a_batch);
    RUN(p4_close_while_others_call);
    return 0;
}
