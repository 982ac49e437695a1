// The second unit: what the header defines twice would not link.
#include <kvkeep.h>

const char *version_in_unit_two(void);

const char *version_in_unit_two(void) {
    return kvkeep_version();
}
