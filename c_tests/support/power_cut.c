// Notes, for a program that it is loaded into before the C library, what its disk would have kept: each file and directory that was
// synced, as it was then, in the file that POWER_CUT_LOG names. The lines:
//   F <file> <bytes> <sum>             the bytes of a file
//   N <directory> <name> <entry>       a name in a directory
// Files, directories and entries are named by inode and birth, since inodes are used again.
#include "power_cut.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

enum { LOG_MAX = 1 << 20 };

struct noted {
    char *text;
    size_t length;
};

static void note(struct noted *noted, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(noted->text + noted->length, LOG_MAX - noted->length, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= LOG_MAX - noted->length) abort();
    noted->length += (size_t)length;
}

// As it is before the call: that is there when the call has succeeded.
static void look_at(int fd, struct noted *noted) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    struct cut_entry entry;
    if (!cut_entry_of(AT_FDCWD, path, 0, &entry)) return;
    DIR *directory = entry.is_directory ? opendir(path) : NULL;
    if (!directory) {
        uint64_t sum;
        if (cut_sum_of(AT_FDCWD, path, &sum)) {
            note(noted, "F %s %llu %llx\n", entry.id, (unsigned long long)entry.bytes, (unsigned long long)sum);
        }
        return;
    }
    for (struct dirent *found; (found = readdir(directory));) {
        struct cut_entry named;
        if (found->d_name[0] != '.' && cut_entry_of(dirfd(directory), found->d_name, AT_SYMLINK_NOFOLLOW, &named)) {
            note(noted, "N %s %s %s\n", entry.id, found->d_name, named.id);
        }
    }
    closedir(directory);
}

static int synced(const char *name, int fd) {
    int (*sync)(int) = (int (*)(int))(uintptr_t)dlsym(RTLD_NEXT, name);
    struct noted noted = {malloc(LOG_MAX), 0};
    if (!sync || !noted.text) abort();
    look_at(fd, &noted);
    int result = sync(fd);
    const char *log = getenv("POWER_CUT_LOG");
    if (result == 0 && log) {
        int to = open(log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        if (to < 0 || write(to, noted.text, noted.length) != (ssize_t)noted.length) abort();
        close(to);
    }
    free(noted.text);
    return result;
}

int fsync(int fd) {
    return synced("fsync", fd);
}

int fdatasync(int fd) {
    return synced("fdatasync", fd);
}
