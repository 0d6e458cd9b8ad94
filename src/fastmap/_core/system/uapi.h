/*
 * The part of the kernel's ABI that fastmap uses: attr structs, constants, inline system calls.
 *
 * Deliberately not <linux/bpf.h>: the header of a distribution is older than the kernels it runs
 * on. tests/test_uapi.py holds every struct here against the BTF of the running kernel. Every
 * function returns a result >= 0 or -errno, and touches neither errno's readers nor Python.
 */
#ifndef FASTMAP_UAPI_H
#define FASTMAP_UAPI_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <pthread.h>

enum {
    FM_MAP_CREATE = 0,
    FM_MAP_LOOKUP_ELEM = 1,
    FM_MAP_UPDATE_ELEM = 2,
    FM_MAP_DELETE_ELEM = 3,
    FM_MAP_GET_NEXT_KEY = 4,
    FM_PROG_LOAD = 5,
    FM_OBJ_PIN = 6,
    FM_OBJ_GET = 7,
    FM_PROG_TEST_RUN = 10,
    FM_PROG_GET_NEXT_ID = 11,
    FM_MAP_GET_NEXT_ID = 12,
    FM_PROG_GET_FD_BY_ID = 13,
    FM_MAP_GET_FD_BY_ID = 14,
    FM_OBJ_GET_INFO_BY_FD = 15,
    FM_RAW_TRACEPOINT_OPEN = 17,
    FM_BTF_LOAD = 18,
    FM_BTF_GET_FD_BY_ID = 19,
    FM_MAP_LOOKUP_AND_DELETE_ELEM = 21,
    FM_MAP_FREEZE = 22,
    FM_MAP_LOOKUP_BATCH = 24,
    FM_MAP_LOOKUP_AND_DELETE_BATCH = 25,
    FM_MAP_UPDATE_BATCH = 26,
    FM_MAP_DELETE_BATCH = 27,
    FM_PROG_BIND_MAP = 35,
    FM_TOKEN_CREATE = 36,
};

/* Each command's own slice of union bpf_attr; what a command does not name is zero. */
struct fm_map_create {
    uint32_t map_type;
    uint32_t key_size;
    uint32_t value_size;
    uint32_t max_entries;
    uint32_t map_flags;
    uint32_t inner_map_fd;
    uint32_t numa_node;
    char map_name[16];
    uint32_t map_ifindex;
    uint32_t btf_fd;
    uint32_t btf_key_type_id;
    uint32_t btf_value_type_id;
    uint32_t btf_vmlinux_value_type_id;
    uint64_t map_extra;
    uint32_t value_type_btf_obj_fd;
    uint32_t map_token_fd;
};

struct fm_map_elem {
    uint32_t map_fd;
    uint32_t unused;
    uint64_t key;
    uint64_t value; /* next_key of BPF_MAP_GET_NEXT_KEY */
    uint64_t flags;
};

struct fm_map_batch {
    uint64_t in_batch;
    uint64_t out_batch;
    uint64_t keys;
    uint64_t values;
    uint32_t count;
    uint32_t map_fd;
    uint64_t elem_flags;
    uint64_t flags;
};

struct fm_prog_load {
    uint32_t prog_type;
    uint32_t insn_cnt;
    uint64_t insns;
    uint64_t license;
    uint32_t log_level;
    uint32_t log_size;
    uint64_t log_buf;
    uint32_t kern_version;
    uint32_t prog_flags;
    char prog_name[16];
    uint32_t prog_ifindex;
    uint32_t expected_attach_type;
    uint32_t prog_btf_fd;
    uint32_t func_info_rec_size;
    uint64_t func_info;
    uint32_t func_info_cnt;
    uint32_t line_info_rec_size;
    uint64_t line_info;
    uint32_t line_info_cnt;
    uint32_t attach_btf_id;
};

struct fm_test_run {
    uint32_t prog_fd;
    uint32_t retval;
    uint32_t data_size_in;
    uint32_t data_size_out;
    uint64_t data_in;
    uint64_t data_out;
    uint32_t repeat;
    uint32_t duration;
    uint32_t ctx_size_in;
    uint32_t ctx_size_out;
    uint64_t ctx_in;
    uint64_t ctx_out;
    uint32_t flags;
    uint32_t cpu;
    uint32_t batch_size;
    uint32_t unused;
};

struct fm_obj {
    uint64_t pathname;
    uint32_t bpf_fd;
    uint32_t file_flags;
};

struct fm_get_id {
    uint32_t id; /* start_id, map_id, prog_id, btf_id */
    uint32_t next_id;
    uint32_t open_flags;
};

struct fm_info {
    uint32_t bpf_fd;
    uint32_t info_len;
    uint64_t info;
};

struct fm_raw_tracepoint {
    uint64_t name;
    uint32_t prog_fd;
    uint32_t unused;
};

struct fm_btf_load {
    uint64_t btf;
    uint64_t btf_log_buf;
    uint32_t btf_size;
    uint32_t btf_log_size;
    uint32_t btf_log_level;
    uint32_t btf_log_true_size;
    uint32_t btf_flags;
    uint32_t btf_token_fd;
};

struct fm_bind_map {
    uint32_t prog_fd;
    uint32_t map_fd;
    uint32_t flags;
};

struct fm_token_create {
    uint32_t flags;
    uint32_t bpffs_fd;
};

struct fm_map_info {
    uint32_t type;
    uint32_t id;
    uint32_t key_size;
    uint32_t value_size;
    uint32_t max_entries;
    uint32_t map_flags;
    char name[16];
    uint32_t ifindex;
    uint32_t btf_vmlinux_value_type_id;
    uint64_t netns_dev;
    uint64_t netns_ino;
    uint32_t btf_id;
    uint32_t btf_key_type_id;
    uint32_t btf_value_type_id;
    uint32_t btf_vmlinux_id;
    uint64_t map_extra;
};

struct fm_prog_info {
    uint32_t type;
    uint32_t id;
    uint8_t tag[8];
    uint32_t jited_prog_len;
    uint32_t xlated_prog_len;
    uint64_t jited_prog_insns;
    uint64_t xlated_prog_insns;
    uint64_t load_time;
    uint32_t created_by_uid;
    uint32_t nr_map_ids;
    uint64_t map_ids;
    char name[16];
    uint32_t ifindex;
    uint32_t gpl_compatible; /* the lowest bit */
    uint64_t netns_dev;
    uint64_t netns_ino;
    uint32_t nr_jited_ksyms;
    uint32_t nr_jited_func_lens;
    uint64_t jited_ksyms;
    uint64_t jited_func_lens;
    uint32_t btf_id;
    uint32_t func_info_rec_size;
    uint64_t func_info;
    uint32_t nr_func_info;
    uint32_t nr_line_info;
    uint64_t line_info;
    uint64_t jited_line_info;
    uint32_t nr_jited_line_info;
    uint32_t line_info_rec_size;
    uint32_t jited_line_info_rec_size;
    uint32_t nr_prog_tags;
    uint64_t prog_tags;
    uint64_t run_time_ns;
    uint64_t run_cnt;
    uint64_t recursion_misses;
    uint32_t verified_insns;
    uint32_t attach_btf_obj_id;
    uint32_t attach_btf_id;
};

struct fm_btf_info {
    uint64_t btf;
    uint32_t btf_size;
    uint32_t id;
    uint64_t name;
    uint32_t name_len;
    uint32_t kernel_btf;
};

_Static_assert(sizeof(struct fm_map_create) == 80, "BPF_MAP_CREATE");
_Static_assert(offsetof(struct fm_map_create, map_name) == 28, "BPF_MAP_CREATE name");
_Static_assert(offsetof(struct fm_map_create, map_extra) == 64, "BPF_MAP_CREATE map_extra");
_Static_assert(sizeof(struct fm_map_elem) == 32, "BPF_MAP_*_ELEM");
_Static_assert(sizeof(struct fm_map_batch) == 56, "BPF_MAP_*_BATCH");
_Static_assert(offsetof(struct fm_prog_load, func_info) == 80, "BPF_PROG_LOAD func_info");
_Static_assert(offsetof(struct fm_prog_load, attach_btf_id) == 108, "BPF_PROG_LOAD attach_btf_id");
_Static_assert(offsetof(struct fm_test_run, batch_size) == 72, "BPF_PROG_TEST_RUN");
_Static_assert(sizeof(struct fm_obj) == 16, "BPF_OBJ_PIN");
_Static_assert(sizeof(struct fm_get_id) == 12, "BPF_*_GET_FD_BY_ID");
_Static_assert(sizeof(struct fm_info) == 16, "BPF_OBJ_GET_INFO_BY_FD");
_Static_assert(offsetof(struct fm_btf_load, btf_log_level) == 24, "BPF_BTF_LOAD");
_Static_assert(sizeof(struct fm_map_info) == 88, "struct bpf_map_info");
_Static_assert(offsetof(struct fm_map_info, btf_id) == 64, "struct bpf_map_info btf_id");
_Static_assert(offsetof(struct fm_btf_load, btf_token_fd) == 36, "BPF_BTF_LOAD token");
_Static_assert(sizeof(struct fm_bind_map) == 12, "BPF_PROG_BIND_MAP");
_Static_assert(sizeof(struct fm_token_create) == 8, "BPF_TOKEN_CREATE");
_Static_assert(offsetof(struct fm_prog_info, name) == 64, "struct bpf_prog_info name");
_Static_assert(offsetof(struct fm_prog_info, btf_id) == 128, "struct bpf_prog_info btf_id");
_Static_assert(offsetof(struct fm_prog_info, run_time_ns) == 192, "struct bpf_prog_info run_time_ns");
_Static_assert(sizeof(struct fm_prog_info) == 232, "struct bpf_prog_info");
_Static_assert(sizeof(struct fm_btf_info) == 32, "struct bpf_btf_info");

static inline uint64_t fm_ptr(const void *pointer)
{
    return (uint64_t)(uintptr_t)pointer;
}

static inline long fm_bpf(int command, void *attr, unsigned int size)
{
    long result = syscall(SYS_bpf, command, attr, size);
    return result < 0 ? -errno : result;
}

static inline long fm_elem(int command, int fd, const void *key, void *value, uint64_t flags)
{
    struct fm_map_elem attr = {
        .map_fd = (uint32_t)fd, .key = fm_ptr(key), .value = fm_ptr(value), .flags = flags};
    return fm_bpf(command, &attr, sizeof attr);
}

/* *count: entries offered; on return, entries done (also with an error). */
static inline long fm_batch(int command, int fd, void *in_cursor, void *out_cursor, void *keys,
                            void *values, uint32_t *count, uint64_t elem_flags)
{
    struct fm_map_batch attr = {
        .in_batch = fm_ptr(in_cursor), .out_batch = fm_ptr(out_cursor),
        .keys = fm_ptr(keys), .values = fm_ptr(values), .count = *count,
        .map_fd = (uint32_t)fd, .elem_flags = elem_flags};
    long result = fm_bpf(command, &attr, sizeof attr);
    *count = attr.count;
    return result;
}

static inline uint64_t fm_monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* What both sides of a ring see. */
static inline uint32_t fm_load32(const uint32_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline uint64_t fm_load64(const uint64_t *p)
{
    return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}

static inline void fm_store32(uint32_t *p, uint32_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* What was loaded before stays before what is loaded after. */
static inline void fm_acquire(void)
{
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
}

static inline void fm_store64(uint64_t *p, uint64_t value)
{
    __atomic_store_n(p, value, __ATOMIC_RELEASE);
}

/* When a wait of so many seconds ends; 0 where it never does. */
static inline uint64_t fm_deadline(double seconds)
{
    return seconds < 0 ? 0 : fm_monotonic_ns() + (uint64_t)(seconds * 1e9);
}

/* How long a wait may sleep, in ms: 0 once it is over, and never more than 50, for no event ever
 * comes for the records of producers that wake nobody up. */
static inline int fm_nap_ms(uint64_t deadline)
{
    uint64_t now = deadline ? fm_monotonic_ns() : 0;
    if (!deadline || deadline > now + 50000000)
        return 50;
    return deadline <= now ? 0 : (int)((deadline - now + 999999) / 1000000);
}

#endif
