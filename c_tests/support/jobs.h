// What tests of jobs share: a cache over one backend, a session, and what a job is asked for.
#ifndef JOBS_H
#define JOBS_H

#include "fixture.h"

enum { SIZE = 4096 };

static kvkeep *cache;
static uint64_t space, session;

static inline void setup_l2(const char *url) {
    cache = open_l2(4 * MIB, url);
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static inline void setup(void) {
    setup_l2("memory:");
}

static inline void teardown(void) {
    close_empty(cache);
}

static inline kvkeep_prefetch_options plain_options(void) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    return options;
}

static inline uint64_t submit(const kvkeep_key *keys, size_t count, const kvkeep_prefetch_options *options) {
    uint64_t job = 0;
    OK(kvkeep_submit_prefetch(cache, session, keys, count, options, &job, NULL, NULL));
    CHECK(job != 0);
    return job;
}

static inline kvkeep_job_result result_of(uint64_t job) {
    kvkeep_job_result result = answer_of(cache, job);
    uint32_t chunks = 0;
    OK(kvkeep_query_lookup_hits(cache, job, &chunks));
    CHECK_EQUAL(chunks, result.lookup_chunks);
    return result;
}

static inline int in_bitmap(uint64_t job, size_t key) {
    uint8_t bitmap[BATCH_MAX / 8];
    memset(bitmap, 0xff, sizeof bitmap);
    OK(kvkeep_query_bitmap(cache, job, bitmap, sizeof bitmap));
    CHECK_EQUAL(bitmap[sizeof bitmap - 1], 0);
    return bitmap[key / 8] >> key % 8 & 1;
}

// The bitmap, the shares and the bytes tell the same: key i is held where `held[i]` is '1'.
static inline void check_hits(uint64_t job, const kvkeep_key *keys, const char *held, uint64_t shares_each) {
    uint64_t count = 0;
    for (size_t i = 0; held[i]; i++) {
        CHECK_EQUAL(in_bitmap(job, i), held[i] == '1');
        kvkeep_view view;
        kvkeep_get_views(cache, session, &keys[i], 1, &view);
        CHECK_STATUS(view.status, held[i] == '1' ? KVKEEP_OK : KVKEEP_ERR_NOT_HELD);
        if (held[i] == '1') {
            CHECK(holds(&keys[i], &view));
            count++;
        }
    }
    CHECK_EQUAL(stats_of(cache).l1_shares, count * shares_each);
}

#endif
