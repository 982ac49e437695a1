// What tests of bad input share: a cache with something in each state, which no refused call changes.
#ifndef REFUSED_H
#define REFUSED_H

#include "fixture.h"

static kvkeep *cache;
static uint64_t space, session;
static kvkeep_key keys[4];
static kvkeep_view views[4];
static const uint64_t sizes[4] = {4096, 4096, 4096, 4096};

static inline void setup(void) {
    cache = open_l2(MIB, "memory:");
    space = open_space(cache, "model");
    session = begin(cache, space);
    keys_of(keys, 1, 4);
    put_in(cache, session, keys, 2, 4096);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_reserve_read(cache, session, keys, 1, 0, views));
    stage_in(cache, session, &keys[2], 1, 4096, KVKEEP_LIFETIME_CACHED);
}

static inline void teardown(void) {
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.l1_objects, 2);
    CHECK_EQUAL(stats.l1_staged, 1);
    CHECK_EQUAL(stats.l1_shares, 1);
    CHECK_EQUAL(stats.sessions, 1);
    CHECK_EQUAL(stats.jobs, 0);
    CHECK_EQUAL(stats.jobs_submitted, 0);
    CHECK_EQUAL(stats.commits, 2);
    close_empty(cache);
}

static inline void refuse_open(const kvkeep_options *options, kvkeep_status status, const char *words) {
    kvkeep *other = NULL;
    FAILS(kvkeep_open(options, &other), status, words);
    CHECK(other == NULL);
}

#endif
