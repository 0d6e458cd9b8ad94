/* Maps of many types and global variables, and a program that fills them, for test_interop.py:
 * clang builds it, bpftool loads it. It includes nothing, so that clang is all it needs. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;
typedef u16 __be16;
typedef u32 __be32;

#define SEC(name) __attribute__((section(name), used))
#define __uint(name, number) int (*name)[number]
#define __type(name, type) typeof(type) *name
#define __array(name, type) typeof(type) *name[]
#define ALWAYS static inline __attribute__((always_inline))

enum map_type {
    HASH = 1, ARRAY = 2, PERCPU_HASH = 5, PERCPU_ARRAY = 6, LRU_HASH = 9, LPM_TRIE = 11,
    ARRAY_OF_MAPS = 12, HASH_OF_MAPS = 13, QUEUE = 22, STACK = 23, RINGBUF = 27,
    BLOOM_FILTER = 30,
};

static void *(*lookup)(void *map, const void *key) = (void *)1;
static long (*update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*push)(void *map, const void *value, u64 flags) = (void *)87;
static long (*lock)(void *lock) = (void *)93;
static long (*unlock)(void *lock) = (void *)94;
static long (*output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;

enum state { IDLE, RUNNING = 5, DEAD = 1000000 };
enum level { LOW = -1, HIGH = 1 };

struct address {
    __be32 host;
    __be16 port;
    u8 proto; /* and a byte of padding */
};

struct span {
    u16 first;
    u64 last;
};

struct traffic {
    u64 packets;
    u32 bytes[3];
    enum state state;
    enum level level;
    u32 tos : 6, ecn : 2, mark : 20;
    struct span spans[2];
    char comm[16];
    _Bool open;
    s64 delta;
    u16 grid[2][3];
};

struct prefix {
    u32 length;
    u8 host[4];
};

struct bpf_spin_lock {
    u32 val;
};

struct locked {
    struct bpf_spin_lock lock;
    u32 count;
    u64 total;
};

/* .bss */
u64 runs;
u32 table[2][3];
struct span last_span;
u8 seen;
/* .data */
int threshold = -5;
char label[16] = "fastmap";
enum state state = RUNNING;
__be32 gateway = 0x0100000a; /* 10.0.0.1 on a little-endian machine */
struct span spans[2] = {{1, 1ULL << 40}, {2, 3}};
/* .rodata */
const volatile u32 step = 3;
const volatile u16 powers[4] = {1, 2, 4, 8};
/* a section of its own */
u64 extra SEC(".data.extra") = 77;
/* and one for what bpftool cannot print */
double ratio SEC(".data.real") = 0.25;

struct {
    __uint(type, HASH);
    __uint(max_entries, 64);
    __type(key, struct address);
    __type(value, struct traffic);
} flows SEC(".maps");

struct {
    __uint(type, PERCPU_HASH);
    __uint(max_entries, 64);
    __type(key, u64);
    __type(value, struct span);
} cpu_spans SEC(".maps");

struct {
    __uint(type, PERCPU_ARRAY);
    __uint(max_entries, 4);
    __type(key, u32);
    __type(value, u32);
} cpu_counts SEC(".maps");

struct {
    __uint(type, LRU_HASH);
    __uint(max_entries, 64);
    __type(key, enum state);
    __type(value, __be16);
} recent SEC(".maps");

struct {
    __uint(type, ARRAY);
    __uint(max_entries, 5);
    __type(key, u32);
    __type(value, struct span);
} slots SEC(".maps");

struct {
    __uint(type, LPM_TRIE);
    __uint(max_entries, 64);
    __uint(map_flags, 1);
    __type(key, struct prefix);
    __type(value, u32);
} routes SEC(".maps");

struct {
    __uint(type, HASH);
    __uint(max_entries, 8);
    __type(key, u32);
    __type(value, struct locked);
} locks SEC(".maps");

struct {
    __uint(type, QUEUE);
    __uint(max_entries, 8);
    __uint(value_size, sizeof(struct span));
} waiting SEC(".maps");

struct {
    __uint(type, STACK);
    __uint(max_entries, 8);
    __uint(value_size, sizeof(u32));
} undo SEC(".maps");

struct {
    __uint(type, BLOOM_FILTER);
    __uint(max_entries, 64);
    __uint(value_size, sizeof(u64));
} known SEC(".maps");

struct {
    __uint(type, RINGBUF);
    __uint(max_entries, 4096);
} events SEC(".maps");

/* The kernel keeps 15 bytes of a name. */
struct {
    __uint(type, HASH);
    __uint(max_entries, 4);
    __type(key, u32);
    __type(value, u64);
} longer_than_the_kernel_keeps SEC(".maps");

struct inner {
    __uint(type, ARRAY);
    __uint(max_entries, 2);
    __type(key, u32);
    __type(value, u64);
} first_inner SEC(".maps"), second_inner SEC(".maps");

struct {
    __uint(type, ARRAY_OF_MAPS);
    __uint(max_entries, 3);
    __type(key, u32);
    __array(values, struct inner);
} tables SEC(".maps") = {.values = {[0] = &first_inner, [2] = &second_inner}};

struct {
    __uint(type, HASH_OF_MAPS);
    __uint(max_entries, 3);
    __type(key, u32);
    __array(values, struct inner);
} tables_by_name SEC(".maps") = {.values = {[1] = &second_inner}};

ALWAYS void fill(u64 n) {
    struct address key;
    struct traffic flow;
    __builtin_memset(&key, 0, sizeof(key));
    __builtin_memset(&flow, 0, sizeof(flow));
    key.host = __builtin_bswap32(0x0a000000 + n);
    key.port = __builtin_bswap16(1000 + n);
    key.proto = 6;
    flow.packets = n * step;
    flow.bytes[0] = n;
    flow.bytes[1] = n + 1;
    flow.bytes[2] = n + 2;
    flow.state = n & 1 ? RUNNING : DEAD;
    flow.level = n & 1 ? LOW : HIGH;
    flow.tos = n & 63;
    flow.ecn = n & 3;
    flow.mark = 1000 * n;
    flow.spans[0].first = n;
    flow.spans[1].last = n << 33;
    flow.comm[0] = 'c';
    flow.comm[1] = '0' + n % 10;
    flow.open = n & 1;
    flow.delta = threshold - (s64)n;
    flow.grid[1][2] = 7 * n;
    update(&flows, &key, &flow, 0);

    struct span span;
    __builtin_memset(&span, 0, sizeof(span));
    span.first = n;
    span.last = n * n;
    update(&cpu_spans, &n, &span, 0);
    push(&waiting, &span, 0);
    output(&events, &span, sizeof(span), 0);

    u32 index = n % 5, value = n;
    update(&slots, &index, &span, 0);
    push(&undo, &value, 0);
    push(&known, &n, 0);
    last_span.first = n;
    last_span.last = n * n;
    table[n & 1][1] = n;

    index = n & 3;
    u32 *count = lookup(&cpu_counts, &index);
    if (count)
        *count += 1;

    enum state which = n & 1 ? RUNNING : DEAD;
    __be16 port = __builtin_bswap16(8000 + n);
    update(&recent, &which, &port, 0);

    struct prefix route = {.length = 8 * (1 + n % 4), .host = {10, n, n, n}};
    update(&routes, &route, &value, 0);

    index = 1;
    struct locked *shared = lookup(&locks, &index);
    if (shared) {
        lock(&shared->lock);
        shared->count += 1;
        shared->total += n;
        unlock(&shared->lock);
    }

    u32 number = n & 2;
    void *inner = lookup(&tables, &number);
    number = 1;
    u64 *cell = inner ? lookup(inner, &number) : 0;
    if (cell)
        *cell += n;
}

/* One run is one entry of each map. */
SEC("tc") int fill_maps(void *skb __attribute__((unused))) {
    u32 one = 1;
    struct locked fresh = {};
    if (!runs)
        update(&locks, &one, &fresh, 1);
    runs += 1;
    seen = 1;
    extra += powers[runs & 3];
    fill(runs);
    return 0;
}

char LICENSE[] SEC("license") = "GPL";
