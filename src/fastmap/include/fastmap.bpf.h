/* SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
 *
 * fastmap.bpf.h: live tables. Counters by key that programs update without a lock and user space
 * reads from memory, without a system call.
 *
 *	#include <linux/bpf.h>          (or vmlinux.h)
 *	#include <bpf/bpf_helpers.h>
 *	#include "fastmap.bpf.h"
 *
 *	FASTMAP_LIVE(flows, struct flow_key, struct counters, 1 << 20);
 *
 *	struct counters *v = flows_get(&key);    NULL: no room, and that is counted
 *	if (v) { v->packets++; v->bytes += len; }
 *
 * FASTMAP_LIVE         a column of values for each CPU: v->packets++ needs no atomic. Such a program
 *                      counts nothing (but `full`) in a table that has fewer columns than CPUs
 * FASTMAP_LIVE_SHARED  one column, or some, for all: only __sync_fetch_and_add(&v->packets, 1)
 *
 * NAME_get(&key)                     the value of a key, which is inserted where it is new
 * NAME_peek(&key)                    the value of a key, NULL where there is none
 * NAME_add(&key, offset, n)          adds to the u64 at that offset of the value, atomically;
 *                                    returns whether there was room
 * FASTMAP_ADD(NAME, &key, field, n)  the same by the field's name, of 4 or 8 bytes
 *
 * Compile: clang >= 12, -target bpf -mcpu=v3. Linux: 5.12 (x86-64), 5.18 (arm64): atomics that
 * fetch. NAME has at most 13 letters. A key has 1 to 64 bytes, all of which are compared: clear its
 * padding. A value is a multiple of 8 bytes. The capacity here is a default: a loader may set
 * max_entries of all maps, or put maps that fastmap.LiveTable.create made in their places.
 * Before the first event, user space sets the table up (LiveTable.create or .open); until then
 * every event is counted in `full`.
 *
 * Not for sleepable programs: expiry waits for a grace period of RCU, which they do not delay. The
 * verifier refuses them ("Sleepable programs can only use ..."), by a map of a kind that they may not
 * have. One that holds bpf_rcu_read_lock() from NAME_get to the last use of the value is fine:
 * #define FASTMAP_RCU_LOCKED before this header says that all of a file do.
 */
#ifndef FASTMAP_BPF_H
#define FASTMAP_BPF_H

/* ---- the layout: what programs, fastmap and readers in other languages agree on --------------
 *
 * Six arrays, all BPF_F_MMAPABLE:
 *   NAME_h  1 struct fastmap_head
 *   NAME_x  lines of the index, a power of two: struct fastmap_line
 *   NAME_k  [slot] keys
 *   NAME_b  [slot] u64: odd: when it was born (ktime | 1) and live; see FASTMAP_* below
 *   NAME_v  [column * capacity + slot] values
 *   NAME_f  [capacity / 2 rounded up] two u32 each: a ring of slots to be used again
 */
#define FASTMAP_VERSION 1
#define FASTMAP_KEY_MAX 64
#define FASTMAP_SECRETS 18              /* u64 of the hash: one, and one for each word of a key */
#define FASTMAP_WAYS 7                  /* entries of a line */
#define FASTMAP_LINES 8                 /* lines a key can be in */
#define FASTMAP_SPARES 64

/* magic "FM", version, and the sizes both sides were built with, in one word: one comparison */
#define FASTMAP_ABI(key_size, value_size)                                                          \
	(0x464dull << 48 | (unsigned long long)FASTMAP_VERSION << 40 |                             \
	 (unsigned long long)(key_size) << 32 | (unsigned long long)(value_size))
#define FASTMAP_OWN (1ull << 31)        /* of the same word: each possible CPU has its own column */

/* An entry: tag (31 bits) | confirmed (1) | slot + 1 (32). */
#define FASTMAP_CONFIRMED (1ull << 32)
#define FASTMAP_TOMB 0xffffffffffffffffull      /* was an entry; user space makes it 0 again */

/* born: odd is live. 0: free, or about to be published. Of the even ones: */
#define FASTMAP_LOST 2ull               /* taken, never published: user space gives it back */
#define FASTMAP_DYING 4ull              /* (born & ~7) | 4: unlinked, its counts still to be told */

struct fastmap_head {
	/* Written before the first event, then only read: one cache line, and the secrets. */
	__u64 abi;
	__u32 capacity;                 /* slots */
	__u32 columns;
	__u32 line_mask;                /* lines - 1 */
	__u32 column_mask;              /* column = cpu & this: all ones where each CPU has its own */
	__u64 created;                  /* ktime */
	__u32 maps[6];                  /* the kernel's ids of _h _x _k _b _v _f */
	__u64 reserved;                 /* 0 */
	__u64 secret[FASTMAP_SECRETS];
	__u64 unused[22];
	/* Programs add to these. */
	__u64 used __attribute__((aligned(64)));   /* slots ever handed out, maybe above capacity */
	__u64 full __attribute__((aligned(64)));   /* events that found no room: counted, not kept */
	__u64 races;                    /* two CPUs brought one key: one gave way */
	__u64 tombs;                    /* entries that programs turned into tombs */
	__u64 lost;                     /* slots that programs marked FASTMAP_LOST */
	__u64 free_head __attribute__((aligned(64)));   /* programs take here */
	/* User space alone writes these. */
	__u64 free_tail __attribute__((aligned(64)));   /* and gives here */
	__u64 free_next;                /* its journal: slots up to here are in the ring already */
	__u64 epoch;                    /* odd: an expiry is under way, or its process died in it */
	__u64 owner;                    /* who expires: pid << 32 | start time; 0: nobody */
	__u64 swept;                    /* what `tombs` was at the last sweep of the index */
	__u64 found;                    /* what `lost` was when lost slots were last looked for */
	/* slot + 1 that lost a race, for the next insert: [cpu & 63], programs alone */
	__u64 spare[FASTMAP_SPARES] __attribute__((aligned(64)));
};

struct fastmap_line {
	__u64 e[FASTMAP_WAYS];
	__u64 over;                     /* bit 0, for good: a key went on from here to its next line */
};

struct fastmap_two {                    /* an array's elements take 8 bytes at least */
	__u32 slot[2];
};

/* The i-th line of a key: each key steps by an odd number of its own. */
#define FASTMAP_AT(hash, i) ((__u32)(hash) + (i) * ((__u32)((hash) >> 40) | 1))
#define FASTMAP_TAG(hash) ((hash) & 0xfffffffe00000000ull)

/*
 * The hash. Keys often come from a network, whose senders choose them. It is multilinear (Lemire and
 * Kaser, "Strongly universal string hashing is fast", HM): for any two keys, the upper 32 bits of the
 * sum are independent and uniform over the choice of the secret. The line comes out of these bits
 * alone, by a bijection that breaks up the lattice of keys that count upwards: whatever keys are
 * chosen, without the secret they meet in a line no more often than random ones. The tag only saves
 * comparisons: it is made of the whole sum.
 */
static inline __attribute__((always_inline)) __u64 fastmap_mixed(__u64 sum)
{
	__u32 line = sum >> 32;

	line ^= line >> 16;
	line *= 0x85ebca6bu;
	line ^= line >> 13;
	return (sum * 0x9e3779b97f4a7c15ull) >> 32 << 32 | line;
}

#ifdef __bpf__
#define FASTMAP_UNROLL _Pragma("unroll")
#else
#define FASTMAP_UNROLL
#endif

/* Of `words` u32, an even number, zero behind the key. */
#define FASTMAP_HASH(head, w, words)                                                               \
	({                                                                                         \
		__u64 sum_ = (head)->secret[0];                                                    \
		FASTMAP_UNROLL for (unsigned i_ = 0; i_ < (words); i_ += 2)                        \
			sum_ += ((head)->secret[i_ + 1] + (w)[i_]) *                               \
				((head)->secret[i_ + 2] + (w)[i_ + 1]);                            \
		fastmap_mixed(sum_);                                                               \
	})

#ifdef __bpf__
/* ---- the programs' side ----------------------------------------------------------------------
 *
 * The memory model. BPF's atomics that return a value (cmpxchg, xchg, fetch-and-add) are fully
 * ordered: as the kernel's memory model has it, an smp_mb() before and after. They order:
 *
 * - key before entry: the key's bytes are stored before the cmpxchg that puts the entry in. Who
 *   reads the entry reads the key through an address made of it: an address dependency.
 * - entry before `born`: the xchg of `born` publishes to user space, which loads it with acquire
 *   and sees the key.
 * - `over` before what lies behind it: it is set by xchg before any entry goes to the next line.
 *
 * A key is there once. An entry goes in as tentative. Whoever wants to confirm it, its owner or one
 * that found it (a helper), first walks the whole path of the key, *after* it saw the entry in its
 * place: a confirmed entry of the same key is the answer, a tentative one is killed (tombed). Say
 * two entries S1 and S2 of one key were confirmed, by P1 and P2. P1 walked after S1 was in, and did
 * not see S2 (else it would have killed it, or yielded): so S2 came in after P1 looked at its place.
 * P2 walked after S2 was in, which is after S1 was: it must have seen S1. A helper has only *read*
 * that S1 is in; its walk is ordered behind that by the fetch-and-add with which it read, and as
 * every cmpxchg has an smp_mb() on each side this holds for independent readers, too.
 * When user space makes room in the very line at that instant nothing changes: a freed entry is a
 * place to go to, never a reason not to look at the others.
 *
 * No ABA. A tomb becomes 0 again, and a slot that was confirmed is given out again, only after a
 * grace period of RCU, in user space; programs hold what they read only inside one.
 */
#define FASTMAP__NONE 0xffffffffu
#define FASTMAP__TRIES 16               /* each try that fails is one of another CPU that did not */

#define FASTMAP__LOAD(p) (*(volatile __typeof__(*(p)) *)(p))
#define fastmap__xchg(p, v) __sync_lock_test_and_set((p), (v))
#define fastmap__fetch_add(p, v) __sync_fetch_and_add((p), (v))
#define fastmap__cmpxchg(p, old, new) __sync_val_compare_and_swap((p), (old), (new))

/* What a walk found, in the upper half of its result; below a slot, or a place (line * 8 + way). */
#define FASTMAP__FOUND (1ull << 32)
#define FASTMAP__HELP (2ull << 32)
#define FASTMAP__EMPTY (3ull << 32)
#define FASTMAP__FULL 0ull

static __always_inline int fastmap__equal(const void *stored, const void *key, unsigned size)
{
	__u64 differ = 0;

#pragma unroll
	for (unsigned i = 0; i + 8 <= size; i += 8)
		differ |= *(const __u64 *)(stored + i) ^ *(const __u64 *)(key + i);
	if (size & 4)
		differ |= *(const __u32 *)(stored + (size & ~7u)) ^
			  *(const __u32 *)(key + (size & ~7u));
	if (size & 2)
		differ |= *(const __u16 *)(stored + (size & ~3u)) ^
			  *(const __u16 *)(key + (size & ~3u));
	if (size & 1)
		differ |= *(const __u8 *)(stored + size - 1) ^ *(const __u8 *)(key + size - 1);
	return !differ;
}

#ifdef FASTMAP_RCU_LOCKED
#define FASTMAP__GUARD(NAME) _Static_assert(1, "")
#define FASTMAP__GUARDED(NAME)
#else
#define FASTMAP__GUARD(NAME)                                                                       \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY);                                       \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, __u32);                                                              \
	} NAME##_s SEC(".maps")
#define FASTMAP__GUARDED(NAME) __asm__ volatile("" : : "r"(&NAME##_s));
#endif

#define FASTMAP__ARRAY(NAME, V, N)                                                                 \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(map_flags, BPF_F_MMAPABLE);                                                 \
		__uint(max_entries, N);                                                            \
		__type(key, __u32);                                                                \
		__type(value, V);                                                                  \
	} NAME SEC(".maps")

/* A quarter as many lines as slots, a power of two: 4 of 7 ways are in use when all slots are. */
#define FASTMAP__LINES_OF(CAP)                                                                     \
	((CAP) <= 4 ? 1 : 1u << (32 - __builtin_clz(((CAP) + 3) / 4 - 1)))

#define FASTMAP__LIVE(NAME, K, V, CAP, COLUMNS, OWN)                                               \
	_Static_assert(sizeof(#NAME) <= 14, "a live table's name: at most 13 letters");            \
	_Static_assert(sizeof(K) <= FASTMAP_KEY_MAX, "a live table's key: at most 64 bytes");      \
	_Static_assert(sizeof(V) % 8 == 0, "a live table's value: a multiple of 8 bytes");         \
	FASTMAP__ARRAY(NAME##_h, struct fastmap_head, 1);                                          \
	FASTMAP__ARRAY(NAME##_x, struct fastmap_line, FASTMAP__LINES_OF(CAP));                     \
	FASTMAP__ARRAY(NAME##_k, K, CAP);                                                          \
	FASTMAP__ARRAY(NAME##_b, __u64, CAP);                                                      \
	FASTMAP__ARRAY(NAME##_v, V, (COLUMNS) * (CAP));                                            \
	FASTMAP__ARRAY(NAME##_f, struct fastmap_two, ((CAP) + 1) / 2);                             \
	FASTMAP__GUARD(NAME);                                                                      \
	union NAME##__key {                                                                        \
		K key;                                                                             \
		__u64 q[(sizeof(K) + 7) / 8];                                                      \
		__u32 w[(sizeof(K) + 7) / 8 * 2];                                                  \
	};                                                                                         \
	/* Global functions: the verifier looks at each once, not at every call (5.12). */         \
	__u64 NAME##__line(const union NAME##__key *u, __u64 hash, __u32 at, __u32 self);          \
	__u64 NAME##__walk(const union NAME##__key *u, __u64 hash, __u32 self);                    \
	__u32 NAME##__insert(const union NAME##__key *u, __u64 hash);                              \
                                                                                                   \
	static __always_inline struct fastmap_head *NAME##__head(void)                             \
	{                                                                                          \
		__u32 zero = 0;                                                                    \
		return bpf_map_lookup_elem(&NAME##_h, &zero);                                      \
	}                                                                                          \
                                                                                                   \
	static __always_inline __u32 NAME##__alloc(struct fastmap_head *h)                         \
	{                                                                                          \
		__u32 capacity = h->capacity;                                                      \
		__u64 spare = fastmap__xchg(                                                       \
			&h->spare[bpf_get_smp_processor_id() & (FASTMAP_SPARES - 1)], 0);          \
		if (spare)                                                                         \
			return (__u32)spare - 1;                                                   \
		for (int i = 0; i < FASTMAP__TRIES && capacity; i++) {                             \
			__u64 head = FASTMAP__LOAD(&h->free_head);                                 \
			/* A load that nothing overtakes: what the ring holds is read after it. */ \
			if (head >= fastmap__fetch_add(&h->free_tail, 0))                          \
				break;                                                             \
			__u32 at = head % capacity, half = at / 2;                                 \
			struct fastmap_two *two = bpf_map_lookup_elem(&NAME##_f, &half);           \
			if (!two)                                                                  \
				break;                                                             \
			__u32 got = at & 1 ? FASTMAP__LOAD(&two->slot[1]) :                        \
					     FASTMAP__LOAD(&two->slot[0]);                         \
			if (fastmap__cmpxchg(&h->free_head, head, head + 1) == head)               \
				return got;                                                        \
		}                                                                                  \
		if (FASTMAP__LOAD(&h->used) >= capacity)                                           \
			return FASTMAP__NONE;                                                      \
		__u64 slot = fastmap__fetch_add(&h->used, 1);                                      \
		return slot < capacity ? (__u32)slot : FASTMAP__NONE;                              \
	}                                                                                          \
                                                                                                   \
	static __always_inline void NAME##__give_back(struct fastmap_head *h, __u32 slot)          \
	{                                                                                          \
		__u64 old = fastmap__xchg(                                                         \
			&h->spare[bpf_get_smp_processor_id() & (FASTMAP_SPARES - 1)],              \
			(__u64)slot + 1);                                                          \
		if (old) {                                                                         \
			__u32 lost = (__u32)old - 1;                                               \
			__u64 *born = bpf_map_lookup_elem(&NAME##_b, &lost);                       \
			if (born)                                                                  \
				fastmap__xchg(born, FASTMAP_LOST);                                 \
			fastmap__fetch_add(&h->lost, 1);                                           \
		}                                                                                  \
	}                                                                                          \
                                                                                                   \
	/* One line of a key's path. `self`: the place of an entry that is to be confirmed: other */ \
	/* tentative ones are killed then. FASTMAP__NONE: to look for the key, or for a place. */  \
	__noinline __u64 NAME##__line(const union NAME##__key *u, __u64 hash, __u32 at,            \
				      __u32 self)                                                  \
	{                                                                                          \
		struct fastmap_head *h = NAME##__head();                                           \
		struct fastmap_line *line = bpf_map_lookup_elem(&NAME##_x, &at);                   \
		__u64 result = FASTMAP__FULL;                                                      \
		if (!h || !u || !line)                                                             \
			return FASTMAP__FULL;                                                      \
		for (__u32 j = 0; j < FASTMAP_WAYS; j++) {                                         \
			__u64 e = FASTMAP__LOAD(&line->e[j]);                                      \
			__u32 slot = (__u32)e - 1, place = at * 8 + j;                             \
			if (!e) {                                                                  \
				if (result == FASTMAP__FULL)                                       \
					result = FASTMAP__EMPTY | place;                           \
				continue;                                                          \
			}                                                                          \
			if (FASTMAP_TAG(e ^ hash) || place == self)                                \
				continue;                                                          \
			K *k = bpf_map_lookup_elem(&NAME##_k, &slot);                              \
			if (!k || !fastmap__equal(k, u, sizeof(K)))                                \
				continue;                                                          \
			if (e & FASTMAP_CONFIRMED)                                                 \
				return FASTMAP__FOUND | slot;                                      \
			if (self == FASTMAP__NONE)                                                 \
				return FASTMAP__HELP | place;                                      \
			__u64 old = fastmap__cmpxchg(&line->e[j], e, FASTMAP_TOMB);                \
			if (old == e)                                                              \
				fastmap__fetch_add(&h->tombs, 1);                                  \
			else if (old == (e | FASTMAP_CONFIRMED))                                   \
				return FASTMAP__FOUND | slot;                                      \
		}                                                                                  \
		return result;                                                                     \
	}                                                                                          \
                                                                                                   \
	__noinline __u64 NAME##__walk(const union NAME##__key *u, __u64 hash, __u32 self)          \
	{                                                                                          \
		struct fastmap_head *h = NAME##__head();                                           \
		__u64 empty = FASTMAP__FULL;                                                       \
		FASTMAP__GUARDED(NAME)                                                             \
		if (!h || !u)                                                                      \
			return FASTMAP__FULL;                                                      \
		for (__u32 i = 0; i < FASTMAP_LINES; i++) {                                        \
			__u32 at = FASTMAP_AT(hash, i) & h->line_mask;                             \
			__u64 r = NAME##__line(u, hash, at, self);                                 \
			struct fastmap_line *line = bpf_map_lookup_elem(&NAME##_x, &at);           \
			if (!line)                                                                 \
				break;                                                             \
			if (r >> 32 << 32 == FASTMAP__FOUND || r >> 32 << 32 == FASTMAP__HELP)     \
				return r;                                                          \
			if (empty == FASTMAP__FULL)                                                \
				empty = r;                                                         \
			if (!(FASTMAP__LOAD(&line->over) & 1)) {                                   \
				if (empty != FASTMAP__FULL || self != FASTMAP__NONE)               \
					break;                                                     \
				fastmap__xchg(&line->over, 1);                                     \
			}                                                                          \
		}                                                                                  \
		return empty;                                                                      \
	}                                                                                          \
                                                                                                   \
	__noinline __u32 NAME##__insert(const union NAME##__key *u, __u64 hash)                    \
	{                                                                                          \
		struct fastmap_head *h = NAME##__head();                                           \
		__u32 mine = FASTMAP__NONE, slot = FASTMAP__NONE;                                  \
		if (!h || !u)                                                                      \
			return FASTMAP__NONE;                                                      \
		for (int t = 0; t < FASTMAP__TRIES; t++) {                                         \
			__u64 r = NAME##__walk(u, hash, FASTMAP__NONE), kind = r >> 32 << 32;      \
			__u32 place = (__u32)r, at = place >> 3;                                   \
			if (kind == FASTMAP__FOUND) {                                              \
				slot = (__u32)r;                                                   \
				break;                                                             \
			}                                                                          \
			struct fastmap_line *line = bpf_map_lookup_elem(&NAME##_x, &at);           \
			if (kind == FASTMAP__FULL || !line)                                        \
				break;                                                             \
			__u64 *entry = &line->e[place & 7], e;                                     \
			if (kind == FASTMAP__HELP) {                                               \
				e = fastmap__fetch_add(entry, 0);                                  \
				if (e & FASTMAP_CONFIRMED || !e) /* or a tomb: all ones */         \
					continue;                                                  \
			} else {                                                                   \
				if (mine == FASTMAP__NONE) {                                       \
					mine = NAME##__alloc(h);                                   \
					K *k = bpf_map_lookup_elem(&NAME##_k, &mine);              \
					if (!k) {                                                  \
						mine = FASTMAP__NONE;                              \
						break;                                             \
					}                                                          \
					*k = u->key;                                               \
				}                                                                  \
				e = FASTMAP_TAG(hash) | ((__u64)mine + 1);                         \
				if (fastmap__cmpxchg(entry, 0, e))                                 \
					continue;                                                  \
			}                                                                          \
			__u32 theirs = (__u32)e - 1;                                               \
			r = NAME##__walk(u, hash, place);                                          \
			int other = r >> 32 << 32 == FASTMAP__FOUND;                               \
			__u64 old = fastmap__cmpxchg(                                              \
				entry, e, other ? FASTMAP_TOMB : e | FASTMAP_CONFIRMED);           \
			if (old == e && other) {                                                   \
				fastmap__fetch_add(&h->tombs, 1);                                  \
				slot = (__u32)r;                                                   \
				break;                                                             \
			}                                                                          \
			if (old == FASTMAP_TOMB && !other)                                         \
				continue;       /* killed: once more, with the same slot */        \
			if (old == e) {         /* confirmed, by us: published, by us */           \
				__u64 *born = bpf_map_lookup_elem(&NAME##_b, &theirs);             \
				if (born)                                                          \
					fastmap__xchg(born, bpf_ktime_get_ns() | 1);               \
			} else if (old == FASTMAP_TOMB) {                                          \
				slot = (__u32)r;                                                   \
				break;                                                             \
			}                                                                          \
			if (theirs == mine)                                                        \
				mine = FASTMAP__NONE;                                              \
			slot = theirs;                                                             \
			break;                                                                     \
		}                                                                                  \
		if (mine != FASTMAP__NONE) {                                                       \
			fastmap__fetch_add(&h->races, 1);                                          \
			NAME##__give_back(h, mine);                                                \
		}                                                                                  \
		return slot;                                                                       \
	}                                                                                          \
                                                                                                   \
	static __always_inline V *NAME##__value(const K *key, int insert)                          \
	{                                                                                          \
		struct fastmap_head *h = NAME##__head();                                           \
		union NAME##__key u = {};                                                          \
		__u32 slot = FASTMAP__NONE;                                                        \
		if (!h)                                                                            \
			return 0;                                                                  \
		if ((h->abi | (OWN ^ FASTMAP_OWN)) !=                                              \
		    (FASTMAP_ABI(sizeof(K), sizeof(V)) | FASTMAP_OWN))                             \
			goto full;                                                                 \
		u.q[(sizeof(K) - 1) / 8] = 0;                                                      \
		__builtin_memcpy(&u, key, sizeof(K));                                              \
		__u64 hash = FASTMAP_HASH(h, u.w, sizeof(u) / 4);                                  \
		__u32 at = (__u32)hash & h->line_mask;                                             \
		struct fastmap_line *line = bpf_map_lookup_elem(&NAME##_x, &at);                   \
		if (!line)                                                                         \
			goto full;                                                                 \
		__u32 tag = hash >> 32 | 1;                                                        \
		_Pragma("unroll") for (__u32 j = 0; j < FASTMAP_WAYS; j++)                         \
		{                                                                                  \
			__u64 e = FASTMAP__LOAD(&line->e[j]);                                      \
			if (e >> 32 == tag) {                                                      \
				slot = (__u32)e - 1;                                               \
				K *k = bpf_map_lookup_elem(&NAME##_k, &slot);                      \
				if (k && fastmap__equal(k, &u, sizeof(K)))                         \
					goto found;                                                \
			}                                                                          \
		}                                                                                  \
		if (!insert) {                                                                     \
			if (!(FASTMAP__LOAD(&line->over) & 1))                                     \
				return 0;                                                          \
			__u64 r = NAME##__walk(&u, hash, FASTMAP__NONE);                           \
			if (r >> 32 << 32 != FASTMAP__FOUND)                                       \
				return 0;                                                          \
			slot = (__u32)r;                                                           \
		} else {                                                                           \
			slot = NAME##__insert(&u, hash);                                           \
		}                                                                                  \
		if (slot >= h->capacity)                                                           \
			goto full;                                                                 \
	found:                                                                                     \
		slot += (bpf_get_smp_processor_id() & h->column_mask) * h->capacity;               \
		return bpf_map_lookup_elem(&NAME##_v, &slot);                                      \
	full:                                                                                      \
		if (insert)                                                                        \
			fastmap__fetch_add(&h->full, 1);                                           \
		return 0;                                                                          \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) V *NAME##_get(const K *key)                 \
	{                                                                                          \
		return NAME##__value(key, 1);                                                      \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) V *NAME##_peek(const K *key)                \
	{                                                                                          \
		return NAME##__value(key, 0);                                                      \
	}                                                                                          \
                                                                                                   \
	static __always_inline __attribute__((unused)) int NAME##_add(const K *key,                \
								      unsigned offset, __u64 n)    \
	{                                                                                          \
		V *value = NAME##_get(key);                                                        \
		if (value)                                                                         \
			__sync_fetch_and_add((__u64 *)((char *)value + offset), n);                \
		return !!value;                                                                    \
	}                                                                                          \
	_Static_assert(1, "")

#ifndef FASTMAP_CPUS
#define FASTMAP_CPUS 2                  /* columns if the loader sets no max_entries of NAME_v */
#endif

#define FASTMAP_LIVE(NAME, K, V, CAP)                                                              \
	FASTMAP__LIVE(NAME, K, V, CAP, FASTMAP_CPUS, FASTMAP_OWN)
#define FASTMAP_LIVE_SHARED(NAME, K, V, CAP) FASTMAP__LIVE(NAME, K, V, CAP, 1, 0)

#define FASTMAP_ADD(NAME, KEY, FIELD, N)                                                           \
	({                                                                                         \
		__typeof__(NAME##_get(KEY)) value_ = NAME##_get(KEY);                              \
		if (value_)                                                                        \
			__sync_fetch_and_add(&value_->FIELD, (N));                                 \
		!!value_;                                                                          \
	})
#endif /* __bpf__ */
#endif /* FASTMAP_BPF_H */
