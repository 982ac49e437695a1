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
    options.mode = KVKEEP_PREFETCH_EACH;
    OK(kvkeep_submit_prefetch(cache, session, keys, count, &options, &job, NULL, NULL));
    uint32_t hits = answer_of(cache, job).hit_chunks;
    OK(kvkeep_abort_session(cache, session));
    return hits;
}

// Bytes of a key that no `fill` gives: those of other weights.
static void put_new(uint64_t of, const kvkeep_key *keys, size_t count, uint64_t bytes) {
    uint64_t session = begin(cache, of), sizes[BATCH_MAX];
    kvkeep_view views[BATCH_MAX];
    for (size_t i = 0; i < count; i++) sizes[i] = bytes;
    OK(kvkeep_reserve_write(cache, session, keys, count, sizes, KVKEEP_LIFETIME_CACHED, views));
    for (size_t i = 0; i < count; i++) memset(views[i].data, 0xa5, bytes);
    OK(kvkeep_finish_write(cache, session, keys, count, NULL));
    OK(kvkeep_end_session(cache, session));
}

static int is_new(const kvkeep_view *view) {
    for (uint64_t i = 0; i < view->size; i++) {
        if (((const uint8_t *)view->data)[i] != 0xa5) return 0;
    }
    return 1;
}

static const char *directory;
static char url[8192];

static const char *on_disk(const char *parameters) {
    if (!directory) directory = new_directory();
    snprintf(url, sizeof url, "fs://%s?capacity=64MiB%s%s", directory, parameters, fs_parameters(parameters));
    return url;
}

static void gone_from_disk(void) {
    teardown();
    remove_directory(directory);
    directory = NULL;
}

static void two_generations_never_meet(void) {
    enter(open_l2(MIB, on_disk("")));
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put(cache, space, keys, 4, 4096);
    OK(kvkeep_flush(cache, 30000));
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
    gone_from_disk();
}

static void nothing_stored_before_is_found_in_any_tier(void) {
    enter(open_l2(MIB, on_disk("")));
    uint64_t other = open_space(cache, "other"), removed = 99;
    kvkeep_key keys[32];
    keys_of(keys, 1, 32);
    put_below(cache, space, &keys[16], 16, 4096);
    put(cache, space, keys, 16, 4096);
    put(cache, other, keys, 4, 4096);
    // Somebody reads some of them, and goes on reading.
    uint64_t reader = begin(cache, space);
    kvkeep_view views[4];
    OK(kvkeep_reserve_read(cache, reader, keys, 4, 0, views));
    OK(kvkeep_forget_space(cache, space, &removed));
    CHECK_EQUAL(removed, 16);
    CHECK_EQUAL(found(space, keys, 32), 0);
    for (int i = 0; i < 4; i++) CHECK(holds(&keys[i], &views[i]));
    // What is stored anew is found at once in L1, and below when it has been written.
    put_new(space, keys, 32, 4096);
    CHECK_EQUAL(found(space, keys, 32), 32);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_finish_read(cache, reader, keys, 4, 0, NULL));
    OK(kvkeep_clear(cache, 0, 0, NULL));
    CHECK_EQUAL(stats_of(cache).l2_objects, 36);
    CHECK_EQUAL(found(other, keys, 32), 4);
    teardown();
    // So it is for who comes next.
    enter(open_l2(MIB, on_disk("")));
    uint64_t session = begin(cache, space), job = 0;
    OK(kvkeep_submit_prefetch(cache, session, keys, 32, NULL, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(cache, job).hit_chunks, 32);
    kvkeep_view all[32];
    OK(kvkeep_get_views(cache, session, keys, 32, all));
    for (int i = 0; i < 32; i++) CHECK(is_new(&all[i]));
    OK(kvkeep_forget_space(cache, 0, NULL));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(stats_of(cache).l2_objects, 0);
    gone_from_disk();
}

static void what_is_staged_is_not_committed(void) {
    enter(open_l1(MIB));
    kvkeep_key keys[6];
    keys_of(keys, 1, 6);
    uint64_t writer = begin(cache, space), elsewhere = begin(cache, open_space(cache, "other"));
    stage_in(cache, writer, keys, 4, 4096, KVKEEP_LIFETIME_CACHED);
    stage_in(cache, elsewhere, keys, 1, 4096, KVKEEP_LIFETIME_CACHED);
    OK(kvkeep_forget_space(cache, space, NULL));
    // Another one stores one of them meanwhile.
    put_new(space, &keys[1], 1, 4096);
    int32_t statuses[2];
    kvkeep_view view;
    CHECK_STATUS(kvkeep_finish_write(cache, writer, keys, 2, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_CANCELLED);
    CHECK_STATUS(statuses[1], KVKEEP_ERR_CANCELLED);
    CHECK_STATUS(kvkeep_finish_write_and_reserve_read(cache, writer, &keys[2], 1, 0, &view), KVKEEP_PARTIAL);
    CHECK_STATUS(view.status, KVKEEP_ERR_CANCELLED);
    OK(kvkeep_abort_write(cache, writer, &keys[3], 1, NULL));
    CHECK_EQUAL(found(space, keys, 4), 1);
    CHECK_EQUAL(stats_of(cache).l1_used_bytes, 2 * 4096);
    // From now on all is as before.
    put_in(cache, writer, &keys[4], 2, 4096);
    CHECK_EQUAL(found(space, keys, 6), 3);
    OK(kvkeep_finish_write(cache, elsewhere, keys, 1, NULL));
    teardown();
}

static void what_another_process_stored_is_removed(void) {
    enter(open_l2(MIB, on_disk("&shared=true")));
    kvkeep_key keys[8];
    keys_of(keys, 1, 8);
    put(cache, space, keys, 2, 4096);
    OK(kvkeep_flush(cache, 30000));
    kvkeep *mine = cache;
    enter(open_l2(MIB, url));
    put(cache, space, &keys[2], 6, 4096);
    put(cache, open_space(cache, "other"), keys, 1, 4096);
    OK(kvkeep_flush(cache, 30000));
    teardown();
    cache = mine;
    OK(kvkeep_forget_space(cache, space, NULL));
    CHECK_EQUAL(found(space, keys, 8), 0);
    // Of the same length, so that no look at the file tells old from new.
    put_new(space, &keys[3], 1, 4096);
    OK(kvkeep_flush(cache, 30000));
    OK(kvkeep_clear(cache, space, 1, NULL));
    CHECK_EQUAL(found(space, keys, 8), 1);
    teardown();
    enter(open_l2(MIB, url));
    CHECK_EQUAL(found(space, keys, 8), 1);
    uint64_t session = begin(cache, space);
    kvkeep_view view;
    OK(kvkeep_reserve_read(cache, session, &keys[3], 1, 0, &view));
    CHECK(is_new(&view));
    CHECK_EQUAL(found(open_space(cache, "other"), keys, 1), 1);
    gone_from_disk();
}

static void p6_what_cannot_be_forgotten(void) {
    enter(open_l1(MIB));
    uint64_t removed = 99;
    FAILS(kvkeep_forget_space(cache, 12345, &removed), KVKEEP_ERR_NOT_FOUND, "space 12345");
    CHECK_EQUAL(removed, 99);
    OK(kvkeep_forget_space(cache, 0, NULL));
    kvkeep *closed = cache;
    teardown();
    CHECK_STATUS(kvkeep_forget_space(closed, 0, NULL), KVKEEP_ERR_CLOSED);
}

int main(void) {
    watchdog();
    RUN(two_generations_never_meet);
    RUN(nothing_stored_before_is_found_in_any_tier);
    RUN(what_is_staged_is_not_committed);
    RUN(what_another_process_stored_is_removed);
    RUN(p6_what_cannot_be_forgotten);
    return 0;
}
