/* User space's side of a live table: what is read, and what an expiry does. The layout and the
 * programs' side are in fastmap.bpf.h. A struct live says where the arrays are mapped. */
#ifndef FASTMAP_LIVE_H
#define FASTMAP_LIVE_H

#include <stdint.h>
#include <string.h>
#include <linux/types.h>
#include "fastmap.bpf.h"

#define LIVE_BLOCK 1024                 /* slots worked through at a time: their sums stay in L1 */

struct live {
	struct fastmap_head *head;
	struct fastmap_line *index;
	const char *keys;
	uint64_t *born;
	uint64_t *values;
	uint32_t *ring;
	/* Copies: whoever may write the head must not make us read beyond the maps. */
	uint64_t capacity;
	uint32_t line_mask;
	uint32_t columns;
	uint32_t key_size, key_stride;
	uint32_t words;                 /* u64 of a value */
};

static inline uint64_t live_used(const struct live *t)
{
	uint64_t used = __atomic_load_n(&t->head->used, __ATOMIC_ACQUIRE);
	return used < t->capacity ? used : t->capacity;
}

static inline uint64_t live_hash(const struct live *t, const char *key)
{
	uint32_t w[FASTMAP_KEY_MAX / 4];
	uint32_t words = (t->key_size + 7) / 8 * 2;

	if (t->key_size == 16) {        /* the usual ones, unrolled */
		memcpy(w, key, 16);
		return FASTMAP_HASH(t->head, w, 4);
	}
	if (t->key_size == 8) {
		memcpy(w, key, 8);
		return FASTMAP_HASH(t->head, w, 2);
	}
	w[words - 1] = w[words - 2] = 0;
	memcpy(w, key, t->key_size);
	return FASTMAP_HASH(t->head, w, words);
}

static inline int live_same(const char *a, const char *b, uint32_t size)
{
	if (size == 16) {
		uint64_t x[2], y[2];
		memcpy(x, a, 16);
		memcpy(y, b, 16);
		return !((x[0] ^ y[0]) | (x[1] ^ y[1]));
	}
	return !memcmp(a, b, size);
}

/* The slot of a key and its entry; -1 where there is none. `key_size` bytes are read of `key`. */
static inline int64_t live_find_hashed(const struct live *t, const char *key, uint64_t hash,
				       uint64_t **entry)
{
	uint32_t tag = hash >> 32 | 1;

	for (uint32_t i = 0; i < FASTMAP_LINES; i++) {
		struct fastmap_line *line = t->index + (FASTMAP_AT(hash, i) & t->line_mask);
		for (int j = 0; j < FASTMAP_WAYS; j++) {
			uint64_t e = __atomic_load_n(&line->e[j], __ATOMIC_ACQUIRE);
			if (e >> 32 == tag) {
				uint32_t slot = (uint32_t)e - 1;
				if (slot < t->capacity &&
				    live_same(t->keys + (uint64_t)slot * t->key_stride, key,
					      t->key_size)) {
					if (entry)
						*entry = (uint64_t *)&line->e[j];
					return slot;
				}
			}
		}
		if (!(__atomic_load_n(&line->over, __ATOMIC_RELAXED) & 1))
			break;
	}
	return -1;
}

static inline int64_t live_find(const struct live *t, const char *key, uint64_t **entry)
{
	return live_find_hashed(t, key, live_hash(t, key), entry);
}

/* The slots of n keys side by side. Lines, then stored keys are prefetched. */
static inline void live_find_many(const struct live *t, const char *want, uint64_t n,
				  int64_t *slots)
{
	enum { AHEAD = 32, HALF = 16 };
	uint64_t hashes[AHEAD];

	for (uint64_t i = 0; i < n + AHEAD; i++) {
		if (i >= AHEAD)         /* before its hash is overwritten */
			slots[i - AHEAD] = live_find_hashed(t, want + (i - AHEAD) * t->key_size,
							    hashes[i % AHEAD], 0);
		if (i < n) {
			uint64_t h = hashes[i % AHEAD] = live_hash(t, want + i * t->key_size);
			__builtin_prefetch(t->index + ((uint32_t)h & t->line_mask));
		}
		if (i >= HALF && i - HALF < n) {
			uint64_t h = hashes[(i - HALF) % AHEAD];
			uint32_t tag = h >> 32 | 1;
			const struct fastmap_line *line =
				t->index + ((uint32_t)h & t->line_mask);
			for (int j = 0; j < FASTMAP_WAYS; j++) {
				uint32_t slot = (uint32_t)line->e[j] - 1;
				if (line->e[j] >> 32 == tag && slot < t->capacity) {
					__builtin_prefetch(t->keys + (uint64_t)slot * t->key_stride);
					__builtin_prefetch(t->values + (uint64_t)slot * t->words);
					break;
				}
			}
		}
	}
}

/* Sums of `count` words over the columns. */
static inline void live_sums(uint64_t *out, const uint64_t *v, uint64_t columns, uint64_t stride,
			     uint64_t count)
{
	if (columns == 1) {
		memcpy(out, v, 8 * count);
		return;
	}
	for (uint64_t i = 0; i < count; i++)
		out[i] = v[i] + v[stride + i];
	for (uint64_t c = 2; c < columns; c++)
		for (uint64_t i = 0; i < count; i++)
			out[i] += v[c * stride + i];
}

/* A value of every column side by side: what Columns takes. */
static inline void live_gather(const struct live *t, uint64_t slot, uint64_t *row)
{
	for (uint64_t c = 0; c < t->columns; c++)
		memcpy(row + c * t->words, t->values + (c * t->capacity + slot) * t->words,
		       8ul * t->words);
}

/* What a reader keeps between its reads, and fills. */
struct live_rows {
	uint64_t *seen;                 /* by slot: born as of the last read, 0 for no row */
	uint32_t *starts;               /* by block: its first row + 1 as of the last read; 0: anew */
	char *keys;                     /* by row, key_size apart */
	uint64_t *born;
	uint32_t *slots;
	uint64_t *sums;                 /* words each */
	uint64_t *before;               /* by slot, for differences: the sums of the last read; or 0 */
	unsigned char *fresh;           /* by row, with `before`: not there at the last read */
};

/* Slots [from, from + LIVE_BLOCK) below n: the keys of those that changed. Returns how many live;
 * `now` gets born of each, 0 for those that are not live. */
static inline uint64_t live_block(const struct live *t, struct live_rows *r, uint64_t from,
				  uint64_t n, uint64_t row, uint64_t *now)
{
	uint64_t m = n - from < LIVE_BLOCK ? n - from : LIVE_BLOCK, live = 0, changed = 0, at = row;
	const uint64_t *born = t->born + from;

	for (uint64_t i = 0; i < m; i++) {
		uint64_t x = __atomic_load_n(&born[i], __ATOMIC_RELAXED);
		x &= -(x & 1);
		changed |= x ^ r->seen[from + i];
		live += x & 1;
		now[i] = x;
	}
	/* With this fence the loads above acquire: keys and values are read after them. */
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	if (!changed && r->starts[from / LIVE_BLOCK] == row + 1)
		return live;
	for (uint64_t i = 0; i < m; i++)
		if (now[i]) {
			memcpy(r->keys + at * t->key_size, t->keys + (from + i) * t->key_stride,
			       t->key_size);
			r->born[at] = now[i];
			r->slots[at++] = (uint32_t)(from + i);
		}
	r->starts[from / LIVE_BLOCK] = (uint32_t)row + 1;
	return live;
}

/* A block's sums into rows from `row` on, as differences where r->before is there. */
static inline void live_block_sums(const struct live *t, struct live_rows *r, uint64_t from,
				   uint64_t n, uint64_t row, uint64_t live, const uint64_t *now,
				   uint64_t *scratch)
{
	uint64_t m = n - from < LIVE_BLOCK ? n - from : LIVE_BLOCK, w = t->words;
	uint64_t *out = r->sums + row * w;
	uint64_t *sums = live == m ? out : scratch;

	live_sums(sums, t->values + from * w, t->columns, t->capacity * w, m * w);
	if (r->before) {
		uint64_t *before = r->before + from * w;
		uint64_t at = row;
		for (uint64_t i = 0; i < m; i++) {
			int other = now[i] != r->seen[from + i];
			if (now[i])
				r->fresh[at++] = other;
			if (other)
				memset(before + i * w, 0, 8 * w);
		}
		for (uint64_t i = 0; i < m * w; i++) {
			uint64_t x = sums[i];
			sums[i] = x - before[i];
			before[i] = x;
		}
	}
	if (live != m)
		for (uint64_t i = 0, at = 0; i < m; i++)
			if (now[i]) {
				memcpy(out + at * w, sums + i * w, 8 * w);
				at++;
			}
}

static inline void live_seen(struct live_rows *r, uint64_t from, uint64_t n, const uint64_t *now)
{
	memcpy(r->seen + from, now, 8 * (n - from < LIVE_BLOCK ? n - from : LIVE_BLOCK));
}

/* ---- expiry: user space alone, one process at a time ----------------------------------------- */

/* Unlink a slot; what a reader loads from now on does not have it, programs that begin from now on
 * do not find it. Returns the place of its entry (a tomb now), or -1: it was not linked. */
static inline int64_t live_unlink(const struct live *t, uint32_t slot)
{
	uint64_t *entry = 0;
	uint64_t born = __atomic_load_n(&t->born[slot], __ATOMIC_RELAXED);

	if (born & 1)
		__atomic_store_n(&t->born[slot], (born & ~7ull) | FASTMAP_DYING, __ATOMIC_RELEASE);
	if (live_find(t, t->keys + (uint64_t)slot * t->key_stride, &entry) != slot)
		return -1;
	/* After `born`: a key that comes back is published after its old slot went. */
	__atomic_store_n(entry, FASTMAP_TOMB, __ATOMIC_SEQ_CST);
	return entry - (uint64_t *)t->index;
}

/* After the grace period, and after its counts were taken: the slot is empty. */
static inline void live_clear(const struct live *t, uint32_t slot)
{
	for (uint64_t c = 0; c < t->columns; c++)
		memset(t->values + (c * t->capacity + slot) * t->words, 0, 8ul * t->words);
	__atomic_store_n(&t->born[slot], FASTMAP_LOST, __ATOMIC_RELEASE);
}

/* Slots up to free_next are in the ring: let programs take them. What a collector that is killed
 * in here has begun, the next one ends. */
static inline void live_publish_free(const struct live *t)
{
	uint64_t next = t->head->free_next;

	for (uint64_t i = t->head->free_tail; i < next; i++) {
		uint32_t slot = t->ring[i % t->capacity];
		if (slot < t->capacity)
			__atomic_store_n(&t->born[slot], 0, __ATOMIC_RELEASE);
	}
	__atomic_store_n(&t->head->free_tail, next, __ATOMIC_SEQ_CST);
}

static inline void live_recycle(const struct live *t, const uint32_t *slots, uint64_t n)
{
	uint64_t tail = t->head->free_tail;

	for (uint64_t i = 0; i < n; i++)
		t->ring[(tail + i) % t->capacity] = slots[i];
	__atomic_store_n(&t->head->free_next, tail + n, __ATOMIC_SEQ_CST);
	live_publish_free(t);
}

#endif
