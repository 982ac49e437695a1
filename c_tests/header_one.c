// The header in the strictest dialects, included twice, in the first of two units of one program.
#include <kvkeep.h>
#include <kvkeep.h>

const char *version_in_unit_two(void);

int main(void) {
    kvkeep_options options;
    kvkeep_stats stats;
    KVKEEP_INIT(&options);
    KVKEEP_INIT(&stats);
    if (options.struct_size != sizeof options || stats.abi_version != kvkeep_abi_version()) return 1;
    if (KVKEEP_ERR_INVALID >= 0 || KVKEEP_PARTIAL != 2 || KVKEEP_KEYS_MAX != 1048576) return 2;
    return strcmp(version_in_unit_two(), KVKEEP_VERSION) == 0 ? 0 : 3;
}
