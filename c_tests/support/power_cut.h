// What a file or directory is, for the library that notes what was synced and for the test that takes the rest away.
#ifndef POWER_CUT_H
#define POWER_CUT_H

#include <dirent.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct cut_entry {
    char id[64];
    int is_directory;
    uint64_t bytes;
};

static inline int cut_entry_of(int at, const char *path, int flags, struct cut_entry *entry) {
    struct statx found;
    if (statx(at, path, flags, STATX_BASIC_STATS | STATX_BTIME, &found) != 0) return 0;
    snprintf(entry->id, sizeof entry->id, "%llu.%lld.%u", (unsigned long long)found.stx_ino,
             (long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
    entry->is_directory = S_ISDIR(found.stx_mode);
    entry->bytes = found.stx_size;
    return 1;
}

static inline int cut_sum_of(int at, const char *path, uint64_t *sum) {
    int file = openat(at, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    *sum = 14695981039346656037u;
    uint8_t bytes[4096];
    ssize_t count;
    while ((count = read(file, bytes, sizeof bytes)) > 0) {
        for (ssize_t i = 0; i < count; i++) *sum = (*sum ^ bytes[i]) * 1099511628211u;
    }
    close(file);
    return count == 0;
}

#endif
