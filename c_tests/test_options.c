// P6: options, URLs and texts that cannot be, each refused with a message a person understands.
#include "refused.h"

static void p6_options_of_a_cache(void) {
    kvkeep_options options = quiet_options(0);
    refuse_open(&options, KVKEEP_ERR_INVALID, "l1_bytes");
    options.l1_bytes = 4095;
    refuse_open(&options, KVKEEP_ERR_INVALID, "l1_bytes");
    options.l1_bytes = (uint64_t)1 << 46;
    refuse_open(&options, KVKEEP_ERR_NO_MEMORY, "memory");
    options.l1_bytes = UINT64_MAX;
    refuse_open(&options, KVKEEP_ERR_NO_MEMORY, "memory");

#define REFUSE(field, value, status, words) \
    do { \
        options = quiet_options(MIB); \
        options.field = value; \
        refuse_open(&options, status, words); \
    } while (0)
    REFUSE(eviction_policy, "lfu", KVKEEP_ERR_INVALID, "lru");
    REFUSE(eviction_policy, "", KVKEEP_ERR_INVALID, "lru");
    REFUSE(eviction_policy, "\xff\xfe", KVKEEP_ERR_INVALID, "not UTF-8");
    REFUSE(store_mode, 4, KVKEEP_ERR_INVALID, "store_mode is 4");
    REFUSE(flags, 1u << 30, KVKEEP_ERR_INVALID, "flags");
    REFUSE(sessions_max, 1 << 20, KVKEEP_ERR_INVALID, "sessions_max is 1048576");
    REFUSE(log_level, 9, KVKEEP_ERR_INVALID, "log_level is 9");
    REFUSE(reserved, 1, KVKEEP_ERR_INVALID, "reserved is 1");
    REFUSE(watermark_high_percent, 101, KVKEEP_ERR_INVALID, "watermark");
    REFUSE(flags, KVKEEP_FLAG_READ_ONLY, KVKEEP_ERR_INVALID, "flags");
    REFUSE(connect, "unix:///nowhere/kvkeep.sock", KVKEEP_ERR_INVALID, "l1_bytes is set");
    KVKEEP_INIT(&options);
    options.connect = "unix:///nowhere/kvkeep.sock";
    refuse_open(&options, KVKEEP_ERR_DISCONNECTED, "no daemon answers");
    options.connect = "tcp://host:1";
    refuse_open(&options, KVKEEP_ERR_INVALID, "unix:///path");
    options.connect = "unix:///nowhere/kvkeep.sock?sping_us=1";
    refuse_open(&options, KVKEEP_ERR_INVALID, "has no parameter");
    options.connect = "unix:///nowhere/kvkeep.sock";
    options.eviction_policy = "lru";
    refuse_open(&options, KVKEEP_ERR_INVALID, "eviction_policy is set");
    options = quiet_options(MIB);
    options.watermark_high_percent = 50;
    options.watermark_low_percent = 51;
    refuse_open(&options, KVKEEP_ERR_INVALID, "watermark");
    options = quiet_options(MIB);
    options.store_mode = KVKEEP_STORE_AFTER_USES;
    options.store_after_uses = 65536;
    refuse_open(&options, KVKEEP_ERR_INVALID, "store_after_uses is 65536");
    options = quiet_options(MIB);
    options.flags = KVKEEP_FLAG_NUMA_NODE;
    options.numa_node = 4000;
    refuse_open(&options, KVKEEP_ERR_INVALID, "NUMA node 4000 out of range");
#undef REFUSE
}

static long free_huge_pages(void) {
    char line[128];
    long count, free_pages = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file)) {
        if (sscanf(line, "HugePages_Free: %ld", &count) == 1) free_pages = count;
    }
    fclose(file);
    return free_pages;
}

static void p6_huge_pages_that_are_not_reserved(void) {
    kvkeep_options options = quiet_options(((uint64_t)free_huge_pages() + 1) * 2 * MIB);
    options.flags = KVKEEP_FLAG_HUGE_PAGES;
    refuse_open(&options, KVKEEP_ERR_NO_MEMORY, "reserve more huge pages");
}

static void p6_more_backends_than_there_may_be(void) {
    const char *urls[KVKEEP_TIERS_MAX];
    for (int i = 0; i < KVKEEP_TIERS_MAX; i++) urls[i] = "memory:";
    kvkeep_options options = quiet_options(MIB);
    options.backend_urls = urls;
    options.backend_count = KVKEEP_TIERS_MAX;
    refuse_open(&options, KVKEEP_ERR_LIMIT, "backend");
    options.backend_count = KVKEEP_TIERS_MAX - 1;
    OK(kvkeep_close(open_with(&options)));
}

static void p6_urls(void) {
    setup();
    kvkeep_status expected = KVKEEP_ERR_INVALID;
    FAILS(kvkeep_add_backend(cache, "ftp://host/path", NULL), expected, "ftp");
    FAILS(kvkeep_add_backend(cache, "", NULL), expected, "URL");
    FAILS(kvkeep_add_backend(cache, "no scheme", NULL), expected, "URL");
    FAILS(kvkeep_add_backend(cache, "memory:?capcity=1GiB", NULL), expected, "capcity");
    FAILS(kvkeep_add_backend(cache, "memory:?capacity=lots", NULL), expected, "lots");
    FAILS(kvkeep_add_backend(cache, "fs:///tmp/kvkeep?capcity=1GiB", NULL), expected, "capcity");
    FAILS(kvkeep_add_backend(cache, "fs://relative?capacity=1GiB", NULL), expected, "fs");
    FAILS(kvkeep_add_backend(cache, "memory:\xc3\x28", NULL), expected, "not UTF-8");
    FAILS(kvkeep_add_backend(cache, "fault:ftp://host?fault.torn=1", NULL), expected, "ftp");
    FAILS(kvkeep_add_backend(cache, "fault:memory:", NULL), expected, "fault.load_error");
    const char *url = "ftp://host/path";
    kvkeep_options options = quiet_options(MIB);
    options.backend_urls = &url;
    options.backend_count = 1;
    refuse_open(&options, expected, "ftp");
    for (int i = 0; i < 6; i++) OK(kvkeep_add_backend(cache, "memory:", NULL));
    FAILS(kvkeep_add_backend(cache, "memory:", NULL), KVKEEP_ERR_LIMIT, "backend");
    teardown();
}

static void p6_texts_and_choices(void) {
    setup();
    kvkeep_space_options space_options;
    KVKEEP_INIT(&space_options);
    uint64_t number;
    space_options.model = "";
    FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID, "model is empty");
    static char longest[8194];
    memset(longest, 'x', 8193);
    space_options.model = "toy";
    space_options.layout = longest;
    FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID,
          "layout has 8193 bytes, it may have 8192: shorten it, or pass a hash of it");
    space_options.layout = NULL;
    space_options.model = "\x80model";
    FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID, "not UTF-8");
    space_options.model = "model";
    space_options.tenant = "\xed\xa0\x80";
    FAILS(kvkeep_open_space(cache, &space_options, &number), KVKEEP_ERR_INVALID, "tenant is not UTF-8");

    kvkeep_session_options session_options;
    KVKEEP_INIT(&session_options);
    char name[300];
    memset(name, 'x', sizeof name);
    name[256] = '\0';
    session_options.request_id = name;
    FAILS(kvkeep_begin_session(cache, space, &session_options, &number), KVKEEP_ERR_INVALID, "request_id has 256");

    FAILS(kvkeep_reserve_write(cache, session, &keys[3], 1, sizes, 2, views), KVKEEP_ERR_INVALID, "lifetime is 2");
    FAILS(kvkeep_clear(cache, space, 2, NULL), KVKEEP_ERR_INVALID, "force is 2");
    FAILS(kvkeep_retain(cache, space, keys, 1, 101, 1000, NULL), KVKEEP_ERR_INVALID, "priority is 101");

    kvkeep_prefetch_options options;
#define REFUSE(field, value, words) \
    do { \
        KVKEEP_INIT(&options); \
        options.field = value; \
        FAILS(kvkeep_submit_prefetch(cache, session, keys, 4, &options, &number, NULL, NULL), KVKEEP_ERR_INVALID, \
              words); \
    } while (0)
    REFUSE(mode, 3, "mode is 3");
    REFUSE(mode, KVKEEP_PREFETCH_WINDOW, "window_chunks is 0");
    REFUSE(policy, 3, "policy is 3");
    REFUSE(lifetime, 2, "lifetime is 2");
    REFUSE(notify, 2, "notify is 2");
    REFUSE(notify_lookup, 2, "notify_lookup is 2");
    REFUSE(pause_after_lookup, 2, "pause_after_lookup is 2");
    REFUSE(reserved[0], 7, "reserved is 7");
    REFUSE(objects_per_chunk, 3, "objects_per_chunk");
    REFUSE(objects_per_chunk, 5, "objects_per_chunk");
    REFUSE(group_rule_count, 65, "group_rule_count is 65");
    REFUSE(group_rule_count, 1, "group_rules is NULL");
#undef REFUSE
    kvkeep_group_rule rules[2] = {{.mode = KVKEEP_PREFETCH_EACH}, {.group = 1, .mode = KVKEEP_PREFETCH_WINDOW}};
    KVKEEP_INIT(&options);
    options.group_rules = rules;
    options.group_rule_count = 1;
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 4, &options, &number, NULL, NULL), KVKEEP_ERR_INVALID, "mode");
    options.group_rules = &rules[1];
    FAILS(kvkeep_submit_prefetch(cache, session, keys, 4, &options, &number, NULL, NULL), KVKEEP_ERR_INVALID,
          "window_chunks is 0");
    teardown();
}

int main(void) {
    watchdog();
    RUN(p6_options_of_a_cache);
    RUN(p6_huge_pages_that_are_not_reserved);
    RUN(p6_more_backends_than_there_may_be);
    RUN(p6_urls);
    RUN(p6_texts_and_choices);
    return 0;
}
