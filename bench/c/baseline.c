/* What a good C programmer writes over bpf(2): the yardstick fastmap is held against.
 *
 * Each function returns how many entries it processed, or -errno. All buffers belong to the caller,
 * who has touched every page of them: C at its best, with nothing to allocate and nothing to fault. */
#include "bpf.h"
#include <sys/mman.h>

int64_t create_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t max_entries)
{
    struct create_attr attr = {
        .map_type = type,
        .key_size = key_size,
        .value_size = value_size,
        .max_entries = max_entries,
    };
    return sys_bpf(CMD_MAP_CREATE, &attr, sizeof attr);
}

/* ---- element commands ------------------------------------------------------------------------ */

/* Look the keys up into rows of `values`; a missing key leaves its row and is not counted. */
int64_t lookup_loop(int fd, const char *keys, size_t key_size, char *values, size_t value_size,
                    int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};
    int64_t found = 0;

    for (int64_t i = 0; i < n; i++) {
        attr.key = ptr(keys + (size_t)i * key_size);
        attr.value = ptr(values + (size_t)i * value_size);
        long ret = sys_bpf(CMD_LOOKUP_ELEM, &attr, sizeof attr);
        if (ret == 0)
            found++;
        else if (ret != -ENOENT)
            return ret;
    }
    return found;
}

/* One value at a time, as a program that uses each value at once: `nkeys` keys in turn, `n` lookups
 * in all. With nkeys 1 the key is hot. */
int64_t lookup_each(int fd, const char *keys, size_t key_size, int64_t nkeys, char *value, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd, .value = ptr(value)};
    const char *key = keys, *end = keys + (size_t)nkeys * key_size;
    int64_t found = 0;

    for (int64_t i = 0; i < n; i++) {
        attr.key = ptr(key);
        long ret = sys_bpf(CMD_LOOKUP_ELEM, &attr, sizeof attr);
        if (ret == 0)
            found++;
        else if (ret != -ENOENT)
            return ret;
        key += key_size;
        if (key == end)
            key = keys;
    }
    return found;
}

int64_t update_loop(int fd, const char *keys, size_t key_size, const char *values,
                    size_t value_size, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};

    for (int64_t i = 0; i < n; i++) {
        attr.key = ptr(keys + (size_t)i * key_size);
        attr.value = ptr(values + (size_t)i * value_size);
        long ret = sys_bpf(CMD_UPDATE_ELEM, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    return n;
}

int64_t delete_loop(int fd, const char *keys, size_t key_size, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};
    int64_t deleted = 0;

    for (int64_t i = 0; i < n; i++) {
        attr.key = ptr(keys + (size_t)i * key_size);
        long ret = sys_bpf(CMD_DELETE_ELEM, &attr, sizeof attr);
        if (ret == 0)
            deleted++;
        else if (ret != -ENOENT)
            return ret;
    }
    return deleted;
}

/* Push all values to a queue, then pop them into `out`; counts the popped. */
int64_t queue_round(int fd, const char *values, char *out, size_t value_size, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};

    for (int64_t i = 0; i < n; i++) {
        attr.value = ptr(values + (size_t)i * value_size);
        long ret = sys_bpf(CMD_UPDATE_ELEM, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    for (int64_t i = 0; i < n; i++) {
        attr.value = ptr(out + (size_t)i * value_size);
        long ret = sys_bpf(CMD_LOOKUP_AND_DELETE_ELEM, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    return n;
}

int64_t push_loop(int fd, const char *values, size_t value_size, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};

    for (int64_t i = 0; i < n; i++) {
        attr.value = ptr(values + (size_t)i * value_size);
        long ret = sys_bpf(CMD_UPDATE_ELEM, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    return n;
}

int64_t pop_loop(int fd, char *values, size_t value_size, int64_t n)
{
    struct elem_attr attr = {.map_fd = (uint32_t)fd};

    for (int64_t i = 0; i < n; i++) {
        attr.value = ptr(values + (size_t)i * value_size);
        long ret = sys_bpf(CMD_LOOKUP_AND_DELETE_ELEM, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    return n;
}

/* ---- batch commands -------------------------------------------------------------------------- */

/* Where a walk over a whole map stands. A hash cursor is 4 bytes, an array's is its key. */
struct walk {
    struct batch_attr attr;
    uint64_t cursor;
    uint32_t chunk;
};

static void walk_start(struct walk *walk, int fd, uint32_t chunk)
{
    memset(walk, 0, sizeof *walk);
    walk->attr.map_fd = (uint32_t)fd;
    walk->attr.out_batch = ptr(&walk->cursor);
    walk->chunk = chunk;
}

/* One more batch, of at most `room` entries. Returns 0 to go on, 1 at the end, or -errno; attr.count
 * says how many entries came, at the end too. A bucket that does not fit doubles the chunk. */
static long walk_next(struct walk *walk, int cmd, char *keys, char *values, uint64_t room)
{
    for (;;) {
        uint32_t count = walk->chunk < room ? walk->chunk : (uint32_t)room;
        if (count == 0)
            return -ENOSPC; /* count 0 succeeds without moving: it would walk for ever */
        walk->attr.keys = ptr(keys);
        walk->attr.values = ptr(values);
        walk->attr.count = count;
        long ret = sys_bpf(cmd, &walk->attr, sizeof walk->attr);
        if (ret == 0 || ret == -ENOSPC)
            walk->attr.in_batch = ptr(&walk->cursor);
        if (ret == 0)
            return 0;
        if (ret == -ENOENT)
            return 1;
        if (ret != -ENOSPC || count == room)
            return ret;
        walk->chunk *= 2;
    }
}

/* The whole map by LOOKUP_BATCH, or drained by LOOKUP_AND_DELETE_BATCH, into contiguous rows. */
int64_t read_batch(int drain, int fd, char *keys, size_t key_size, char *values, size_t value_size,
                   uint64_t capacity, uint32_t chunk)
{
    int cmd = drain ? CMD_LOOKUP_AND_DELETE_BATCH : CMD_LOOKUP_BATCH;
    struct walk walk;
    uint64_t total = 0;
    long ret;

    walk_start(&walk, fd, chunk);
    do {
        ret = walk_next(&walk, cmd, keys + total * key_size, values + total * value_size,
                        capacity - total);
        if (ret < 0)
            return ret;
        total += walk.attr.count;
    } while (ret == 0);
    return (int64_t)total;
}

/* A per-CPU map of one u64: every CPU's values of a chunk go into `scratch` (room for `scratch_rows`
 * entries) and are summed while they are still in the cache. */
int64_t percpu_sum(int fd, char *keys, size_t key_size, uint64_t *sums, uint64_t capacity,
                   uint64_t *scratch, uint64_t scratch_rows, uint32_t cpus, uint32_t chunk)
{
    struct walk walk;
    uint64_t total = 0;
    long ret;

    walk_start(&walk, fd, chunk);
    do {
        uint64_t room = capacity - total;
        ret = walk_next(&walk, CMD_LOOKUP_BATCH, keys + total * key_size, (char *)scratch,
                        room < scratch_rows ? room : scratch_rows);
        if (ret < 0)
            return ret;
        const uint64_t *row = scratch;
        for (uint32_t i = 0; i < walk.attr.count; i++) {
            uint64_t sum = 0;
            for (uint32_t cpu = 0; cpu < cpus; cpu++)
                sum += *row++;
            sums[total + i] = sum;
        }
        total += walk.attr.count;
    } while (ret == 0);
    return (int64_t)total;
}

int64_t update_batch(int fd, const char *keys, size_t key_size, const char *values,
                     size_t value_size, uint64_t n, uint32_t chunk)
{
    struct batch_attr attr = {.map_fd = (uint32_t)fd};

    for (uint64_t done = 0; done < n; done += attr.count) {
        attr.keys = ptr(keys + done * key_size);
        attr.values = ptr(values + done * value_size);
        attr.count = n - done < chunk ? (uint32_t)(n - done) : chunk;
        long ret = sys_bpf(CMD_UPDATE_BATCH, &attr, sizeof attr);
        if (ret != 0)
            return ret;
    }
    return (int64_t)n;
}

/* DELETE_BATCH stops at the first missing key: it is stepped over, and not counted. */
int64_t delete_batch(int fd, const char *keys, size_t key_size, uint64_t n, uint32_t chunk)
{
    struct batch_attr attr = {.map_fd = (uint32_t)fd};
    uint64_t at = 0;
    int64_t deleted = 0;

    while (at < n) {
        attr.keys = ptr(keys + at * key_size);
        attr.count = n - at < chunk ? (uint32_t)(n - at) : chunk;
        long ret = sys_bpf(CMD_DELETE_BATCH, &attr, sizeof attr);
        if (ret != 0 && ret != -ENOENT)
            return ret;
        deleted += attr.count;
        at += attr.count + (ret == -ENOENT);
    }
    return deleted;
}

/* Every value of a map of u64, added to *total: each chunk goes to the same `room` rows, and is added
 * up while it is still in the cache. */
int64_t batch_total(int fd, char *keys, uint64_t *values, uint64_t room, uint32_t chunk,
                    uint64_t *total)
{
    struct walk walk;
    uint64_t sum = 0;
    int64_t n = 0;
    long ret;

    walk_start(&walk, fd, chunk);
    do {
        ret = walk_next(&walk, CMD_LOOKUP_BATCH, keys, (char *)values, room);
        if (ret < 0)
            return ret;
        for (uint32_t i = 0; i < walk.attr.count; i++)
            sum += values[i];
        n += walk.attr.count;
    } while (ret == 0);
    *total = sum;
    return n;
}

/* ---- an array's own memory ------------------------------------------------------------------- */

/* The memory of an mmapable array, or -errno. */
int64_t array_map(int fd, uint64_t bytes)
{
    void *view = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return view == MAP_FAILED ? -errno : (int64_t)(intptr_t)view;
}

int64_t array_unmap(void *view, uint64_t bytes)
{
    return munmap(view, bytes) ? -errno : 0;
}

int64_t array_total(const uint64_t *view, int64_t n, uint64_t *total)
{
    uint64_t sum = 0;

    for (int64_t i = 0; i < n; i++)
        sum += view[i];
    *total = sum;
    return n;
}

/* `n` u64 from or to the array's memory. */
int64_t array_copy(uint64_t *to, const uint64_t *from, int64_t n)
{
    memcpy(to, from, (size_t)n * sizeof *to);
    return n;
}
