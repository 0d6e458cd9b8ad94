/* Client requests to callgrind, as functions that Python can call: a part of its counts is what ran
 * between two of them. Without valgrind they do nothing, in some ten instructions. */
#include <valgrind/callgrind.h>

void mark_start(void);
void mark_zero(void);
void mark_dump(const char *name);

/* From here on everything is counted; before, it only runs, some ten times as fast. */
void mark_start(void)
{
    CALLGRIND_START_INSTRUMENTATION;
}

void mark_zero(void)
{
    CALLGRIND_ZERO_STATS;
}

/* Write what was counted since the last dump or zero, as a part with this name. */
void mark_dump(const char *name)
{
    CALLGRIND_DUMP_STATS_AT(name);
}
