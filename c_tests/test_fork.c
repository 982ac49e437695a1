// A forked child holds none of its parent's caches; once it executes anew it may open its own.
#include "fixture.h"

#include <sys/wait.h>

static const char *program;

static void await_child(pid_t child) {
    int how = -1;
    CHECK_EQUAL(waitpid(child, &how, 0), child);
    CHECK(WIFEXITED(how) && WEXITSTATUS(how) == 0);
}

static void p6_the_childs_handle_is_closed(void) {
    kvkeep *cache = open_l2(MIB, "memory:");
    uint64_t space = open_space(cache, "model"), session = begin(cache, space);
    kvkeep_key key = key_of(1);
    put_in(cache, session, &key, 1, 4096);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        kvkeep_view view;
        kvkeep_stats stats;
        KVKEEP_INIT(&stats);
        watchdog();
        FAILS(kvkeep_reserve_read(cache, session, &key, 1, 0, &view), KVKEEP_ERR_CLOSED, "fork");
        FAILS(kvkeep_query_stats(cache, &stats), KVKEEP_ERR_CLOSED, "fork");
        FAILS(kvkeep_end_session(cache, session), KVKEEP_ERR_CLOSED, "fork");
        FAILS(kvkeep_close(cache), KVKEEP_ERR_CLOSED, "fork");
        _exit(0);
    }
    await_child(child);
    CHECK(is_ready(cache, space, &key));
    OK(kvkeep_end_session(cache, session));
    OK(kvkeep_close(cache));
}

// The program that the child becomes: only the thread that forks lives on in a child, so one that means to use threads
// of its own executes anew first.
static int run_in_child(void) {
    kvkeep *own = open_l2(MIB, "memory:");
    uint64_t space = open_space(own, "model");
    kvkeep_key key = key_of(1);
    put(own, space, &key, 1, 4096);
    CHECK(is_ready(own, space, &key));
    OK(kvkeep_close(own));
    return 0;
}

static void a_child_that_executes_anew_opens_its_own(void) {
    kvkeep *cache = open_l1(MIB);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        execl(program, program, "child", (char *)NULL);
        _exit(127);
    }
    await_child(child);
    OK(kvkeep_close(cache));
}

int main(int argc, char **argv) {
    watchdog();
    program = argv[0];
    if (argc > 1) return run_in_child();
    RUN(p6_the_childs_handle_is_closed);
    RUN(a_child_that_executes_anew_opens_its_own);
    return 0;
}
