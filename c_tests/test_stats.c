// Seen from outside: counters, Prometheus text, and the reasons of P12.
#include "fixture.h"

#include <ctype.h>

static kvkeep *cache;
static uint64_t space, session;

static void setup(void) {
    cache = open_l2(4 * MIB, "memory:");
    space = open_space(cache, "model");
    session = begin(cache, space);
}

static void teardown(void) {
    close_empty(cache);
}

static char *text_of(kvkeep_status (*write)(char *, size_t, size_t *)) {
    size_t length = 0, again = 0;
    CHECK_STATUS(write(NULL, 0, &length), KVKEEP_PARTIAL);
    CHECK(length > 0);
    // What is counted meanwhile may make it longer: some room to spare.
    size_t capacity = length + 4096;
    char *text = malloc(capacity);
    CHECK(text != NULL);
    OK(write(text, capacity, &again));
    CHECK_EQUAL(strlen(text), again);
    char few[8];
    memset(few, 'x', sizeof few);
    CHECK_STATUS(write(few, sizeof few, &again), KVKEEP_PARTIAL);
    CHECK(strlen(few) <= 7 && strncmp(few, text, strlen(few)) == 0);
    return text;
}

static void counters_count(void) {
    setup();
    kvkeep_key keys[4];
    kvkeep_view views[4];
    keys_of(keys, 1, 4);
    put_in(cache, session, keys, 3, 4096);
    CHECK_STATUS(kvkeep_reserve_read(cache, session, keys, 4, 1, views), KVKEEP_PARTIAL);
    CHECK_EQUAL(stats_of(cache).read_hits, 3);
    CHECK_EQUAL(stats_of(cache).read_misses, 1);
    OK(kvkeep_flush(cache, 30000));
    uint64_t job;
    OK(kvkeep_submit_prefetch(cache, session, keys, 4, NULL, &job, NULL, NULL));
    OK(kvkeep_wait_job(cache, job, 60000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.l1_bytes, 4 * MIB);
    CHECK(stats.l1_used_bytes >= 3 * 4096);
    CHECK(stats.l1_locked_bytes >= 3 * 4096);
    CHECK_EQUAL(stats.l1_objects, 3);
    CHECK_EQUAL(stats.l1_shares, 3 * 2 + 3);
    CHECK_EQUAL(stats.sessions, 1);
    CHECK_EQUAL(stats.jobs, 1);
    CHECK_EQUAL(stats.commits, 3);
    CHECK_EQUAL(stats.jobs_submitted, 1);
    CHECK_EQUAL(stats.jobs_completed, 1);
    CHECK_EQUAL(stats.prefetch_hit_chunks, 3);
    CHECK_EQUAL(stats.prefetch_asked_chunks, 4);
    CHECK_EQUAL(stats.stores, 3);
    CHECK_EQUAL(stats.store_latency.count, 3);
    CHECK_EQUAL(stats.prefetch_latency.count, 1);
    CHECK(stats.call_latency.count >= 1);
    uint64_t sum = 0;
    for (int i = 0; i < KVKEEP_HISTOGRAM_BUCKETS; i++) sum += stats.store_latency.buckets[i];
    CHECK_EQUAL(sum, stats.store_latency.count);
    teardown();
}

// A struct shorter than any version was, up to a place inside a histogram.
static void a_shorter_struct_is_filled_up_to_its_size(void) {
    setup();
    kvkeep_key keys[4];
    keys_of(keys, 1, 4);
    put_in(cache, session, keys, 4, 4096);
    OK(kvkeep_flush(cache, 30000));
    const size_t shorter[] = {8, offsetof(kvkeep_stats, commits), offsetof(kvkeep_stats, stored_bytes) + 3,
                              offsetof(kvkeep_stats, store_latency) + sizeof(uint64_t), sizeof(kvkeep_stats) - 8};
    for (size_t i = 0; i < sizeof shorter / sizeof *shorter; i++) {
        kvkeep_stats stats, whole = stats_of(cache);
        memset(&stats, 0xa5, sizeof stats);
        stats.struct_size = (uint32_t)shorter[i];
        stats.abi_version = KVKEEP_ABI_VERSION;
        OK(kvkeep_query_stats(cache, &stats));
        const unsigned char *bytes = (const unsigned char *)&stats;
        for (size_t at = shorter[i]; at < sizeof stats; at++) CHECK_EQUAL(bytes[at], 0xa5);
        if (shorter[i] > offsetof(kvkeep_stats, commits)) CHECK_EQUAL(stats.commits, 4);
        if (shorter[i] > offsetof(kvkeep_stats, store_latency)) CHECK_EQUAL(stats.store_latency.count, 4);
        if (shorter[i] > offsetof(kvkeep_stats, l1_bytes)) CHECK_EQUAL(stats.l1_bytes, whole.l1_bytes);
    }
    kvkeep_stats stats;
    KVKEEP_INIT(&stats);
    for (uint32_t size = 0; size < 8; size++) {
        stats.struct_size = size;
        FAILS(kvkeep_query_stats(cache, &stats), KVKEEP_ERR_INVALID, "struct_size");
    }
    teardown();
}

static kvkeep_status write_metrics(char *buffer, size_t capacity, size_t *length) {
    return kvkeep_get_metrics(cache, buffer, capacity, length);
}

static int is_name(const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) {
        if (!isalnum((unsigned char)text[i]) && text[i] != '_') return 0;
    }
    return length > 7 && strncmp(text, "kvkeep_", 7) == 0;
}

static void metrics_are_prometheus_text(void) {
    setup();
    kvkeep_key key = key_of(1);
    put(cache, space, &key, 1, 4096);
    char *text = text_of(write_metrics), type[128] = "";
    CHECK(text[strlen(text) - 1] == '\n');
    int samples = 0, histograms = 0, found = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        if (strncmp(line, "# HELP kvkeep_", 14) == 0) continue;
        if (strncmp(line, "# TYPE kvkeep_", 14) == 0) {
            const char *kind = strrchr(line, ' ') + 1;
            CHECK(strcmp(kind, "counter") == 0 || strcmp(kind, "gauge") == 0 || strcmp(kind, "histogram") == 0);
            histograms += strcmp(kind, "histogram") == 0;
            snprintf(type, sizeof type, "%.*s", (int)(kind - 1 - (line + 7)), line + 7);
            continue;
        }
        // name{labels} value, under the type that was declared for it.
        size_t name = strcspn(line, "{ ");
        CHECK(is_name(line, name));
        CHECK(strncmp(line, type, strlen(type)) == 0);
        const char *value = strrchr(line, ' ') + 1;
        char *end;
        CHECK(strtod(value, &end) >= 0);
        CHECK(*end == '\0');
        found |= strncmp(line, "kvkeep_commits", 14) == 0 && strtod(value, NULL) == 1;
        samples++;
    }
    CHECK(samples > 30);
    CHECK(histograms == 5);
    CHECK(found);
    free(text);
    teardown();
}

// Enough of a JSON reader to know that a text is one.
static const char *json(const char *at);

static const char *json_string(const char *at) {
    CHECK(*at == '"');
    for (at++; *at != '"'; at++) {
        CHECK(*at != '\0' && (unsigned char)*at >= 0x20);
        if (*at == '\\') CHECK(*++at != '\0');
    }
    return at + 1;
}

static const char *space_after(const char *at) {
    return at + strspn(at, " \t\n");
}

static const char *json_list(const char *at, int is_object) {
    char close = is_object ? '}' : ']';
    at = space_after(at + 1);
    if (*at == close) return at + 1;
    for (;;) {
        if (is_object) {
            at = space_after(json_string(at));
            CHECK(*at++ == ':');
        }
        at = space_after(json(space_after(at)));
        if (*at == close) return at + 1;
        CHECK(*at++ == ',');
        at = space_after(at);
    }
}

static const char *json(const char *at) {
    if (*at == '{' || *at == '[') return json_list(at, *at == '{');
    if (*at == '"') return json_string(at);
    const char *words[] = {"true", "false", "null"};
    for (int i = 0; i < 3; i++) {
        if (strncmp(at, words[i], strlen(words[i])) == 0) return at + strlen(words[i]);
    }
    char *end;
    strtod(at, &end);
    CHECK(end != at);
    return end;
}

static kvkeep_key explained;

static kvkeep_status write_key(char *buffer, size_t capacity, size_t *length) {
    return kvkeep_explain_key(cache, space, &explained, buffer, capacity, length);
}

static void check_key_says(const char *words) {
    char *text = text_of(write_key);
    CHECK_EQUAL(*space_after(json(text)), '\0');
    if (!strstr(text, words)) {
        fprintf(stderr, "explain_key does not say %s: %s\n", words, text);
        exit(1);
    }
    free(text);
}

static void p12_a_key_says_why_it_is_where_it_is(void) {
    setup();
    explained = key_of(1);
    check_key_says("\"absent\"");
    stage_in(cache, session, &explained, 1, 5000, KVKEEP_LIFETIME_CACHED);
    check_key_says("stag");
    OK(kvkeep_finish_write(cache, session, &explained, 1, NULL));
    OK(kvkeep_flush(cache, 30000));
    check_key_says("\"ready\"");
    check_key_says("5000");
    kvkeep_session_options options;
    KVKEEP_INIT(&options);
    options.request_id = "the \"holder\"";
    uint64_t holder;
    kvkeep_view view;
    OK(kvkeep_begin_session(cache, space, &options, &holder));
    OK(kvkeep_reserve_read(cache, holder, &explained, 1, 2, &view));
    check_key_says("the \\\"holder\\\"");
    char number[32];
    snprintf(number, sizeof number, "%llu", (unsigned long long)holder);
    check_key_says(number);
    snprintf(number, sizeof number, "pid %d", (int)getpid());
    check_key_says(number);
    check_key_says("\"unevictable_because\"");
    check_key_says("holds 3 share(s)");
    OK(kvkeep_end_session(cache, holder));
    OK(kvkeep_clear(cache, space, 0, NULL));
    check_key_says("memory");
    teardown();
}

static uint64_t explained_session;

static kvkeep_status write_session(char *buffer, size_t capacity, size_t *length) {
    return kvkeep_explain_session(cache, explained_session, buffer, capacity, length);
}

static void p12_a_session_says_what_it_holds(void) {
    setup();
    kvkeep_key keys[2];
    kvkeep_view view;
    keys_of(keys, 1, 2);
    put_in(cache, session, keys, 1, 4096);
    OK(kvkeep_reserve_read(cache, session, keys, 1, 6, &view));
    stage_in(cache, session, &keys[1], 1, 4096, KVKEEP_LIFETIME_CACHED);
    const uint64_t asked[2] = {session, 0};
    for (int i = 0; i < 2; i++) {
        explained_session = asked[i];
        char *text = text_of(write_session);
        CHECK_EQUAL(*space_after(json(text)), '\0');
        CHECK(strstr(text, "\"request\"") != NULL);
        CHECK(strstr(text, "\"shares\":7") != NULL);
        free(text);
    }
    teardown();
}

int main(void) {
    watchdog();
    RUN(counters_count);
    RUN(a_shorter_struct_is_filled_up_to_its_size);
    RUN(metrics_are_prometheus_text);
    RUN(p12_a_key_says_why_it_is_where_it_is);
    RUN(p12_a_session_says_what_it_holds);
    return 0;
}
