// Opening and closing: handles, versions, spaces, the log.
#include "fixture.h"

#include <pthread.h>
#include <stddef.h>

static void the_header_fits_the_library(void) {
    CHECK(strcmp(kvkeep_version(), KVKEEP_VERSION) == 0);
    CHECK_EQUAL(kvkeep_abi_version(), KVKEEP_ABI_VERSION);
    CHECK(strcmp(kvkeep_status_name(KVKEEP_ERR_NOT_HELD), "KVKEEP_ERR_NOT_HELD") == 0);
    CHECK(strcmp(kvkeep_status_name(KVKEEP_PENDING), "KVKEEP_PENDING") == 0);
    CHECK(strcmp(kvkeep_status_name(12345), "unknown status") == 0);
    CHECK(strcmp(kvkeep_status_name(INT32_MIN), "unknown status") == 0);
    CHECK(strcmp(kvkeep_last_error(), "") == 0);
}

static void extra_count_follows_the_rule(void) {
    CHECK_EQUAL(kvkeep_extra_count(1, 1), 0);
    CHECK_EQUAL(kvkeep_extra_count(0, 1), 0);
    CHECK_EQUAL(kvkeep_extra_count(-3, -9), 0);
    CHECK_EQUAL(kvkeep_extra_count(8, 8), 0);
    CHECK_EQUAL(kvkeep_extra_count(8, 1), 7);
    CHECK_EQUAL(kvkeep_extra_count(4, 2), 3);
}

static void a_closed_handle_stays_closed(void) {
    kvkeep *cache = open_l1(MIB);
    OK(kvkeep_close(cache));
    FAILS(kvkeep_close(cache), KVKEEP_ERR_CLOSED, "not open");
    kvkeep *next = open_l1(MIB);
    CHECK(next != cache);
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    FAILS(kvkeep_query_stats(cache, &stats), KVKEEP_ERR_CLOSED, "not open");
    OK(kvkeep_close(next));
    OK(kvkeep_close(NULL));
}

static void two_caches_know_nothing_of_each_other(void) {
    kvkeep *one = open_l1(MIB), *two = open_l1(MIB);
    uint64_t space_one = open_space(one, "model"), space_two = open_space(two, "model");
    kvkeep_key key = key_of(1);
    put(one, space_one, &key, 1, 100);
    CHECK(is_ready(one, space_one, &key));
    CHECK(!is_ready(two, space_two, &key));
    OK(kvkeep_close(one));
    CHECK(!is_ready(two, space_two, &key));
    OK(kvkeep_close(two));
}

static void as_many_caches_as_the_header_says(void) {
    kvkeep *caches[257] = {NULL};
    kvkeep_options options = quiet_options(4096);
    options.flags = KVKEEP_FLAG_NO_PREFAULT;
    for (int i = 0; i < 256; i++) OK(kvkeep_open(&options, &caches[i]));
    FAILS(kvkeep_open(&options, &caches[256]), KVKEEP_ERR_LIMIT, "256");
    CHECK(caches[256] == NULL);
    for (int i = 0; i < 256; i++) OK(kvkeep_close(caches[i]));
}

static void as_many_spaces_as_the_header_says(void) {
    kvkeep *cache = open_l1(MIB);
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    char model[32];
    options.model = model;
    uint64_t space, more = 77;
    for (int i = 0; i < 65536; i++) {
        snprintf(model, sizeof model, "model %d", i);
        OK(kvkeep_open_space(cache, &options, &space));
    }
    snprintf(model, sizeof model, "one more");
    FAILS(kvkeep_open_space(cache, &options, &more), KVKEEP_ERR_LIMIT, "65536 spaces are open");
    CHECK_EQUAL(more, 77);
    // One that is open may be opened again.
    snprintf(model, sizeof model, "model 65535");
    OK(kvkeep_open_space(cache, &options, &more));
    CHECK_EQUAL(more, space);
    OK(kvkeep_close(cache));
}

static void an_older_callers_shorter_struct_works(void) {
    kvkeep *cache = open_l1(MIB);
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "model";
    // Version 0.1 began without generations: what follows is not the caller's struct any more.
    memset(&options.generation, 0xee, sizeof options - offsetof(kvkeep_space_options, generation));
    options.struct_size = offsetof(kvkeep_space_options, generation);
    uint64_t older = 0, today = 0;
    OK(kvkeep_open_space(cache, &options, &older));
    KVKEEP_INIT(&options);
    options.model = "model";
    OK(kvkeep_open_space(cache, &options, &today));
    CHECK_EQUAL(older, today);
    OK(kvkeep_close(cache));
}

static void a_newer_callers_longer_struct_works_where_its_tail_is_unused(void) {
    struct {
        kvkeep_options known;
        uint64_t unknown;
    } newer;
    memset(&newer, 0, sizeof newer);
    newer.known = quiet_options(MIB);
    newer.known.struct_size = sizeof newer;
    OK(kvkeep_close(open_with(&newer.known)));
    newer.unknown = 1;
    kvkeep *cache = NULL;
    FAILS(kvkeep_open(&newer.known, &cache), KVKEEP_ERR_VERSION, "does not know");
    CHECK(cache == NULL);
}

static void another_abi_is_refused(void) {
    kvkeep_options options = quiet_options(MIB);
    options.abi_version = KVKEEP_ABI_VERSION + 1;
    kvkeep *cache = NULL;
    FAILS(kvkeep_open(&options, &cache), KVKEEP_ERR_VERSION, "abi_version");
    CHECK(cache == NULL);
}

static void a_space_is_what_its_texts_say(void) {
    kvkeep *cache = open_l1(MIB);
    kvkeep_space_options options;
    KVKEEP_INIT(&options);
    options.model = "model";
    uint64_t first, other;
    OK(kvkeep_open_space(cache, &options, &first));
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK_EQUAL(other, first);
    options.quota_bytes = 4096;
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK_EQUAL(other, first);
    options.chunk_tokens = 256;
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK_EQUAL(other, first);
    options.chunk_tokens = 128;
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK(other != first);
    options.chunk_tokens = 0;
    options.tenant = "tenant";
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK(other != first);
    options.tenant = NULL;
    options.layout = "layout";
    OK(kvkeep_open_space(cache, &options, &other));
    CHECK(other != first);
    OK(kvkeep_close(cache));
}

static void objects_of_two_spaces_never_meet(void) {
    kvkeep *cache = open_l1(MIB);
    uint64_t one = open_space(cache, "one"), two = open_space(cache, "two");
    kvkeep_key key = key_of(1);
    put(cache, one, &key, 1, 1000);
    CHECK(!is_ready(cache, two, &key));
    put(cache, two, &key, 1, 2000);
    CHECK_EQUAL(stats_of(cache).l1_objects, 2);
    OK(kvkeep_clear(cache, two, 0, NULL));
    CHECK(is_ready(cache, one, &key));
    OK(kvkeep_close(cache));
}

static void p2_what_is_held_outlives_close(void) {
    kvkeep *cache = open_l1(MIB);
    uint64_t space = open_space(cache, "model"), session = begin(cache, space);
    kvkeep_key keys[2];
    keys_of(keys, 1, 2);
    kvkeep_view read, write;
    put(cache, space, &keys[0], 1, 64 * KIB);
    OK(kvkeep_reserve_read(cache, session, &keys[0], 1, 0, &read));
    uint64_t size = 64 * KIB;
    OK(kvkeep_reserve_write(cache, session, &keys[1], 1, &size, KVKEEP_LIFETIME_CACHED, &write));
    OK(kvkeep_close(cache));
    kvkeep *next = open_l1(MIB);
    uint64_t next_space = open_space(next, "model");
    for (uint32_t i = 0; i < 32; i++) {
        kvkeep_key key = key_of(100 + i);
        put(next, next_space, &key, 1, 64 * KIB);
    }
    fill(&keys[1], &write);
    CHECK(holds(&keys[0], &read));
    CHECK(holds(&keys[1], &write));
    OK(kvkeep_close(next));
}

struct log_lines {
    int count, worst;
};

static void count_line(void *userdata, int32_t level, const char *message) {
    struct log_lines *lines = userdata;
    CHECK(level >= KVKEEP_LOG_ERROR && level <= KVKEEP_LOG_INFO);
    CHECK(message != NULL && message[0] != '\0' && strchr(message, '\n') == NULL);
    lines->count++;
    if (lines->worst == 0 || level < lines->worst) lines->worst = level;
}

static void the_log_tells_what_was_asked_for(void) {
    struct log_lines all = {0, 0}, warnings = {0, 0};
    kvkeep_options options = quiet_options(MIB);
    options.log = count_line;
    options.log_userdata = &all;
    options.log_level = KVKEEP_LOG_INFO;
    OK(kvkeep_close(open_with(&options)));
    CHECK(all.count > 0);
    options.log_userdata = &warnings;
    options.log_level = 0;
    OK(kvkeep_close(open_with(&options)));
    CHECK_EQUAL(warnings.count, 0);
}

static kvkeep *closed_by_its_log;
static int refusals;

static void close_it(void *userdata, int32_t level, const char *message) {
    (void)userdata;
    (void)level;
    if (closed_by_its_log == NULL || strstr(message, "added backend") == NULL) return;
    FAILS(kvkeep_close(closed_by_its_log), KVKEEP_ERR_INVALID, "callback");
    refusals++;
}

static void p6_a_cache_is_not_closed_from_within_a_call_of_it(void) {
    // Behind the shim it is the daemon that has the backends, and logs what becomes of them.
    if (getenv("KVKEEP_COMMAND") != NULL) return;
    kvkeep_options options = quiet_options(MIB);
    options.log = close_it;
    options.log_level = KVKEEP_LOG_INFO;
    closed_by_its_log = open_with(&options);
    OK(kvkeep_add_backend(closed_by_its_log, "memory:", NULL));
    CHECK_EQUAL(refusals, 1);
    kvkeep *cache = closed_by_its_log;
    closed_by_its_log = NULL;
    OK(kvkeep_close(cache));
}

static void *fail_on_a_thread(void *unused) {
    (void)unused;
    CHECK(strcmp(kvkeep_last_error(), "") == 0);
    FAILS(kvkeep_open(NULL, NULL), KVKEEP_ERR_INVALID, "options is NULL");
    return NULL;
}

static void the_last_error_is_the_threads_own(void) {
    kvkeep *cache = NULL;
    FAILS(kvkeep_close((kvkeep *)(uintptr_t)3), KVKEEP_ERR_CLOSED, "not open");
    pthread_t thread;
    CHECK_EQUAL(pthread_create(&thread, NULL, fail_on_a_thread, NULL), 0);
    CHECK_EQUAL(pthread_join(thread, NULL), 0);
    CHECK(strstr(kvkeep_last_error(), "not open") != NULL);
    cache = open_l1(MIB);
    CHECK(strstr(kvkeep_last_error(), "not open") != NULL);
    OK(kvkeep_close(cache));
}

static void every_policy_opens_by_its_name(void) {
    const char *names[] = {"lru", "s3fifo", "mq", "none"};
    for (int i = 0; i < 4; i++) {
        kvkeep_options options = quiet_options(MIB);
        options.eviction_policy = names[i];
        kvkeep *cache = open_with(&options);
        uint64_t space = open_space(cache, "model");
        kvkeep_key key = key_of(1);
        put(cache, space, &key, 1, 4096);
        CHECK(is_ready(cache, space, &key));
        OK(kvkeep_close(cache));
    }
}

int main(void) {
    watchdog();
    RUN(the_header_fits_the_library);
    RUN(extra_count_follows_the_rule);
    RUN(a_closed_handle_stays_closed);
    RUN(two_caches_know_nothing_of_each_other);
    RUN(as_many_caches_as_the_header_says);
    RUN(as_many_spaces_as_the_header_says);
    RUN(an_older_callers_shorter_struct_works);
    RUN(a_newer_callers_longer_struct_works_where_its_tail_is_unused);
    RUN(another_abi_is_refused);
    RUN(a_space_is_what_its_texts_say);
    RUN(objects_of_two_spaces_never_meet);
    RUN(p2_what_is_held_outlives_close);
    RUN(the_log_tells_what_was_asked_for);
    RUN(p6_a_cache_is_not_closed_from_within_a_call_of_it);
    RUN(the_last_error_is_the_threads_own);
    RUN(every_policy_opens_by_its_name);
    return 0;
}
