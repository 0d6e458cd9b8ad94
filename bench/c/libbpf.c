/* The same loops over libbpf's functions instead of bpf(2): what a C program with libbpf-dev writes. */
#include "bpf.h"
#include <bpf/bpf.h>

int64_t lib_lookup(int fd, const uint64_t *keys, uint64_t *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (bpf_map_lookup_elem(fd, &keys[i], &values[i]))
            return -errno;
    return n;
}

int64_t lib_update(int fd, const uint64_t *keys, const uint64_t *values, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (bpf_map_update_elem(fd, &keys[i], &values[i], 0))
            return -errno;
    return n;
}

int64_t lib_delete(int fd, const uint64_t *keys, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        if (bpf_map_delete_elem(fd, &keys[i]))
            return -errno;
    return n;
}

/* All of them at once; stops where the kernel does. */
int64_t lib_put(int fd, const uint64_t *keys, const uint64_t *values, int64_t n)
{
    uint32_t count = n;

    return bpf_map_update_batch(fd, keys, values, &count, NULL) ? -errno : (int64_t)count;
}

/* The whole map, `chunk` entries a call, into arrays with room for `room`; `take`: and delete. */
int64_t lib_read(int fd, uint64_t *keys, uint64_t *values, int64_t room, uint32_t chunk, int take)
{
    uint64_t cursor = 0;
    int64_t done = 0;

    for (;;) {
        uint32_t count = room - done < chunk ? (uint32_t)(room - done) : chunk;
        int failed = (take ? bpf_map_lookup_and_delete_batch : bpf_map_lookup_batch)(
            fd, done ? &cursor : NULL, &cursor, keys + done, values + done, &count, NULL);
        if (failed && errno != ENOENT)
            return -errno;
        done += count;
        if (failed)
            return done;
    }
}

/* The same by one GET_NEXT_KEY and one LOOKUP for each entry. */
int64_t lib_walk(int fd, uint64_t *keys, uint64_t *values, int64_t room)
{
    int64_t n = 0;

    while (n < room && !bpf_map_get_next_key(fd, n ? &keys[n - 1] : NULL, &keys[n])) {
        if (bpf_map_lookup_elem(fd, &keys[n], &values[n]))
            return -errno;
        n++;
    }
    return n;
}
