// The shape of objects is part of what they are: a cache whose pools look different is refused the objects of another one.
#include "fixture.h"

enum { BLOCKS = 8, PER_CHUNK = 4, PAGE_MAX = 8192, KEYS = 2 };

// An engine with K and V pages, whose bytes say which tensor and which block they are of.
struct engine {
    kvkeep *cache;
    uint64_t space, session, pool;
    uint32_t page;
    uint8_t pages[2][BLOCKS * PAGE_MAX];
};

static struct engine one, other;
static kvkeep_key keys[KEYS];
static char url[5000];

static void connect_to(struct engine *engine) {
    engine->cache = open_l2(4 * MIB, url);
    engine->space = open_space(engine->cache, "model");
    engine->session = begin(engine->cache, engine->space);
}

// K is segment 0 and V segment 1, or, where they are swapped, the other way round.
static kvkeep_status try_pool(struct engine *engine, uint32_t page, int swapped, const uint32_t *layers,
                              const uint32_t *parts) {
    kvkeep_segment segments[2];
    uint32_t parts_in_order[2];
    kvkeep_pool_options options;
    KVKEEP_INIT(&options);
    for (int i = 0; i < 2; i++) {
        int tensor = swapped ? 1 - i : i;
        segments[i] = (kvkeep_segment){.address = (uint64_t)(uintptr_t)engine->pages[tensor], .block_bytes = page};
        segments[i].layer = layers ? layers[tensor] : 0;
        parts_in_order[i] = parts ? parts[tensor] : KVKEEP_PART_UNSAID;
    }
    engine->page = page;
    options.device = KVKEEP_DEVICE_HOST;
    options.block_count = BLOCKS;
    options.blocks_per_chunk = PER_CHUNK;
    options.segments = segments;
    options.segment_count = 2;
    options.parts = parts ? parts_in_order : NULL;
    return kvkeep_open_pool(engine->cache, engine->space, &options, &engine->pool);
}

static void enter(struct engine *engine, uint32_t page) {
    connect_to(engine);
    OK(try_pool(engine, page, 0, NULL, NULL));
}

static void leave(struct engine *engine) {
    OK(kvkeep_end_session(engine->cache, engine->session));
    check_nothing_is_held(engine->cache);
    OK(kvkeep_close(engine->cache));
}

static void write_pages(struct engine *engine) {
    for (int tensor = 0; tensor < 2; tensor++) {
        for (uint32_t i = 0; i < BLOCKS * engine->page; i++) {
            engine->pages[tensor][i] = (uint8_t)(0x10 + tensor * 0x20 + i / engine->page);
        }
    }
}

static void wait_for(struct engine *engine, uint64_t job) {
    OK(kvkeep_wait_job(engine->cache, job, 60000));
}

static void store(struct engine *engine, size_t count) {
    const int32_t ids[BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};
    int32_t statuses[BLOCKS];
    uint64_t job = 0;
    write_pages(engine);
    OK(kvkeep_submit_store(engine->cache, engine->pool, engine->session, keys, count, ids, count * PER_CHUNK, NULL,
                           &job, NULL, NULL));
    wait_for(engine, job);
    OK(kvkeep_query_blocks(engine->cache, job, statuses, count * PER_CHUNK));
    for (size_t i = 0; i < count * PER_CHUNK; i++) OK(statuses[i]);
    OK(kvkeep_flush(engine->cache, 30000));
}

static void forget_l1(struct engine *engine) {
    OK(kvkeep_clear(engine->cache, engine->space, 0, NULL));
}

// Loads all keys: every block of keys[i] has this status, and pages hold their own bytes, or what they held before.
static void load(struct engine *engine, const kvkeep_status *wanted) {
    const int32_t ids[BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};
    int32_t statuses[BLOCKS];
    uint64_t job = 0;
    memset(engine->pages, 0xee, sizeof engine->pages);
    OK(kvkeep_submit_load(engine->cache, engine->pool, engine->session, keys, KEYS, ids, BLOCKS, NULL, &job, NULL,
                          NULL));
    wait_for(engine, job);
    OK(kvkeep_query_blocks(engine->cache, job, statuses, BLOCKS));
    for (int block = 0; block < BLOCKS; block++) {
        kvkeep_status status = wanted[block / PER_CHUNK];
        CHECK_STATUS(statuses[block], status);
        for (int tensor = 0; tensor < 2; tensor++) {
            const uint8_t *page = engine->pages[tensor] + (size_t)block * engine->page;
            for (uint32_t i = 0; i < engine->page; i++) {
                CHECK_EQUAL(page[i], status == KVKEEP_OK ? 0x10 + tensor * 0x20 + block : 0xee);
            }
        }
    }
}

static const kvkeep_status all_ok[KEYS] = {KVKEEP_OK, KVKEEP_OK};
static const kvkeep_status none[KEYS] = {KVKEEP_ERR_IO, KVKEEP_ERR_IO};

static void pages_of_another_size_are_misses_in_one_directory_and_may_replace(void) {
    enter(&one, 4096);
    store(&one, 2);
    leave(&one);
    enter(&other, 8192);
    load(&other, none);
    // What it stores itself takes the place of what it cannot read, and nothing else does.
    store(&other, 1);
    forget_l1(&other);
    load(&other, (kvkeep_status[]){KVKEEP_OK, KVKEEP_ERR_IO});
    CHECK_EQUAL(stats_of(other.cache).corruptions, 0);
    leave(&other);
    enter(&one, 4096);
    load(&one, (kvkeep_status[]){KVKEEP_ERR_IO, KVKEEP_OK});
    leave(&one);
}

static void two_caches_share_a_directory_and_no_objects_of_another_shape(void) {
    enter(&one, 4096);
    enter(&other, 8192);
    store(&one, 2);
    load(&other, none);
    forget_l1(&one);
    load(&one, all_ok);
    leave(&other);
    leave(&one);
}

static void k_and_v_in_another_order_are_told_by_their_parts_or_layers(void) {
    static const uint32_t parts[2] = {KVKEEP_PART_KEY, KVKEEP_PART_VALUE}, layers[2] = {0, 1};
    struct {
        const uint32_t *layers, *parts;
    } ways[2] = {{NULL, parts}, {layers, NULL}};
    for (int way = 0; way < 2; way++) {
        connect_to(&one);
        OK(try_pool(&one, 4096, 0, ways[way].layers, ways[way].parts));
        store(&one, 2);
        forget_l1(&one);
        load(&one, all_ok);
        uint64_t pool = one.pool;
        FAILS(try_pool(&one, 4096, 1, ways[way].layers, ways[way].parts), KVKEEP_ERR_INVALID, "earlier pool");
        CHECK_EQUAL(one.pool, pool);
        leave(&one);
        connect_to(&other);
        OK(try_pool(&other, 4096, 1, ways[way].layers, ways[way].parts));
        load(&other, none);
        // So that the next way begins anew.
        for (int i = 0; i < KEYS; i++) CHECK(kvkeep_delete(other.cache, other.space, &keys[i], 1, NULL) >= 0);
        OK(kvkeep_flush(other.cache, 30000));
        leave(&other);
    }
}

static void a_pool_takes_no_objects_that_were_loaded_before_it_and_look_different(void) {
    enter(&one, 4096);
    store(&one, 2);
    leave(&one);
    connect_to(&other);
    uint64_t job = 0;
    OK(kvkeep_submit_prefetch(other.cache, other.session, keys, KEYS, NULL, &job, NULL, NULL));
    CHECK_EQUAL(answer_of(other.cache, job).hit_chunks, 2);
    OK(kvkeep_release_job(other.cache, job));
    OK(try_pool(&other, 8192, 0, NULL, NULL));
    // Its session still holds them, and no other finds them.
    CHECK_EQUAL(stats_of(other.cache).l1_objects, 0);
    CHECK_EQUAL(stats_of(other.cache).l1_shares, 2);
    load(&other, none);
    leave(&other);
}

static void what_was_written_through_views_has_the_shape_that_its_writer_says(void) {
    connect_to(&one);
    put_below(one.cache, one.space, keys, KEYS, 2 * PER_CHUNK * 4096);
    leave(&one);
    enter(&other, 4096);
    const int32_t ids[BLOCKS] = {0, 1, 2, 3, 4, 5, 6, 7};
    uint64_t job = 0;
    OK(kvkeep_submit_load(other.cache, other.pool, other.session, keys, KEYS, ids, BLOCKS, NULL, &job, NULL, NULL));
    OK(answer_of(other.cache, job).status);
    for (uint32_t i = 0; i < PER_CHUNK * 4096; i++) {
        CHECK_EQUAL(other.pages[0][i], byte_of(&keys[0], i));
        CHECK_EQUAL(other.pages[1][i], byte_of(&keys[0], PER_CHUNK * 4096 + i));
    }
    leave(&other);
}

static void in_a_directory(void (*test)(void)) {
    char *directory = new_directory();
    snprintf(url, sizeof url, "fs://%s?capacity=1GiB%s", directory, fs_parameters(""));
    keys_of(keys, 1, KEYS);
    test();
    remove_directory(directory);
}

#define IN_A_DIRECTORY(test) (printf("%s\n", #test), fflush(stdout), in_a_directory(test))

int main(void) {
    watchdog();
    IN_A_DIRECTORY(pages_of_another_size_are_misses_in_one_directory_and_may_replace);
    IN_A_DIRECTORY(two_caches_share_a_directory_and_no_objects_of_another_shape);
    IN_A_DIRECTORY(k_and_v_in_another_order_are_told_by_their_parts_or_layers);
    IN_A_DIRECTORY(a_pool_takes_no_objects_that_were_loaded_before_it_and_look_different);
    IN_A_DIRECTORY(what_was_written_through_views_has_the_shape_that_its_writer_says);
    return 0;
}
