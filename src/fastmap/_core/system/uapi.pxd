"""Declarations of uapi.h for the compiled modules."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "uapi.h" nogil:
    int FM_MAP_CREATE
    int FM_MAP_LOOKUP_ELEM
    int FM_MAP_UPDATE_ELEM
    int FM_MAP_DELETE_ELEM
    int FM_MAP_GET_NEXT_KEY
    int FM_PROG_LOAD
    int FM_OBJ_PIN
    int FM_OBJ_GET
    int FM_PROG_TEST_RUN
    int FM_PROG_GET_NEXT_ID
    int FM_MAP_GET_NEXT_ID
    int FM_PROG_GET_FD_BY_ID
    int FM_MAP_GET_FD_BY_ID
    int FM_OBJ_GET_INFO_BY_FD
    int FM_RAW_TRACEPOINT_OPEN
    int FM_BTF_LOAD
    int FM_BTF_GET_FD_BY_ID
    int FM_MAP_LOOKUP_AND_DELETE_ELEM
    int FM_MAP_FREEZE
    int FM_MAP_LOOKUP_BATCH
    int FM_MAP_LOOKUP_AND_DELETE_BATCH
    int FM_MAP_UPDATE_BATCH
    int FM_MAP_DELETE_BATCH
    int FM_PROG_BIND_MAP
    int FM_TOKEN_CREATE

    struct fm_map_create:
        uint32_t map_type
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
        uint32_t map_flags
        uint32_t inner_map_fd
        uint32_t numa_node
        char map_name[16]
        uint32_t btf_fd
        uint32_t btf_key_type_id
        uint32_t btf_value_type_id
        uint32_t btf_vmlinux_value_type_id
        uint64_t map_extra
        uint32_t value_type_btf_obj_fd
        uint32_t map_token_fd

    struct fm_map_elem:
        uint32_t map_fd

    struct fm_prog_load:
        uint32_t prog_type
        uint32_t insn_cnt
        uint64_t insns
        uint64_t license
        uint32_t log_level
        uint32_t log_size
        uint64_t log_buf
        uint32_t prog_flags
        char prog_name[16]
        uint32_t expected_attach_type
        uint32_t prog_btf_fd
        uint32_t func_info_rec_size
        uint64_t func_info
        uint32_t func_info_cnt
        uint32_t attach_btf_id

    struct fm_test_run:
        uint32_t prog_fd
        uint32_t retval
        uint32_t data_size_in
        uint32_t data_size_out
        uint64_t data_in
        uint64_t data_out
        uint32_t repeat
        uint32_t duration
        uint32_t ctx_size_in
        uint64_t ctx_in
        uint32_t flags
        uint32_t cpu

    struct fm_obj:
        uint64_t pathname
        uint32_t bpf_fd
        uint32_t file_flags

    struct fm_get_id:
        uint32_t id
        uint32_t next_id
        uint32_t open_flags

    struct fm_info:
        uint32_t bpf_fd
        uint32_t info_len
        uint64_t info

    struct fm_raw_tracepoint:
        uint64_t name
        uint32_t prog_fd

    struct fm_btf_load:
        uint64_t btf
        uint64_t btf_log_buf
        uint32_t btf_size
        uint32_t btf_log_size
        uint32_t btf_log_level
        uint32_t btf_flags
        uint32_t btf_token_fd

    struct fm_bind_map:
        uint32_t prog_fd
        uint32_t map_fd

    struct fm_token_create:
        uint32_t flags
        uint32_t bpffs_fd

    struct fm_map_info:
        uint32_t type
        uint32_t id
        uint32_t key_size
        uint32_t value_size
        uint32_t max_entries
        uint32_t map_flags
        char name[16]
        uint32_t ifindex
        uint32_t btf_vmlinux_value_type_id
        uint64_t netns_dev
        uint64_t netns_ino
        uint32_t btf_id
        uint32_t btf_key_type_id
        uint32_t btf_value_type_id
        uint32_t btf_vmlinux_id
        uint64_t map_extra

    struct fm_prog_info:
        uint32_t type
        uint32_t id
        uint8_t tag[8]
        uint32_t jited_prog_len
        uint32_t xlated_prog_len
        uint64_t load_time
        uint32_t created_by_uid
        uint32_t nr_map_ids
        uint64_t map_ids
        char name[16]
        uint32_t ifindex
        uint32_t gpl_compatible
        uint64_t netns_dev
        uint64_t netns_ino
        uint32_t btf_id
        uint64_t run_time_ns
        uint64_t run_cnt
        uint64_t recursion_misses
        uint32_t verified_insns
        uint32_t attach_btf_obj_id
        uint32_t attach_btf_id

    struct fm_btf_info:
        uint64_t btf
        uint32_t btf_size
        uint32_t id

    uint64_t fm_ptr(const void *pointer)
    long fm_bpf(int command, void *attr, unsigned int size)
    long fm_elem(int command, int fd, const void *key, void *value, uint64_t flags)
    long fm_batch(int command, int fd, void *in_cursor, void *out_cursor, void *keys,
                  void *values, uint32_t *count, uint64_t elem_flags)
    uint64_t fm_monotonic_ns()
    uint32_t fm_load32(const uint32_t *p)
    void fm_acquire()
    uint64_t fm_load64(const uint64_t *p)
    void fm_store32(uint32_t *p, uint32_t value)
    void fm_store64(uint64_t *p, uint64_t value)
    uint64_t fm_deadline(double seconds)
    int fm_nap_ms(uint64_t deadline)
