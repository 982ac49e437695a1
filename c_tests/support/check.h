// The smallest test harness: a failed CHECK says where and ends the program, a watchdog ends one that hangs.
#ifndef CHECK_H
#define CHECK_H

#include <kvkeep.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: not true: %s (last error: %s)\n", __FILE__, __LINE__, #condition, \
                    kvkeep_last_error()); \
            exit(1); \
        } \
    } while (0)

#define CHECK_EQUAL(found, wanted) check_equal(__FILE__, __LINE__, #found, (long long)(found), (long long)(wanted))
// For statuses: says their names.
#define CHECK_STATUS(found, wanted) check_status(__FILE__, __LINE__, #found, (int32_t)(found), (int32_t)(wanted))
#define OK(call) CHECK_STATUS(call, KVKEEP_OK)
// An error whose message has these words and goes on after the cause with a remedy.
#define FAILS(call, wanted, words) check_fails(__FILE__, __LINE__, #call, (int32_t)(call), (int32_t)(wanted), words)
#define RUN(test) (printf("%s\n", #test), fflush(stdout), (test)())

static inline void check_equal(const char *file, int line, const char *what, long long found, long long wanted) {
    if (found == wanted) return;
    fprintf(stderr, "%s:%d: %s is %lld, not %lld\n", file, line, what, found, wanted);
    exit(1);
}

static inline void check_status(const char *file, int line, const char *what, int32_t found, int32_t wanted) {
    if (found == wanted) return;
    fprintf(stderr, "%s:%d: %s gave %s, not %s (last error: %s)\n", file, line, what, kvkeep_status_name(found),
            kvkeep_status_name(wanted), kvkeep_last_error());
    exit(1);
}

static inline void check_fails(const char *file, int line, const char *what, int32_t found, int32_t wanted,
                               const char *words) {
    check_status(file, line, what, found, wanted);
    const char *message = kvkeep_last_error();
    const char *cause = strstr(message, words);
    const char *remedy = strpbrk(cause ? cause : "", ":;,(");
    if (cause && remedy && strlen(remedy) > 8) return;
    fprintf(stderr, "%s:%d: %s said \"%s\", without \"%s\" and a remedy\n", file, line, what, message, words);
    exit(1);
}

// Says that a test, or a part of one, cannot run here, and notes it in the file that KVKEEP_SKIPPED names: `make test` prints that file
// at its end.
static inline void skipped(const char *test, const char *why) {
    printf("skipped: %s: %s\n", test, why);
    const char *list = getenv("KVKEEP_SKIPPED");
    FILE *file = list ? fopen(list, "a") : NULL;
    if (!file) return;
    fprintf(file, "%s: %s\n", test, why);
    fclose(file);
}

// Call first: a test that hangs is killed, later where the environment says that things are slow.
static inline void watchdog(void) {
    const char *seconds = getenv("KVKEEP_TEST_WATCHDOG_S");
    alarm(seconds ? (unsigned)atoi(seconds) : 120);
}

#endif
