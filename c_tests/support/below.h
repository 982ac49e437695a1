// What tests of what is below memory share: a cache over a backend, a session, keys and their prefetch.
#ifndef BELOW_H
#define BELOW_H

#include "fixture.h"

enum { SIZE = 16 * 1024, COUNT = 8 };

static kvkeep *cache;
static uint64_t space, session;
static kvkeep_key keys[COUNT];

static inline void enter(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
    keys_of(keys, 1, COUNT);
}

static inline void leave(void) {
    close_empty(cache);
}

static inline kvkeep *open_directory(const char *directory, const char *parameters) {
    char url[5000];
    snprintf(url, sizeof url, "fs://%s?capacity=1GiB%s%s", directory, parameters, fs_parameters(parameters));
    return open_l2(4 * MIB, url);
}

static inline kvkeep_job_result prefetch(uint32_t mode) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = mode;
    kvkeep_job_result result;
    KVKEEP_INIT(&result);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
    OK(kvkeep_wait_job(cache, job, 60000));
    OK(kvkeep_query_job(cache, job, &result));
    OK(result.status);
    CHECK_EQUAL(stats_of(cache).l1_shares, result.hit_chunks);
    if (mode == KVKEEP_PREFETCH_PREFIX && result.hit_chunks > 0) check_held(cache, session, keys, result.hit_chunks);
    return result;
}

#endif
