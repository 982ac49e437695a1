// A power cut: what `durability=power` reported stored is there afterwards, and with either durability nothing that is there is wrong.
// The cut is played: a library notes what a process has synced, and when the process is killed, the test takes away the rest.
#include "below.h"
#include "power_cut.h"

#include <signal.h>
#include <sys/wait.h>

enum { ROUNDS_MAX = 4096, CUTS = 3 };

static const char *program;

// How the cut leaves what was not synced.
enum cut { LOSES, TEARS };

static void keys_of_round(uint32_t round) {
    keys_of(keys, 1 + round * COUNT, COUNT);
}

static void say(uint32_t number) {
    CHECK_EQUAL(write(STDOUT_FILENO, &number, sizeof number), sizeof number);
}

// The program that the child becomes: stores round after round, and says the number of each object as soon as it is stored.
static _Noreturn void store_until_killed(const char *directory, const char *parameters, uint32_t round) {
    enter(open_directory(directory, parameters));
    say(0);
    char go;
    CHECK_EQUAL(read(STDIN_FILENO, &go, 1), 1);
    for (;; round++) {
        keys_of_round(round);
        put(cache, space, keys, COUNT, SIZE);
        for (size_t left = COUNT, said[COUNT] = {0}; left > 0;) {
            kvkeep_key_state states[COUNT];
            OK(kvkeep_query_keys(cache, space, keys, COUNT, states));
            for (size_t i = 0; i < COUNT; i++) {
                if (said[i] || !(states[i].flags & KVKEEP_KEY_STORED)) continue;
                say(1 + round * COUNT + (uint32_t)i);
                said[i] = 1;
                left--;
            }
        }
        CHECK_EQUAL(stats_of(cache).stores_dropped, 0);
    }
}

struct child {
    pid_t pid;
    int from, to;
};

static struct child start(const char *directory, const char *parameters, uint32_t round, const char *log) {
    int from_child[2], to_child[2];
    CHECK_EQUAL(pipe(from_child), 0);
    CHECK_EQUAL(pipe(to_child), 0);
    struct child child = {fork(), from_child[0], to_child[1]};
    CHECK(child.pid >= 0);
    if (child.pid == 0) {
        char number[16];
        snprintf(number, sizeof number, "%u", round);
        dup2(from_child[1], STDOUT_FILENO);
        dup2(to_child[0], STDIN_FILENO);
        close(from_child[0]);
        close(to_child[1]);
        setenv("LD_PRELOAD", POWER_CUT, 1);
        setenv("POWER_CUT_LOG", log, 1);
        execl(program, program, directory, parameters, number, (char *)NULL);
        _exit(127);
    }
    close(from_child[1]);
    close(to_child[0]);
    uint32_t ready = 1;
    CHECK_EQUAL(read(child.from, &ready, sizeof ready), sizeof ready);
    CHECK_EQUAL(ready, 0);
    return child;
}

// Lets it store, and kills it when it has said `reports` objects. Notes in `stored` all that it said; returns their number.
static size_t go_and_kill(struct child child, size_t reports, uint8_t *stored) {
    CHECK_EQUAL(write(child.to, "g", 1), 1);
    uint32_t said;
    size_t count = 0;
    for (int killed = 0; read(child.from, &said, sizeof said) == sizeof said;) {
        CHECK(said > 0 && said <= ROUNDS_MAX * COUNT && !stored[said]);
        stored[said] = 1;
        if (++count >= reports && !killed) {
            CHECK_EQUAL(kill(child.pid, SIGKILL), 0);
            killed = 1;
        }
    }
    int how = -1;
    CHECK_EQUAL(waitpid(child.pid, &how, 0), child.pid);
    CHECK(WIFSIGNALED(how) && WTERMSIG(how) == SIGKILL);
    CHECK(count >= reports);
    close(child.from);
    close(child.to);
    return count;
}

static char *text_of(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) return calloc(1, 1);
    CHECK_EQUAL(fseek(file, 0, SEEK_END), 0);
    size_t length = (size_t)ftell(file);
    rewind(file);
    char *text = calloc(1, length + 1);
    CHECK(text != NULL);
    CHECK_EQUAL(fread(text, 1, length, file), length);
    fclose(file);
    return text;
}

// Makes of the directory what the disk would have after the cut.
static void cut(int above, const char *name, const char *log, enum cut how) {
    struct cut_entry directory, entry;
    CHECK(cut_entry_of(above, name, 0, &directory));
    int at = openat(above, name, O_RDONLY | O_DIRECTORY);
    CHECK(at >= 0);
    DIR *list = fdopendir(dup(at));
    CHECK(list != NULL);
    for (struct dirent *found; (found = readdir(list));) {
        const char *own = found->d_name;
        if (!strcmp(own, ".") || !strcmp(own, "..")) continue;
        CHECK(cut_entry_of(at, own, AT_SYMLINK_NOFOLLOW, &entry));
        char line[512];
        snprintf(line, sizeof line, "N %s %s %s\n", directory.id, own, entry.id);
        int named = how == TEARS || strstr(log, line) != NULL;
        if (!named) {
            char path[4096];
            snprintf(path, sizeof path, "/proc/self/fd/%d/%s", at, own);
            remove_directory(path);
        } else if (entry.is_directory) {
            cut(at, own, log, how);
        } else {
            uint64_t sum;
            CHECK(cut_sum_of(at, own, &sum));
            snprintf(line, sizeof line, "F %s %llu %llx\n", entry.id, (unsigned long long)entry.bytes,
                     (unsigned long long)sum);
            int file = strstr(log, line) ? -1 : openat(at, own, O_WRONLY);
            if (file >= 0) {
                // The second half never came to the disk: the file is short, or has zeros there.
                CHECK_EQUAL(ftruncate(file, (off_t)entry.bytes / 2), 0);
                if (found->d_ino % 2 == 1) CHECK_EQUAL(ftruncate(file, (off_t)entry.bytes), 0);
                close(file);
            }
        }
    }
    closedir(list);
    close(at);
}

// Opens what is left, and checks that all of `stored` is there, or at least that nothing is wrong. Returns how many are there.
static size_t check_after(const char *directory, const uint8_t *stored, int all_there) {
    size_t hits = 0;
    enter(open_directory(directory, ""));
    for (uint32_t round = 0; round < ROUNDS_MAX; round++) {
        int any = 0;
        keys_of_round(round);
        for (size_t i = 0; i < COUNT; i++) any |= stored[1 + round * COUNT + i];
        if (!any) continue;
        kvkeep_prefetch_options options;
        KVKEEP_INIT(&options);
        options.mode = KVKEEP_PREFETCH_EACH;
        uint64_t job;
        OK(kvkeep_submit_prefetch(cache, session, keys, COUNT, &options, &job, NULL, NULL));
        OK(answer_of(cache, job).status);
        for (size_t i = 0; i < COUNT; i++) {
            kvkeep_view view;
            kvkeep_get_views(cache, session, &keys[i], 1, &view);
            int hit = view.status == KVKEEP_OK;
            if (hit) CHECK(holds(&keys[i], &view));
            if (stored[1 + round * COUNT + i]) {
                if (all_there) CHECK(hit);
                hits += (size_t)hit;
            }
            if (hit) OK(kvkeep_finish_read(cache, session, &keys[i], 1, 0, NULL));
        }
        OK(kvkeep_release_job(cache, job));
    }
    if (all_there) CHECK_EQUAL(stats_of(cache).corruptions, 0);
    leave();
    return hits;
}

static void test_cuts(const char *parameters, enum cut how, int all_there) {
    static uint8_t stored[ROUNDS_MAX * COUNT + 1];
    for (uint32_t cuts = 1; cuts <= CUTS; cuts++) {
        char *directory = new_directory();
        char log[4200];
        snprintf(log, sizeof log, "%s.log", directory);
        memset(stored, 0, sizeof stored);
        size_t count = go_and_kill(start(directory, parameters, 0, log), 29 * cuts, stored);
        char *text = text_of(log);
        cut(AT_FDCWD, directory, text, how);
        free(text);
        size_t hits = check_after(directory, stored, all_there);
        // Nothing was synced, so that everything is lost: the cut cuts.
        if (!all_there) CHECK(hits < count);
        unlink(log);
        remove_directory(directory);
    }
}

static void p8_a_power_cut_loses_nothing_stored(void) {
    test_cuts("&durability=power", LOSES, 1);
    test_cuts("&durability=power&engine=pool", LOSES, 1);
    test_cuts("&durability=power", TEARS, 1);
}

static void a_power_cut_may_lose_what_only_survives_a_crash_and_tears_nothing_unseen(void) {
    test_cuts("", LOSES, 0);
    test_cuts("&durability=crash&engine=pool", TEARS, 0);
}

// An object that another process stored without syncing it is synced before it is reported stored here.
static void p8_an_object_of_another_process_is_synced_too(void) {
    static uint8_t stored[ROUNDS_MAX * COUNT + 1];
    char *directory = new_directory();
    char log[4200];
    snprintf(log, sizeof log, "%s.log", directory);
    memset(stored, 0, sizeof stored);
    struct child child = start(directory, "&durability=power", 0, log);
    enter(open_directory(directory, ""));
    for (uint32_t round = 0; round < 8; round++) {
        keys_of_round(round);
        put(cache, space, keys, COUNT, SIZE);
    }
    OK(kvkeep_flush(cache, 60000));
    leave();
    go_and_kill(child, 8 * COUNT, stored);
    char *text = text_of(log);
    cut(AT_FDCWD, directory, text, LOSES);
    free(text);
    check_after(directory, stored, 1);
    unlink(log);
    remove_directory(directory);
}

static void p6_an_unknown_durability_is_an_error(void) {
    char url[] = "fs:///tmp/never-made?durability=disk";
    enter(open_l1(MIB));
    uint64_t backend = 0;
    FAILS(kvkeep_add_backend(cache, url, &backend), KVKEEP_ERR_INVALID, "durability");
    CHECK(strstr(kvkeep_last_error(), "\"disk\" is not crash or power") != NULL);
    leave();
}

int main(int argc, char **argv) {
    watchdog();
    program = argv[0];
    if (argc > 3) store_until_killed(argv[1], argv[2], (uint32_t)atoi(argv[3]));
    RUN(p8_a_power_cut_loses_nothing_stored);
    RUN(a_power_cut_may_lose_what_only_survives_a_crash_and_tears_nothing_unseen);
    RUN(p8_an_object_of_another_process_is_synced_too);
    RUN(p6_an_unknown_durability_is_an_error);
    return 0;
}
