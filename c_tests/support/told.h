// Who is told that requests have ended, how often, and what of the last.
#ifndef TOLD_H
#define TOLD_H

#include "check.h"

#include <pthread.h>

struct told {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    int count;
    kvkeep_completion last;
};

#define NOBODY_TOLD {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, {.job = 0}}

// The callback, whose userdata is a struct told.
static inline void tell(void *userdata, const kvkeep_completion *completion) {
    struct told *told = userdata;
    pthread_mutex_lock(&told->mutex);
    told->count++;
    told->last = *completion;
    pthread_cond_broadcast(&told->changed);
    pthread_mutex_unlock(&told->mutex);
}

// Waits for the `count`th completion, which must not be followed by another.
static inline kvkeep_completion await_told(struct told *told, int count) {
    pthread_mutex_lock(&told->mutex);
    while (told->count < count) pthread_cond_wait(&told->changed, &told->mutex);
    CHECK_EQUAL(told->count, count);
    kvkeep_completion last = told->last;
    pthread_mutex_unlock(&told->mutex);
    return last;
}

#endif
