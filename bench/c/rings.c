/* What a good C programmer writes over the pages of a ring buffer, and over libbpf: the yardstick for
 * fastmap's streams. Records have 32 bytes and begin with a u64, which is summed. */
#include "bpf.h"
#include <stdlib.h>
#include <sys/mman.h>

#define BUSY (1u << 31)
#define DISCARD (1u << 30)

struct ring {
    uint64_t *consumer, *producer;
    char *data;
    uint64_t mask;
};

struct record {
    uint64_t n, x, y, z;
};

/* A ring's two mappings; `user` for a USER_RINGBUF, whose other side is writable. A pointer, or -errno. */
int64_t ring_open(int fd, uint64_t size, int user)
{
    struct ring *r = malloc(sizeof *r);
    char *first = mmap(NULL, 4096, PROT_READ | (user ? 0 : PROT_WRITE), MAP_SHARED, fd, 0);
    char *rest = mmap(NULL, 4096 + 2 * size, PROT_READ | (user ? PROT_WRITE : 0), MAP_SHARED, fd, 4096);
    if (!r || first == MAP_FAILED || rest == MAP_FAILED)
        return -errno;
    *r = (struct ring){(uint64_t *)first, (uint64_t *)rest, rest + 4096, size - 1};
    return (int64_t)(intptr_t)r;
}

int64_t ring_close(struct ring *r)
{
    munmap(r->consumer, 4096);
    munmap(r->producer, 4096 + 2 * (r->mask + 1));
    free(r);
    return 0;
}

/* Walk all records, as libbpf's loop does, without a callback; add them to *sum. */
int64_t ring_walk(struct ring *r, uint64_t *sum)
{
    uint64_t position = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
    uint64_t end = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE), total = 0;
    int64_t n = 0;

    while (position < end) {
        char *at = r->data + (position & r->mask);
        uint32_t header = __atomic_load_n((uint32_t *)at, __ATOMIC_ACQUIRE);
        if (header & BUSY)
            break;
        position += ((header & ~(BUSY | DISCARD)) + 15) & ~7ull;
        if (!(header & DISCARD)) {
            total += ((struct record *)(at + 8))->n;
            n++;
        }
        __atomic_store_n(r->consumer, position, __ATOMIC_RELEASE);
    }
    *sum = total;
    return n;
}

/* Reserve, fill and submit one record after the other. */
int64_t user_loop(struct ring *r, const struct record *records, int64_t n)
{
    int64_t i;

    for (i = 0; i < n; i++) {
        uint64_t consumed = __atomic_load_n(r->consumer, __ATOMIC_ACQUIRE);
        uint64_t produced = __atomic_load_n(r->producer, __ATOMIC_ACQUIRE);
        char *at = r->data + (produced & r->mask);
        if (r->mask + 1 - (produced - consumed) < 40)
            break;
        ((uint32_t *)at)[0] = 32 | BUSY;
        ((uint32_t *)at)[1] = 0;
        __atomic_store_n(r->producer, produced + 40, __ATOMIC_RELEASE);
        memcpy(at + 8, &records[i], 32);
        __atomic_exchange_n((uint32_t *)at, 32, __ATOMIC_ACQ_REL);
    }
    return i;
}

/* ---- libbpf ---------------------------------------------------------------------------------- */

#if __has_include(<bpf/libbpf.h>)
#include <bpf/libbpf.h>
#include <linux/perf_event.h>

static int add(void *sum, void *data, size_t size)
{
    *(uint64_t *)sum += ((struct record *)data)->n;
    return size != 32;
}

/* A ring_buffer that adds records to *sum, or calls `each` for them. */
int64_t lib_open(int fd, uint64_t *sum, ring_buffer_sample_fn each)
{
    return (int64_t)(intptr_t)ring_buffer__new(fd, each ? each : add, sum, NULL);
}

int64_t lib_consume(struct ring_buffer *rb, uint64_t *sum)
{
    *sum = 0;
    return ring_buffer__consume(rb);
}

int64_t lib_close(struct ring_buffer *rb)
{
    ring_buffer__free(rb);
    return 0;
}

/* A perf_buffer, with what its callback saw. */
struct perf {
    struct perf_buffer *buffer;
    uint64_t sum, lost;
    int64_t n;
};

static enum bpf_perf_event_ret perf_add(void *context, int cpu, struct perf_event_header *event)
{
    struct perf *p = context;
    uint64_t n;

    (void)cpu;
    if (event->type == PERF_RECORD_SAMPLE) { /* a u32 for the size, then the bytes */
        memcpy(&n, (char *)event + 12, sizeof n);
        p->sum += n;
        p->n++;
    } else if (event->type == PERF_RECORD_LOST) {
        p->lost += ((uint64_t *)event)[2];
    }
    return LIBBPF_PERF_EVENT_CONT;
}

/* The raw form: before libbpf 1.2 only this one can be told to wake once in `wakeup` records. */
int64_t lib_perf_open(int fd, uint64_t pages, uint64_t wakeup)
{
    struct perf_event_attr attr = {
        .type = PERF_TYPE_SOFTWARE,
        .size = sizeof attr,
        .config = PERF_COUNT_SW_BPF_OUTPUT,
        .sample_type = PERF_SAMPLE_RAW,
        .sample_period = 1,
        .wakeup_events = (uint32_t)wakeup,
    };
    struct perf *p = calloc(1, sizeof *p);
    if (!p || !(p->buffer = perf_buffer__new_raw(fd, pages, &attr, perf_add, p, NULL)))
        return -errno;
    return (int64_t)(intptr_t)p;
}

/* How many samples there were, or -errno; their sum, and how many were lost. */
int64_t lib_perf_consume(struct perf *p, uint64_t *found)
{
    p->sum = p->lost = 0;
    p->n = 0;
    int failed = perf_buffer__consume(p->buffer);
    found[0] = p->sum;
    found[1] = p->lost;
    return failed ? failed : p->n;
}

int64_t lib_perf_close(struct perf *p)
{
    perf_buffer__free(p->buffer);
    free(p);
    return 0;
}
#endif
