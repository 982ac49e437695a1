// Below memory: when objects are written, that they are found again, and that wrong bytes never come back.
#include "fixture.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

enum { SIZE = 16 * 1024, COUNT = 8 };

static kvkeep *cache;
static uint64_t space, session;
static kvkeep_key keys[COUNT];

static void enter(kvkeep *opened) {
    cache = opened;
    space = open_space(cache, "model");
    session = begin(cache, space);
    keys_of(keys, 1, COUNT);
}

static void leave(void) {
    close_empty(cache);
}

static kvkeep *open_mode(uint32_t store_mode) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(4 * MIB);
    options.store_mode = store_mode;
    options.backend_urls = &url;
    options.backend_count = 1;
    return open_with(&options);
}

static kvkeep *open_directory(const char *directory, const char *parameters) {
    char url[5000];
    snprintf(url, sizeof url, "fs://%s?capacity=1GiB%s%s", directory, parameters, fs_parameters());
    return open_l2(4 * MIB, url);
}

static kvkeep_prefetch_result prefetch(uint32_t mode) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.mode = mode;
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_query_prefetch(cache, job, &result));
    OK(result.status);
    CHECK_EQUAL(stats_of(cache).l1_shares, result.hit_chunks);
    if (mode == KVKEEP_PREFETCH_PREFIX && result.hit_chunks > 0) check_held(cache, session, keys, result.hit_chunks);
    return result;
}

static void write_through_writes_what_is_committed(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, COUNT);
    CHECK_EQUAL(stats.l2_objects, COUNT);
    CHECK(stats.stored_bytes >= COUNT * SIZE);
    CHECK_EQUAL(stats.writes_pending, 0);
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).tier_keys[1], COUNT);
    leave();
}

static void what_the_l2_has_is_not_written_again(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, COUNT);
    CHECK_EQUAL(stats.stores_already, COUNT);
    // What was loaded from there is not written back either.
    OK(kvkeep_clear(cache, space, 0, NULL));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, COUNT);
    leave();
}

static void write_back_writes_what_is_evicted(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(MIB);
    options.store_mode = KVKEEP_STORE_WRITE_BACK;
    options.backend_urls = &url;
    options.backend_count = 1;
    options.watermark_high_percent = 50;
    options.watermark_low_percent = 25;
    enter(open_with(&options));
    kvkeep_key few = key_of(999);
    put(cache, space, &few, 1, 64 * KIB);
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    // Above the high mark when they are committed, whatever eviction did while they were staged.
    put(cache, space, keys, COUNT, 68 * KIB);
    AWAIT(stats_of(cache).l1_used_bytes <= MIB / 4);
    OK(kvkeep_drain_writes(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, stats.evictions);
    CHECK(stats.stores > 0);
    kvkeep_prefetch_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK(result.tier_keys[1] > 0);
    leave();
}

static void after_uses_writes_what_is_read_often(void) {
    const char *url = "memory:";
    kvkeep_options options = quiet_options(4 * MIB);
    options.store_mode = KVKEEP_STORE_AFTER_USES;
    options.store_after_uses = 3;
    options.backend_urls = &url;
    options.backend_count = 1;
    enter(open_with(&options));
    put(cache, space, keys, 2, SIZE);
    for (int use = 1; use <= 3; use++) {
        OK(kvkeep_drain_writes(cache, 30000));
        CHECK_EQUAL(stats_of(cache).stores, 0);
        kvkeep_view view;
        OK(kvkeep_reserve_read(cache, session, &keys[0], 1, 0, &view));
        OK(kvkeep_finish_read(cache, session, &keys[0], 1, 0, NULL));
    }
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 1);
    leave();
}

static void never_writes_nothing(void) {
    enter(open_mode(KVKEEP_STORE_NEVER));
    put(cache, space, keys, COUNT, SIZE);
    for (int i = 0; i < 4; i++) CHECK(is_ready(cache, space, &keys[0]));
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    CHECK_EQUAL(stats_of(cache).l2_objects, 0);
    leave();
}

static void temporary_objects_are_never_written(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    kvkeep_view views[COUNT];
    stage_in(cache, session, keys, COUNT, SIZE, KVKEEP_RETENTION_TEMPORARY);
    OK(kvkeep_finish_write_and_reserve_read(cache, session, keys, COUNT, 0, views));
    OK(kvkeep_finish_read(cache, session, keys, COUNT, 0, NULL));
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).stores, 0);
    leave();
}

static void delete_reaches_the_backends(void) {
    enter(open_mode(KVKEEP_STORE_WRITE_THROUGH));
    int32_t statuses[COUNT];
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, 2, SIZE);
    // What is being written is locked.
    OK(kvkeep_drain_writes(cache, 30000));
    OK(kvkeep_delete(cache, space, keys, COUNT - 1, statuses));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_ANY).hit_chunks, 1);
    OK(kvkeep_drain_writes(cache, 30000));
    CHECK_EQUAL(stats_of(cache).l2_objects, 1);
    CHECK_STATUS(kvkeep_delete(cache, space, keys, 1, statuses), KVKEEP_PARTIAL);
    CHECK_STATUS(statuses[0], KVKEEP_ERR_NOT_FOUND);
    leave();
}

static void a_removed_backend_is_asked_no_more(void) {
    kvkeep_options options = quiet_options(4 * MIB);
    enter(open_with(&options));
    uint64_t first = 0, second = 0;
    OK(kvkeep_add_backend(cache, "memory:", &first));
    put_below(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_add_backend(cache, "memory:", &second));
    CHECK(first != 0 && second != 0 && first != second);
    OK(kvkeep_remove_backend(cache, first));
    FAILS(kvkeep_remove_backend(cache, first), KVKEEP_ERR_NOT_FOUND, "backend");
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    leave();
}

static void p8_a_restart_finds_the_objects(const char *parameters) {
    char *directory = new_directory();
    enter(open_directory(directory, parameters));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    leave();
    enter(open_directory(directory, parameters));
    CHECK_EQUAL(stats_of(cache).l2_objects, COUNT);
    CHECK(stats_of(cache).l2_bytes >= COUNT * SIZE);
    kvkeep_prefetch_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    leave();
    remove_directory(directory);
}

static void p8_a_restart_finds_the_objects_any_engine(void) {
    p8_a_restart_finds_the_objects("");
}

static void p8_a_restart_finds_the_objects_thread_pool(void) {
    p8_a_restart_finds_the_objects("&engine=pool");
}

static void sizes_of_every_shape_come_back_from_disk(void) {
    static const uint64_t shapes[COUNT] = {1, 63, 4095, 4096, 4097, 65536, 100001, MIB / 2};
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    for (int i = 0; i < COUNT; i++) put(cache, space, &keys[i], 1, shapes[i]);
    OK(kvkeep_drain_writes(cache, 30000));
    OK(kvkeep_clear(cache, space, 0, NULL));
    kvkeep_view views[COUNT];
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    OK(kvkeep_unsafe_read(cache, session, keys, COUNT, views));
    for (int i = 0; i < COUNT; i++) CHECK_EQUAL(views[i].size, shapes[i]);
    leave();
    remove_directory(directory);
}

static void another_model_finds_nothing(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put_below(cache, space, keys, COUNT, SIZE);
    session = begin(cache, open_space(cache, "another model"));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_ANY).hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 0);
    leave();
    remove_directory(directory);
}

static char object_paths[COUNT][4096];
static int object_count;

static int note_object(const char *path, const struct stat *entry, int kind, struct FTW *where) {
    (void)where;
    if (kind == FTW_F && entry->st_size >= SIZE && object_count < COUNT) {
        snprintf(object_paths[object_count++], sizeof object_paths[0], "%s", path);
    }
    return 0;
}

// Closes the cache and lists the files of its objects.
static void close_and_list(const char *directory, int expected) {
    leave();
    object_count = 0;
    CHECK_EQUAL(nftw(directory, note_object, 16, FTW_PHYS), 0);
    CHECK_EQUAL(object_count, expected);
}

static void p7_a_truncated_object_is_a_miss(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    close_and_list(directory, 1);
    CHECK_EQUAL(truncate(object_paths[0], SIZE / 2), 0);
    enter(open_directory(directory, ""));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK(stats_of(cache).corruptions == 1 || stats_of(cache).l2_objects == 0);
    // It does not stand in the way of a new one.
    put_below(cache, space, &keys[0], 1, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 1);
    leave();
    remove_directory(directory);
}

static void p7_a_changed_byte_on_disk_is_a_miss(void) {
    char *directory = new_directory();
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    close_and_list(directory, 1);
    int file = open(object_paths[0], O_RDWR);
    char byte;
    CHECK(file >= 0);
    CHECK_EQUAL(pread(file, &byte, 1, SIZE - 100), 1);
    byte ^= 0x10;
    CHECK_EQUAL(pwrite(file, &byte, 1, SIZE - 100), 1);
    close(file);
    enter(open_directory(directory, ""));
    kvkeep_prefetch_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, 1);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK_EQUAL(result.failed_keys, 1);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    // Quarantined: it is not found a second time.
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    leave();
    remove_directory(directory);
}

static void p7_an_object_of_another_model_under_this_name_is_a_miss(void) {
    char *directory = new_directory(), own[4096];
    enter(open_directory(directory, ""));
    put(cache, space, &keys[0], 1, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    close_and_list(directory, 1);
    snprintf(own, sizeof own, "%s", object_paths[0]);
    enter(open_directory(directory, ""));
    put(cache, open_space(cache, "another model"), &keys[0], 1, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    close_and_list(directory, 2);
    CHECK_EQUAL(rename(object_paths[strcmp(object_paths[0], own) == 0], own), 0);
    enter(open_directory(directory, ""));
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).corruptions, 1);
    leave();
    remove_directory(directory);
}

static void p7_flipped_bits_never_reach_a_reader(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.flip=0.5&fault.seed=7"));
    for (uint32_t round = 0; round < 20; round++) {
        keys_of(keys, 100 * round, COUNT);
        put_below(cache, space, keys, COUNT, SIZE);
        kvkeep_prefetch_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        if (result.hit_chunks > 0) OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 0, NULL));
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.corruptions >= 20);
    CHECK(stats.prefetch_hit_chunks > 0);
    check_nothing_is_held(cache);
    leave();
}

static void p7_torn_writes_never_reach_a_reader(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.torn=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, 0);
    CHECK(stats_of(cache).corruptions > 0);
    leave();
}

static void p3_a_failed_read_ends_the_prefix_there(void) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.extra_count = 3;
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_error=0.2&fault.seed=3"));
    int fell_short = 0;
    for (uint32_t round = 0; round < 30; round++) {
        keys_of(keys, 100 * round, COUNT);
        put_below(cache, space, keys, COUNT, SIZE);
        kvkeep_prefetch_result result;
        KVKEEP_INIT(&result);
        uint64_t job;
        uint8_t bits;
        OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
        OK(kvkeep_wait(cache, job, 60000));
        OK(kvkeep_query_prefetch(cache, job, &result));
        OK(kvkeep_query_bitmap(cache, job, &bits, 1));
        OK(result.status);
        CHECK_EQUAL(result.lookup_chunks, COUNT);
        CHECK_EQUAL(bits, (1 << result.hit_chunks) - 1);
        CHECK_EQUAL(stats_of(cache).l1_shares, 4 * result.hit_chunks);
        fell_short += result.hit_chunks < COUNT;
        if (result.hit_chunks > 0) {
            check_held(cache, session, keys, result.hit_chunks);
            OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 3, NULL));
        }
        OK(kvkeep_release_job(cache, job));
        check_nothing_is_held(cache);
        OK(kvkeep_clear(cache, space, 0, NULL));
        CHECK_EQUAL(stats_of(cache).l1_used_bytes, 0);
    }
    CHECK(fell_short > 0);
    CHECK(stats_of(cache).load_failures > 0);
    leave();
}

static void failed_writes_are_retried_then_dropped(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.store_error=0.5&fault.seed=5"));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_drain_writes(cache, 60000));
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.store_retries > 0);
    CHECK_EQUAL(stats.stores + stats.stores_dropped, COUNT);
    CHECK_EQUAL(stats.writes_pending, 0);
    for (int i = 0; i < COUNT; i++) CHECK(is_ready(cache, space, &keys[i]));
    leave();
}

// Loads that never come: what is known before them, and what can be done about them.
static uint64_t submit_hanging(uint32_t policy, uint32_t deadline_ms, kvkeep_callback callback, void *userdata) {
    kvkeep_prefetch_options options;
    KVKEEP_INIT(&options);
    options.policy = policy;
    options.deadline_ms = deadline_ms;
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, callback, userdata));
    return job;
}

static void p10_lookup_never_waits_for_loading(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    uint64_t job = submit_hanging(KVKEEP_POLICY_WAIT, 0, NULL, NULL);
    uint32_t chunks = 0;
    kvkeep_prefetch_result result;
    KVKEEP_INIT(&result);
    AWAIT(kvkeep_query_lookup_hits(cache, job, &chunks) == KVKEEP_OK);
    CHECK_EQUAL(chunks, COUNT);
    CHECK_STATUS(kvkeep_query_prefetch(cache, job, &result), KVKEEP_PENDING);
    uint8_t bits;
    CHECK_STATUS(kvkeep_query_bitmap(cache, job, &bits, 1), KVKEEP_PENDING);
    // Everything else goes on meanwhile.
    kvkeep_key other = key_of(500);
    put(cache, space, &other, 1, SIZE);
    CHECK(is_ready(cache, space, &other));
    OK(kvkeep_cancel(cache, job));
    OK(kvkeep_wait(cache, job, 60000));
    OK(kvkeep_query_prefetch(cache, job, &result));
    CHECK_STATUS(result.status, KVKEEP_ERR_CANCELLED);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_close(cache));
}

struct told {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int count;
    kvkeep_completion last;
};

static void tell(void *userdata, const kvkeep_completion *completion) {
    struct told *told = userdata;
    pthread_mutex_lock(&told->mutex);
    told->count++;
    told->last = *completion;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->mutex);
}

static kvkeep_completion await_told(struct told *told) {
    pthread_mutex_lock(&told->mutex);
    while (told->count == 0) pthread_cond_wait(&told->changed, &told->mutex);
    pthread_mutex_unlock(&told->mutex);
    return told->last;
}

#define NOBODY_TOLD {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, {0, 0, 0, 0, 0, {0}}}

static void p4_a_hung_backend_does_not_hold_a_job_past_its_deadline(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.load_hang=1"));
    put_below(cache, space, keys, COUNT, SIZE);
    put(cache, space, keys, 2, SIZE);
    struct told effort = NOBODY_TOLD, strict = NOBODY_TOLD;
    submit_hanging(KVKEEP_POLICY_BEST_EFFORT, 50, tell, &effort);
    kvkeep_completion completion = await_told(&effort);
    OK(completion.status);
    CHECK_EQUAL(completion.hit_chunks, 2);
    OK(kvkeep_finish_read(cache, session, keys, 2, 0, NULL));
    submit_hanging(KVKEEP_POLICY_DEADLINE, 50, tell, &strict);
    completion = await_told(&strict);
    CHECK_STATUS(completion.status, KVKEEP_ERR_TIMEOUT);
    CHECK_EQUAL(completion.hit_chunks, 0);
    CHECK_EQUAL(stats_of(cache).l1_shares, 0);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(effort.count, 1);
    CHECK_EQUAL(strict.count, 1);
}

static void p4_a_hung_backend_is_fenced_at_its_deadline(void) {
    const char *url = "fault:memory:?fault.load_hang=1";
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    options.backend_timeout_ms = 100;
    enter(open_with(&options));
    put_below(cache, space, keys, COUNT, SIZE);
    struct told told = NOBODY_TOLD;
    submit_hanging(KVKEEP_POLICY_WAIT, 0, tell, &told);
    kvkeep_completion completion = await_told(&told);
    OK(completion.status);
    CHECK_EQUAL(completion.hit_chunks, 0);
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.backend_timeouts > 0);
    CHECK_EQUAL(stats.l1_shares, 0);
    // P2: the backend may still write there, so the memory stays locked.
    CHECK(stats.l1_locked_bytes >= SIZE);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(told.count, 1);
}

static void p4_close_does_not_wait_for_a_hung_load(void) {
    const char *url = "fault:memory:?fault.load_hang=1";
    kvkeep_options options = quiet_options(4 * MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    options.backend_timeout_ms = 200;
    enter(open_with(&options));
    put_below(cache, space, keys, COUNT, SIZE);
    struct told told = NOBODY_TOLD;
    submit_hanging(KVKEEP_POLICY_WAIT, 0, tell, &told);
    OK(kvkeep_close(cache));
    CHECK_EQUAL(told.count, 1);
    CHECK(told.last.status == KVKEEP_ERR_CANCELLED || told.last.status == KVKEEP_OK);
}

static void two_jobs_that_want_the_same_object_load_it_once(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.delay=1&fault.delay_ms=50"));
    put_below(cache, space, keys, COUNT, SIZE);
    uint64_t other = begin(cache, space), jobs[2];
    OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, NULL, &jobs[0], NULL, NULL));
    OK(kvkeep_submit_prefetch(cache, other, keys, COUNT, NULL, &jobs[1], NULL, NULL));
    for (int i = 0; i < 2; i++) {
        kvkeep_prefetch_result result;
        KVKEEP_INIT(&result);
        OK(kvkeep_wait(cache, jobs[i], 60000));
        OK(kvkeep_query_prefetch(cache, jobs[i], &result));
        CHECK_EQUAL(result.hit_chunks, COUNT);
    }
    check_held(cache, session, keys, COUNT);
    check_held(cache, other, keys, COUNT);
    CHECK_EQUAL(stats_of(cache).loads, COUNT);
    CHECK_EQUAL(stats_of(cache).l1_shares, 2 * COUNT);
    leave();
}

static void drain_says_how_much_is_left(void) {
    enter(open_l2(4 * MIB, "fault:memory:?fault.delay=1&fault.delay_ms=2000"));
    put(cache, space, keys, COUNT, SIZE);
    FAILS(kvkeep_drain_writes(cache, 1), KVKEEP_ERR_TIMEOUT, "8");
    OK(kvkeep_drain_writes(cache, 60000));
    CHECK_EQUAL(stats_of(cache).stores, COUNT);
    leave();
}

static void p9_an_l2_keeps_to_its_capacity(void) {
    enter(open_l2(4 * MIB, "memory:?capacity=256KiB"));
    for (uint32_t i = 0; i < 64; i++) {
        kvkeep_key key = key_of(100 + i);
        put(cache, space, &key, 1, SIZE);
        OK(kvkeep_drain_writes(cache, 30000));
        CHECK(stats_of(cache).l2_bytes <= 256 * KIB);
    }
    kvkeep_stats stats = stats_of(cache);
    CHECK(stats.l2_evictions > 0);
    CHECK_EQUAL(stats.l2_objects + stats.l2_evictions, 64);
    leave();
}

static void two_caches_may_share_a_directory(void) {
    char *directory = new_directory();
    kvkeep *reader = open_directory(directory, "");
    enter(open_directory(directory, ""));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_drain_writes(cache, 30000));
    leave();
    enter(reader);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(write_through_writes_what_is_committed);
    RUN(what_the_l2_has_is_not_written_again);
    RUN(write_back_writes_what_is_evicted);
    RUN(after_uses_writes_what_is_read_often);
    RUN(never_writes_nothing);
    RUN(temporary_objects_are_never_written);
    RUN(delete_reaches_the_backends);
    RUN(a_removed_backend_is_asked_no_more);
    RUN(p8_a_restart_finds_the_objects_any_engine);
    RUN(p8_a_restart_finds_the_objects_thread_pool);
    RUN(sizes_of_every_shape_come_back_from_disk);
    RUN(another_model_finds_nothing);
    RUN(p7_a_truncated_object_is_a_miss);
    RUN(p7_a_changed_byte_on_disk_is_a_miss);
    RUN(p7_an_object_of_another_model_under_this_name_is_a_miss);
    RUN(p7_flipped_bits_never_reach_a_reader);
    RUN(p7_torn_writes_never_reach_a_reader);
    RUN(p3_a_failed_read_ends_the_prefix_there);
    RUN(failed_writes_are_retried_then_dropped);
    RUN(p10_lookup_never_waits_for_loading);
    RUN(p4_a_hung_backend_does_not_hold_a_job_past_its_deadline);
    RUN(p4_a_hung_backend_is_fenced_at_its_deadline);
    RUN(p4_close_does_not_wait_for_a_hung_load);
    RUN(two_jobs_that_want_the_same_object_load_it_once);
    RUN(drain_says_how_much_is_left);
    RUN(p9_an_l2_keeps_to_its_capacity);
    RUN(two_caches_may_share_a_directory);
    return 0;
}
