// A process that is killed while it stores: what was stored is there for the next, whole, and counted.
#include "below.h"

#include <signal.h>
#include <sys/wait.h>

enum { ROUNDS_MAX = 4096, KILLS = 6 };

static const char *program;

static void keys_of_round(uint32_t round) {
    keys_of(keys, 1 + round * COUNT, COUNT);
}

// The program that the child becomes: stores round after round, and says each that is stored.
static int store_until_killed(const char *directory, uint32_t round) {
    enter(open_directory(directory, ""));
    for (;; round++) {
        keys_of_round(round);
        put(cache, space, keys, COUNT, SIZE);
        OK(kvkeep_flush(cache, 60000));
        CHECK_EQUAL(stats_of(cache).stores_dropped, 0);
        if (write(STDOUT_FILENO, &round, sizeof round) != sizeof round) return 1;
    }
}

// Has a child store from round `first` on, kills it when it has said `reports` of them, and returns the round after the last said.
static uint32_t store_and_be_killed(const char *directory, uint32_t first, uint32_t reports) {
    int from_child[2];
    CHECK_EQUAL(pipe(from_child), 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        char number[16];
        snprintf(number, sizeof number, "%u", first);
        dup2(from_child[1], STDOUT_FILENO);
        close(from_child[0]);
        close(from_child[1]);
        execl(program, program, directory, number, (char *)NULL);
        _exit(127);
    }
    close(from_child[1]);
    uint32_t said, next = first;
    while (next < first + reports && read(from_child[0], &said, sizeof said) == sizeof said) next = said + 1;
    CHECK_EQUAL(next, first + reports);
    CHECK_EQUAL(kill(child, SIGKILL), 0);
    while (read(from_child[0], &said, sizeof said) == sizeof said) next = said + 1;
    int how = -1;
    CHECK_EQUAL(waitpid(child, &how, 0), child);
    CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    close(from_child[0]);
    return next;
}

static void p8_a_killed_process_loses_nothing_stored_and_leaves_nothing_half(void) {
    char *directory = new_directory();
    uint32_t next = 0;
    for (uint32_t kills = 1; kills <= KILLS; kills++) {
        next = store_and_be_killed(directory, next, 3 * kills);
        CHECK(next < ROUNDS_MAX);
        enter(open_directory(directory, ""));
        // What was being stored may be there, too, and then it is whole.
        CHECK(stats_of(cache).l2_objects >= next * COUNT);
        CHECK(stats_of(cache).l2_bytes >= next * COUNT * SIZE);
        for (uint32_t round = 0; round <= next; round++) {
            keys_of_round(round);
            kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
            if (round < next) CHECK_EQUAL(result.hit_chunks, COUNT);
            CHECK_EQUAL(result.failed_keys, 0);
            if (result.hit_chunks > 0) OK(kvkeep_finish_read(cache, session, keys, result.hit_chunks, 0, NULL));
        }
        CHECK_EQUAL(stats_of(cache).corruptions, 0);
        leave();
    }
    remove_directory(directory);
}

int main(int argc, char **argv) {
    watchdog();
    program = argv[0];
    if (argc > 2) return store_until_killed(argv[1], (uint32_t)atoi(argv[2]));
    RUN(p8_a_killed_process_loses_nothing_stored_and_leaves_nothing_half);
    return 0;
}
