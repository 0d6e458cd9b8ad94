/* Counts what a process asks of malloc and mmap. Preloaded into the process that measures what a read
 * allocates, and nowhere else; glibc's own names for the real functions need no dlsym. */
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t align, size_t size);

static atomic_uint_fast64_t calls, bytes;

static void count(size_t size)
{
    atomic_fetch_add_explicit(&calls, 1, memory_order_relaxed);
    atomic_fetch_add_explicit(&bytes, size, memory_order_relaxed);
}

uint64_t counted_calls(void)
{
    return atomic_load(&calls);
}

uint64_t counted_bytes(void)
{
    return atomic_load(&bytes);
}

void *malloc(size_t size)
{
    count(size);
    return __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
    count(n * size);
    return __libc_calloc(n, size);
}

void *realloc(void *old, size_t size)
{
    count(size);
    return __libc_realloc(old, size);
}

void *aligned_alloc(size_t align, size_t size)
{
    count(size);
    return __libc_memalign(align, size);
}

int posix_memalign(void **result, size_t align, size_t size)
{
    count(size);
    *result = __libc_memalign(align, size);
    return *result ? 0 : ENOMEM;
}

void *mmap(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    count(size);
    return (void *)syscall(SYS_mmap, address, size, protection, flags, fd, offset);
}
