// A space whose weights changed: another generation of it, and forgetting it in every tier.
#include "fixture.h"

static kvkeep *cache;
static uint64_t space;

static kvkeep_space_options options_of(const char *model, uint64_t generation) {
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = model;
    options.chunk_tokens = 16;
    options.generation = generation;
    return options;
}

static uint64_t open_generation(const char *model, uint64_t generation) {
    kvkeep_space_options options = options_of(model, generation);
    uint64_t opened = 0;
    OK(kvkeep_open_space(cache, &options, &opened));
    return opened;
}

static void enter(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
}

static void teardown(void) {
    close_empty(cache);
    cache = NULL;
}

// How many of the keys are found, in whichever tier.
static uint32_t found(uint64_t of, const kvkeep_key *keys, size_t count) {
    uint64_t session = begin(cache, of), job = 0;
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = KVKEEP_PREFETCH_ANY;
    OK(kvkeep_submit_prefetch(cache, session, keys, count, &options, &job, NULL, NULL));
    uint32_t hits = answer_of(cache, job).hit_chunks;
    OK(kvkeep_abort_session(cache, session));
    return hits;
}

static void two_generations_never_meet(void) {
    char url[8192];
    const char *directory = new_directory();
    snprintf(url, sizeof url, "fs://%s?capacity=64MiB%s", directory, fs_parameters(""));
    enter(open_l2(MIB, url));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put(cache, space, keys, 4, 4096);
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(open_generation("model", 0), space);
    uint64_t next = open_generation("model", 1);
    CHECK(next != space && open_generation("model", (uint64_t)1 << 63) != next);
    CHECK_EQUAL(found(space, keys, 4), 4);
    CHECK_EQUAL(found(next, keys, 4), 0);
    put(cache, next, keys, 2, 4096);
    CHECK_EQUAL(found(next, keys, 4), 2);
    // A caller built before there were generations has the first.
    kvkeep_space_options old = options_of("model", 1);
    old.struct_size = (uint32_t)offsetof(kvkeep_space_options, generation);
    uint64_t opened = 0;
    OK(kvkeep_open_space(cache, &old, &opened));
    CHECK_EQUAL(opened, space);
    teardown();
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(two_generations_never_meet);
    return 0;
}
