// Live tables through fastmap.bpf.h: counters of a table per CPU and of a shared one, by keys that a
// small generator draws. The context of a run says what to count.
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "fastmap.bpf.h"

struct key {
	__u32 low, high;
	__u64 rest;
};

struct counters {
	__u64 events, bytes;
};

struct odd {
	__u8 bytes[13];
};

FASTMAP_LIVE(flows, struct key, struct counters, 1 << 10);
FASTMAP_LIVE_SHARED(shared, struct odd, __u64, 1 << 10);

/* What every event of `count` adds to as well: the truth, key by key. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1 << 16);
	__type(key, __u32);
	__type(value, __u64);
} truth SEC(".maps");

struct work {
	__u64 state, keys, first, missed;
};

static long one(__u32 i, struct work *work)
{
	(void)i;
	work->state ^= work->state << 13;
	work->state ^= work->state >> 7;
	work->state ^= work->state << 17;
	__u64 n = work->first + (work->keys ? (work->state >> 11) % work->keys : i);
	struct key key = { .low = n, .high = n >> 32, .rest = n * 3 };
	struct counters *v = flows_get(&key);

	if (v) {
		v->events++;
		v->bytes += n;
		__u32 at = n;
		__u64 *true_events = bpf_map_lookup_elem(&truth, &at);

		if (true_events)
			__sync_fetch_and_add(true_events, 1);
	} else {
		work->missed++;
	}
	return 0;
}

/* The context: how many events, of how many keys (0: one each), from which on, the state. */
SEC("raw_tp") int count(__u64 *args)
{
	struct work work = { .state = args[3], .keys = args[1], .first = args[2] };

	bpf_loop(args[0], one, &work, 0);
	return work.missed;
}

static long one_shared(__u32 i, struct work *work)
{
	struct odd key = {};
	(void)i;

	work->state ^= work->state << 13;
	work->state ^= work->state >> 7;
	work->state ^= work->state << 17;
	__u64 n = work->first + (work->keys ? (work->state >> 11) % work->keys : i);
	__builtin_memcpy(key.bytes + 5, &n, 8);
	work->missed += !shared_add(&key, 0, 1);
	return 0;
}

SEC("raw_tp") int count_shared(__u64 *args)
{
	struct work work = { .state = args[3], .keys = args[1], .first = args[2] };

	bpf_loop(args[0], one_shared, &work, 0);
	return work.missed;
}

/* Whether a key is there, without making it so. */
SEC("raw_tp") int peek(__u64 *args)
{
	__u64 n = args[0];
	struct key key = { .low = n, .high = n >> 32, .rest = n * 3 };
	struct counters *v = flows_peek(&key);

	return v ? v->events : 0;
}

/* Hand-off: holds a value until it is told to go on. */
__u64 held, go;

static long look(__u32 i, __u64 *done)
{
	(void)i;
	*done = *(volatile __u64 *)&go;
	return *done != 0;
}

static long look_long(__u32 i, __u64 *done)
{
	(void)i;
	bpf_loop(1 << 20, look, done, 0);
	return *done != 0;
}

SEC("raw_tp") int hold(__u64 *args)
{
	__u64 n = args[0], done = 0;
	struct key key = { .low = n, .high = n >> 32, .rest = n * 3 };
	struct counters *v = flows_get(&key);

	if (!v)
		return 1;
	__sync_fetch_and_add(&held, 1);
	bpf_loop(1 << 20, look_long, &done, 0);
	v->events += 1000;
	return 0;
}

/* On real hooks. */
__u32 pid;

SEC("raw_tracepoint/sys_enter") int calls(struct bpf_raw_tracepoint_args *ctx)
{
	struct key key = { .low = ctx->args[1] };

	if (bpf_get_current_pid_tgid() >> 32 == pid) {
		struct counters *v = flows_get(&key);

		if (v)
			v->events++;
	}
	return 0;
}

SEC("xdp") int packets(struct xdp_md *ctx)
{
	__u8 *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct key key = {};

	if (data + 16 > end || data[12] != 0x88 || data[13] != 0xb5)
		return XDP_PASS;
	key.low = data[14] | data[15] << 8;
	struct counters *v = flows_get(&key);

	if (v) {
		v->events++;
		v->bytes += end - data;
	}
	return XDP_DROP;
}

char _license[] SEC("license") = "Dual BSD/GPL";
