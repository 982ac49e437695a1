// `kvkeep serve` as a process of the test's: started, waited for as systemd does, ended.
#ifndef SERVE_H
#define SERVE_H

#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ARGUMENTS_MAX = 64, TEXT_MAX = 4096 };

struct command {
    char *arguments[ARGUMENTS_MAX];
    int count;
};

static inline void add(struct command *command, const char *flag, const char *value) {
    char text[TEXT_MAX];
    snprintf(text, sizeof text, "%s=%s", flag, value);
    if (command->count < ARGUMENTS_MAX - 1) command->arguments[command->count++] = strdup(text);
}

// `kvkeep serve` on `directory`/s; the caller adds what else it is told.
static inline struct command serve_command(const char *directory, uint64_t l1_bytes) {
    struct command command = {{0}, 0};
    char text[256];
    command.arguments[command.count++] = strdup(getenv("KVKEEP_COMMAND"));
    command.arguments[command.count++] = strdup("serve");
    snprintf(text, sizeof text, "%s/s", directory);
    add(&command, "--socket", text);
    add(&command, "--log", "error");
    snprintf(text, sizeof text, "%llu", (unsigned long long)l1_bytes);
    add(&command, "--l1", text);
    return command;
}

static inline pid_t spawn(const struct command *command, const char *notify) {
    pid_t parent = getpid();
    pid_t pid = fork();
    if (pid != 0) return pid;
    // Whatever becomes of the test, its daemon does not outlive it.
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    unsetenv("LD_PRELOAD");
    setenv("NOTIFY_SOCKET", notify, 1);
    execv(command->arguments[0], command->arguments);
    _exit(127);
}

// Waits until the daemon says that it is ready, as it says it to systemd. Not so if it has ended before.
static inline int serves(int notified, pid_t pid) {
    char message[256];
    for (;;) {
        ssize_t bytes = recv(notified, message, sizeof message - 1, 0);
        if (bytes > 0) {
            message[bytes] = 0;
            if (strstr(message, "READY=1")) return 1;
        } else if (waitpid(pid, NULL, WNOHANG) == pid) {
            return 0;
        }
    }
}

// Where readiness is told. Its short time to wait is for noticing a daemon that ended without a word.
static inline int open_notify(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {0, 20000};
    int length = snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int notified = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    setsockopt(notified, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (length >= (int)sizeof address.sun_path || bind(notified, (struct sockaddr *)&address, sizeof address) != 0) {
        perror("serve: bind");
        abort();
    }
    return notified;
}

// Starts it, in `directory`. 0 if it ended before it was ready.
static inline pid_t start_serving(struct command *command, const char *directory) {
    char notify[TEXT_MAX];
    snprintf(notify, sizeof notify, "%s/n", directory);
    unlink(notify);
    int notified = open_notify(notify);
    pid_t pid = spawn(command, notify);
    int ready = serves(notified, pid);
    close(notified);
    for (int i = 0; i < command->count; i++) free(command->arguments[i]);
    return ready ? pid : 0;
}

#endif
