// What tests of memory alone share: a cache of so many bytes, a session, one object at a time.
#ifndef L1_H
#define L1_H

#include "fixture.h"

static kvkeep *cache;
static uint64_t space, session;

static inline void setup(uint64_t l1_bytes) {
    cache = open_l1(l1_bytes);
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static inline void teardown(void) {
    close_empty(cache);
}

static inline int32_t write_status(uint64_t writer, const kvkeep_key *key, uint64_t bytes) {
    kvkeep_view view;
    kvkeep_reserve_write(cache, writer, key, 1, &bytes, KVKEEP_LIFETIME_CACHED, &view);
    if (view.status == KVKEEP_OK) fill(key, &view);
    return view.status;
}

#endif
