// Stands between a program and libkvkeep, so that every cache the program opens is a daemon's, in a process of its own:
//
//     LD_PRELOAD=libdaemon_shim.so KVKEEP_COMMAND=/path/to/kvkeep program        for programs linked with libkvkeep.so
//     KVKEEP_LIBRARY=libdaemon_shim.so KVKEEP_COMMAND=/path/to/kvkeep program    for programs that load it by name
//
// kvkeep_open starts `kvkeep serve` with the same options and connects to it; kvkeep_close closes, then ends it. What the
// daemon refuses to start with is opened as it was asked for, so that the library itself says why it is refused.
#include <kvkeep.h>

#include "serve.h"

#include <dlfcn.h>
#include <pthread.h>

enum { DAEMONS_MAX = 256, STORES = 4 };

static struct {
    kvkeep *cache;
    pid_t pid;
    char directory[64];
} daemons[DAEMONS_MAX];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void add_number(struct command *command, const char *flag, uint64_t value) {
    char text[32];
    if (value == 0) return;
    snprintf(text, sizeof text, "%llu", (unsigned long long)value);
    add(command, flag, text);
}

static struct command command_of(const kvkeep_options *options, const char *directory) {
    static const char *const stores[STORES] = {"write-through", "write-back", "after-uses", "never"};
    struct command command = serve_command(directory, options->l1_bytes);
    for (size_t i = 0; i < options->backend_count; i++) add(&command, "--l2", options->backend_urls[i]);
    if (options->eviction_policy) add(&command, "--policy", options->eviction_policy);
    add(&command, "--store", stores[options->store_mode]);
    if (options->flags & KVKEEP_FLAG_NO_PREFAULT) add(&command, "--no-prefault", "true");
    if (options->flags & KVKEEP_FLAG_NO_CHECKSUM) add(&command, "--no-checksum", "true");
    add_number(&command, "--watermark-high-percent", options->watermark_high_percent);
    add_number(&command, "--watermark-low-percent", options->watermark_low_percent);
    add_number(&command, "--store-after-uses", options->store_after_uses);
    add_number(&command, "--backend-timeout-ms", options->backend_timeout_ms);
    add_number(&command, "--loading-bytes-max", options->loading_bytes_max);
    add_number(&command, "--writes-pending-max", options->writes_pending_max);
    add_number(&command, "--store-wait-ms", options->store_wait_ms);
    add_number(&command, "--sessions-max", options->sessions_max);
    add_number(&command, "--jobs-max", options->jobs_max);
    add_number(&command, "--session-timeout-ms", options->session_timeout_ms);
    return command;
}

static void remove_files(const char *directory) {
    static const char *const names[] = {"s", "s.lock", "n"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", directory, names[i]);
        unlink(path);
    }
    rmdir(directory);
}

static void end(pid_t pid, const char *directory) {
    kill(pid, SIGTERM);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR) {
    }
    remove_files(directory);
}

static void remember(kvkeep *cache, pid_t pid, const char *directory) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DAEMONS_MAX; i++) {
        if (daemons[i].pid != 0) continue;
        daemons[i].cache = cache;
        daemons[i].pid = pid;
        memcpy(daemons[i].directory, directory, sizeof daemons[i].directory);
        break;
    }
    pthread_mutex_unlock(&lock);
}

// Whether a daemon can be told these options.
static int can_serve(const kvkeep_options *options) {
    const uint32_t known = KVKEEP_FLAG_NO_PREFAULT | KVKEEP_FLAG_NO_CHECKSUM;
    if (!options || options->struct_size != sizeof *options || options->abi_version != KVKEEP_ABI_VERSION ||
        options->connect || options->listen || options->l1_bytes == 0 || options->store_mode >= STORES ||
        (options->flags & ~known) || options->reserved != 0 || options->log_level > KVKEEP_LOG_INFO ||
        (options->backend_count > 0 && !options->backend_urls) || !getenv("KVKEEP_COMMAND")) {
        return 0;
    }
    for (size_t i = 0; i < options->backend_count; i++) {
        if (!options->backend_urls[i]) return 0;
    }
    return 1;
}

// dlsym gives functions as data.
typedef kvkeep_status (*open_function)(const kvkeep_options *, kvkeep **);
typedef kvkeep_status (*close_function)(kvkeep *);

kvkeep_status kvkeep_open(const kvkeep_options *options, kvkeep **cache) {
    open_function next;
    *(void **)&next = dlsym(RTLD_NEXT, "kvkeep_open");
    if (!cache || !can_serve(options)) return next(options, cache);

    char directory[64] = "/tmp/kvkeep-shim-XXXXXX", url[128];
    if (!mkdtemp(directory)) abort();
    // On a busy machine an answer may be late, which none of these programs expects.
    snprintf(url, sizeof url, "unix://%s/s?patience_ms=600000", directory);
    struct command command = command_of(options, directory);
    pid_t pid = start_serving(&command, directory);
    if (!pid) {
        remove_files(directory);
        return next(options, cache);
    }
    kvkeep_options client;
    KVKEEP_INIT(&client);
    client.connect = url;
    client.flags = options->flags & KVKEEP_FLAG_NO_PREFAULT;
    client.session_timeout_ms = options->session_timeout_ms;
    client.log = options->log;
    client.log_userdata = options->log_userdata;
    client.log_level = options->log_level;
    kvkeep_status status = next(&client, cache);
    if (status == KVKEEP_OK) {
        remember(*cache, pid, directory);
    } else {
        end(pid, directory);
    }
    return status;
}

kvkeep_status kvkeep_close(kvkeep *cache) {
    close_function next;
    *(void **)&next = dlsym(RTLD_NEXT, "kvkeep_close");
    kvkeep_status status = next(cache);
    if (status != KVKEEP_OK || !cache) return status;
    pid_t pid = 0;
    char directory[64];
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DAEMONS_MAX; i++) {
        if (daemons[i].pid == 0 || daemons[i].cache != cache) continue;
        pid = daemons[i].pid;
        memcpy(directory, daemons[i].directory, sizeof directory);
        daemons[i].pid = 0;
    }
    pthread_mutex_unlock(&lock);
    if (pid) end(pid, directory);
    return status;
}
