// Plug-ins in shared libraries: the directory store of the examples, and what is no plug-in.
#include "below.h"

#include <dirent.h>

static char *directory;

static kvkeep *open_plugin(const char *parameters) {
    char url[5000];
    snprintf(url, sizeof url, "plugin:" DIRECTORY_PLUGIN "?directory=%s%s", directory, parameters);
    return open_l2(4 * MIB, url);
}

static int file_count(void) {
    int count = 0;
    DIR *entries = opendir(directory);
    CHECK(entries != NULL);
    for (struct dirent *entry; (entry = readdir(entries));) count += entry->d_name[0] != '.';
    closedir(entries);
    return count;
}

static void a_later_process_finds_what_a_plug_in_stored(void) {
    directory = new_directory();
    enter(open_plugin(""));
    put_below(cache, space, keys, COUNT, SIZE);
    CHECK_EQUAL(file_count(), COUNT);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).hit_chunks, COUNT);
    leave();
    enter(open_plugin("&threads=4&batch=3"));
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.hit_chunks, COUNT);
    CHECK_EQUAL(result.tier_keys[1], COUNT);
    // What is there is not written again.
    OK(kvkeep_end_session(cache, session));
    uint64_t removed;
    OK(kvkeep_clear(cache, space, 0, &removed));
    put(cache, space, keys, COUNT, SIZE);
    OK(kvkeep_flush(cache, 30000));
    kvkeep_stats stats = stats_of(cache);
    CHECK_EQUAL(stats.stores, 0);
    CHECK_EQUAL(stats.stores_already, COUNT);
    leave();
    remove_directory(directory);
}

static void a_space_is_forgotten(void) {
    directory = new_directory();
    enter(open_plugin(""));
    put(cache, open_space(cache, "another model"), keys, 3, SIZE);
    put_below(cache, space, keys, COUNT, SIZE);
    uint64_t removed;
    OK(kvkeep_forget_space(cache, space, &removed));
    OK(kvkeep_flush(cache, 30000));
    CHECK_EQUAL(file_count(), 3);
    CHECK_EQUAL(prefetch(KVKEEP_PREFETCH_PREFIX).lookup_chunks, 0);
    leave();
    remove_directory(directory);
}

static void p7_a_file_that_is_none_is_a_miss(void) {
    directory = new_directory();
    enter(open_plugin(""));
    put_below(cache, space, keys, COUNT, SIZE);
    DIR *entries = opendir(directory);
    CHECK(entries != NULL);
    for (struct dirent *entry; (entry = readdir(entries));) {
        char path[8192];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        FILE *file = fopen(path, "r+");
        CHECK(file != NULL && fputc('!', file) == '!');
        CHECK_EQUAL(fclose(file), 0);
    }
    closedir(entries);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, 0);
    CHECK(stats_of(cache).corruptions > 0);
    leave();
    remove_directory(directory);
}

static void a_library_that_is_no_plug_in_is_refused(void) {
    directory = new_directory();
    enter(open_l1(4 * MIB));
    uint64_t number = 77;
    FAILS(kvkeep_add_backend(cache, "plugin:/no/such/library.so", &number), KVKEEP_ERR_IO, "/no/such/library.so");
    FAILS(kvkeep_add_backend(cache, "plugin:" NO_PLUGIN, &number), KVKEEP_ERR_IO, "kvkeep_plugin");
    FAILS(kvkeep_add_backend(cache, "plugin:", &number), KVKEEP_ERR_INVALID, "names no library");
    FAILS(kvkeep_add_backend(cache, "plugin:" DIRECTORY_PLUGIN, &number), KVKEEP_ERR_IO, "no directory");
    FAILS(kvkeep_add_backend(cache, "plugin:" DIRECTORY_PLUGIN "?folder=/tmp", &number), KVKEEP_ERR_INVALID,
          "no parameter folder");
    FAILS(kvkeep_add_backend(cache, "plugin:" DIRECTORY_PLUGIN "?threads=many", &number), KVKEEP_ERR_INVALID,
          "threads");
    CHECK_EQUAL(number, 77);
    leave();
    remove_directory(directory);
}

static void faults_stand_before_a_plug_in_too(void) {
    directory = new_directory();
    char url[5000];
    snprintf(url, sizeof url, "fault:plugin:" DIRECTORY_PLUGIN "?directory=%s&fault.load_error=1", directory);
    enter(open_l2(4 * MIB, url));
    put_below(cache, space, keys, COUNT, SIZE);
    kvkeep_job_result result = prefetch(KVKEEP_PREFETCH_PREFIX);
    CHECK_EQUAL(result.lookup_chunks, COUNT);
    CHECK_EQUAL(result.hit_chunks, 0);
    leave();
    remove_directory(directory);
}

int main(void) {
    watchdog();
    RUN(a_later_process_finds_what_a_plug_in_stored);
    RUN(a_space_is_forgotten);
    RUN(p7_a_file_that_is_none_is_a_miss);
    RUN(a_library_that_is_no_plug_in_is_refused);
    RUN(faults_stand_before_a_plug_in_too);
    return 0;
}
