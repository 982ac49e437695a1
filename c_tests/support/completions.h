// The completions that a callback was called with: their number, and the last one.
#ifndef COMPLETIONS_H
#define COMPLETIONS_H

#include "check.h"

#include <pthread.h>

struct completions {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int count;
    kvkeep_completion last;
};

#define NO_COMPLETIONS {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, {.job = 0}}

// The callback, whose userdata is a struct completions.
static inline void note_completion(void *userdata, const kvkeep_completion *completion) {
    struct completions *completions = userdata;
    pthread_mutex_lock(&completions->mutex);
    completions->count++;
    completions->last = *completion;
    pthread_cond_broadcast(&completions->changed);
    pthread_mutex_unlock(&completions->mutex);
}

// Waits for the `count`th completion, which must not be followed by another.
static inline kvkeep_completion await_completions(struct completions *completions, int count) {
    pthread_mutex_lock(&completions->mutex);
    while (completions->count < count) pthread_cond_wait(&completions->changed, &completions->mutex);
    CHECK_EQUAL(completions->count, count);
    kvkeep_completion last = completions->last;
    pthread_mutex_unlock(&completions->mutex);
    return last;
}

#endif
