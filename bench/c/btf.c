/* What a C program with libbpf writes to know the layout of a struct: parse a file of BTF, find the
 * struct by its name, walk its members, those of anonymous ones among them. */
#include <bpf/btf.h>
#include <errno.h>
#include <stdint.h>

/* A digest of the layout, in any order: the sum of FNV-1a over name, NUL, bit offset and bits. */
static uint64_t member(const char *name, uint32_t offset, uint32_t bits)
{
    uint64_t hash = 0xcbf29ce484222325;
    uint32_t words[2] = {offset, bits};
    const unsigned char *bytes = (const unsigned char *)words;

    do
        hash = (hash ^ (unsigned char)*name) * 0x100000001b3;
    while (*name++);
    for (unsigned i = 0; i < sizeof words; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3;
    return hash;
}

static uint64_t walk(const struct btf *btf, const struct btf_type *type, uint32_t base)
{
    const struct btf_member *m = btf_members(type);
    uint64_t digest = 0;

    for (uint32_t i = 0; i < btf_vlen(type); i++, m++) {
        const char *name = btf__name_by_offset(btf, m->name_off);
        uint32_t offset = base + btf_member_bit_offset(type, i);
        uint32_t bits = btf_member_bitfield_size(type, i);
        if (!*name) {
            const struct btf_type *inner = btf__type_by_id(btf, btf__resolve_type(btf, m->type));
            if (btf_is_composite(inner))
                digest += walk(btf, inner, offset);
            continue; /* else the gap that an unnamed bitfield leaves */
        }
        if (!bits)
            bits = 8 * btf__resolve_size(btf, m->type);
        if (bits) /* no flexible arrays, no empty structs */
            digest += member(name, offset, bits);
    }
    return digest;
}

/* 1, with the struct's size and the digest of its members, or -errno. */
int64_t lib_btf(const char *file, const char *name, uint64_t *size, uint64_t *digest)
{
    struct btf *btf = btf__parse(file, NULL);
    if (!btf)
        return -errno;
    int id = btf__find_by_name_kind(btf, name, BTF_KIND_STRUCT);
    const struct btf_type *type = btf__type_by_id(btf, id < 0 ? 0 : id);
    if (id > 0) {
        *size = type->size;
        *digest = walk(btf, type, 0);
    }
    btf__free(btf);
    return id > 0 ? 1 : -ENOENT;
}
