// The least that an engine does: open, store, read, close.
#include <kvkeep.h>

#include <stdio.h>

int main(void) {
    kvkeep_options options;
    kvkeep_space_options space_options;
    kvkeep *cache;
    uint64_t space, session, size = 8;
    kvkeep_key key;
    kvkeep_view view;
    KVKEEP_INIT(&options);
    KVKEEP_INIT(&space_options);
    memset(&key, 1, sizeof key);
    options.l1_bytes = 1 << 20;
    space_options.model = "model";
    if (kvkeep_open(&options, &cache) != KVKEEP_OK) return 1;
    if (kvkeep_open_space(cache, &space_options, &space) != KVKEEP_OK) return 2;
    if (kvkeep_begin_session(cache, space, NULL, &session) != KVKEEP_OK) return 3;
    if (kvkeep_reserve_write(cache, session, &key, 1, &size, KVKEEP_LIFETIME_CACHED, &view) != KVKEEP_OK) return 4;
    memcpy(view.data, "kvkeeps!", 8);
    if (kvkeep_finish_write_and_reserve_read(cache, session, &key, 1, 0, &view) != KVKEEP_OK) return 5;
    if (memcmp(view.data, "kvkeeps!", 8) != 0) return 6;
    if (kvkeep_end_session(cache, session) != KVKEEP_OK || kvkeep_close(cache) != KVKEEP_OK) return 7;
    printf("kvkeep %s works here\n", kvkeep_version());
    return 0;
}
