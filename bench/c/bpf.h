/* The few parts of bpf(2) that the baselines need, declared here: the system's linux/bpf.h may be
 * older than the kernel it runs on. Layouts are those of union bpf_attr. */
#ifndef BENCH_BPF_H
#define BENCH_BPF_H

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
    CMD_MAP_CREATE = 0,
    CMD_LOOKUP_ELEM = 1,
    CMD_UPDATE_ELEM = 2,
    CMD_DELETE_ELEM = 3,
    CMD_LOOKUP_AND_DELETE_ELEM = 21,
    CMD_LOOKUP_BATCH = 24,
    CMD_LOOKUP_AND_DELETE_BATCH = 25,
    CMD_UPDATE_BATCH = 26,
    CMD_DELETE_BATCH = 27,
};

struct create_attr {
    uint32_t map_type, key_size, value_size, max_entries, map_flags;
    uint32_t rest[13];
};

struct elem_attr {
    uint32_t map_fd, pad;
    uint64_t key, value, flags;
};

struct batch_attr {
    uint64_t in_batch, out_batch, keys, values;
    uint32_t count, map_fd;
    uint64_t elem_flags, flags;
};

_Static_assert(sizeof(struct create_attr) == 72, "MAP_CREATE layout");
_Static_assert(sizeof(struct elem_attr) == 32, "*_ELEM layout");
_Static_assert(sizeof(struct batch_attr) == 56, "*_BATCH layout");

/* 0 or a descriptor, or -errno. */
static inline long sys_bpf(int cmd, void *attr, unsigned size)
{
    long ret = syscall(SYS_bpf, cmd, attr, size);
    return ret < 0 ? -errno : ret;
}

static inline uint64_t ptr(const void *p)
{
    return (uint64_t)(uintptr_t)p;
}

#endif
