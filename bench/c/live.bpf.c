// Counting events by key, in a live table, in a HASH and in a PERCPU_HASH. The keys' numbers are
// drawn before, into an array.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "fastmap.bpf.h"

struct key {
	__u64 number, rest;
};

struct counters {
	__u64 packets, bytes;
};

FASTMAP_LIVE(own, struct key, struct counters, 1 << 20);
FASTMAP_LIVE_SHARED(shared, struct key, struct counters, 1 << 20);

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, struct key);
	__type(value, struct counters);
} hash SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 1 << 20);
	__type(key, struct key);
	__type(value, struct counters);
} percpu SEC(".maps");

#define DRAWS (1 << 20)
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, DRAWS);
	__type(key, __u32);
	__type(value, __u64);
} draws SEC(".maps");

struct work {
	__u64 first, depends, last, missed;
};

static __always_inline int drawn(__u32 i, struct work *work, struct key *key)
{
	/* Where an event depends on the one before, its key is known when that one's value is. */
	__u32 at = (i + (__u32)work->first + (work->depends & work->last)) & (DRAWS - 1);
	__u64 *number = bpf_map_lookup_elem(&draws, &at);

	if (!number)
		return 0;
	key->number = *number;
	key->rest = *number * 3;
	return 1;
}

#define PROGRAM(NAME, FIND, COUNT)                                                                 \
	static long NAME##_one(__u32 i, struct work *work)                                         \
	{                                                                                          \
		struct key key;                                                                    \
		if (!drawn(i, work, &key))                                                         \
			return 1;                                                                  \
		struct counters *v = FIND;                                                         \
		if (v) {                                                                           \
			COUNT;                                                                     \
			work->last = v->packets >> 63;                                             \
		} else {                                                                           \
			work->missed++;                                                            \
		}                                                                                  \
		return 0;                                                                          \
	}                                                                                          \
	SEC("raw_tp") int NAME##_count(__u64 *args)                                                \
	{                                                                                          \
		struct work work = { .first = args[1], .depends = args[2] };                       \
		bpf_loop(args[0], NAME##_one, &work, 0);                                           \
		return work.missed;                                                                \
	}

#define PLAIN v->packets++, v->bytes += 100
#define ATOMIC __sync_fetch_and_add(&v->packets, 1), __sync_fetch_and_add(&v->bytes, 100)

static const struct counters zeros;

/* As collectors do it: look, insert where it is new, look again. */
static __always_inline struct counters *upsert(void *map, struct key *key)
{
	struct counters *v = bpf_map_lookup_elem(map, key);

	if (v)
		return v;
	bpf_map_update_elem(map, key, &zeros, BPF_NOEXIST);
	return bpf_map_lookup_elem(map, key);
}

PROGRAM(own, own_get(&key), PLAIN)
PROGRAM(shared, shared_get(&key), ATOMIC)
PROGRAM(hash, upsert(&hash, &key), ATOMIC)
PROGRAM(percpu, upsert(&percpu, &key), PLAIN)

char _license[] SEC("license") = "Dual BSD/GPL";
