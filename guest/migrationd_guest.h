/* SPDX-License-Identifier: Apache-2.0
 *
 * libmigrationd-guest: be migrated. Link this, share your memory, describe your devices, attach to a daemon.
 *
 *     struct counter { uint32_t value; } state;
 *     static const md_field fields[] = {MD_U32(struct counter, value), MD_END};
 *     static const md_device device = {.name = "counter", .version = 1, .fields = fields};
 *
 *     md_guest *guest = md_guest_new("my-machine-1", &callbacks, NULL);
 *     void *memory = md_guest_new_block(guest, "ram", 64 << 20, 4096, MD_TRACK_WRITE_PROTECT);
 *     md_guest_add_device(guest, &device, &state, NULL, MD_ANY_INSTANCE);
 *     if (md_guest_attach(guest, "/run/migrationd/NAME/guest.sock", MD_RUNNING)) ... md_guest_error(guest) ...
 *
 * From then on migrationd migrates this process as QEMU migrates a machine: `migrationctl migrate`, QMP, libvirt.
 * At the far end the same program attaches with MD_EMPTY, and gets its memory, its devices and start().
 *
 * Threads: a guest has one thread of the library's from md_guest_attach() on, with all signals blocked; callbacks run
 * there, one at a time, and may not call md_guest_attach, md_guest_detach or md_guest_free. All other functions may be
 * called from any thread once attached; before that, from one at a time. A program with its own loop passes
 * MD_NO_THREAD and calls md_guest_dispatch() when md_guest_fd() is readable: then callbacks run there.
 *
 * Deadlines: the daemon waits for a callback as long as its `deadline` says (5 s; save and load 30 s), then takes the
 * guest for hung and fails the migration; the machine stays where it is.
 *
 * Memory: every write must be seen. Write protection (userfaultfd) sees all writes through the registered mapping, by
 * the processor and by system calls. It does not see writes through other mappings (helper processes, forked children),
 * nor those to buffers that were pinned before (io_uring's registered buffers, DMA, vhost): those need MD_TRACK_BITMAP,
 * whose bits the writer sets after each write. Memory given back (a punched hole) is told by md_guest_given_back().
 * While pages are still to come (a postcopy, from start() at the far end until it has completed), nothing may read or
 * write the memory through another mapping at all: a page that is not there yet would be zeros there, and then for the
 * guest too.
 *
 * Errors: functions return 0 or a pointer on success, -1 or NULL on failure; md_guest_error() then says why in a
 * sentence. Callbacks and hooks that return something else than 0 refuse; md_guest_refuse() gives their sentence. C++
 * exceptions must not leave a callback (migrationd_guest.hpp sees to that for its own).
 *
 * The daemon's death: the guest runs on if it ran, and rests on if it was stopped: then the program decides, since the
 * machine may run elsewhere already. MD_DAEMON_GONE tells; md_guest_attach() registers everything anew. Only memory
 * that was still to come (postcopy) is lost with the daemon: who waits for it waits for good, and attaching is refused.
 *
 * The protocol underneath is docs/formats/guest-protocol.md. ABI: structures that may grow begin with their size.
 */
#ifndef MIGRATIOND_GUEST_H
#define MIGRATIOND_GUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MD_GUEST_VERSION 1

typedef struct md_guest md_guest;
typedef struct md_writer md_writer;

/* Everything else of the library is hidden. */
#pragma GCC visibility push(default)

/* --- callbacks: each may be NULL where the default in brackets will do; they return 0, or -1 to refuse --- */
enum md_event {
  MD_LEFT = 1,        /* the machine runs elsewhere now: this process must not go on with it, and may end */
  MD_STAYS = 2,       /* a migration failed or was cancelled; start() follows if it ran */
  MD_ARRIVED = 3,     /* an incoming migration was loaded; start() follows if it shall run */
  MD_DAEMON_GONE = 4, /* the daemon ended or hung up: the guest goes on as it is, and may attach again */
};

typedef struct md_callbacks {
  size_t size; /* sizeof(md_callbacks) */
  /* Nothing of the guest may run or write its memory after stop() returned, until start(). [there is nothing that runs]
   */
  int (*stop)(void* user);
  int (*start)(void* user);
  /* 0: full speed; 99: nearly stopped. For guests that write faster than the link. [not throttled] */
  void (*throttle)(void* user, unsigned percent);
  /* Shared bitmaps: the log is wanted from now on (1), or no longer (0) [always written]. */
  int (*dirty_log)(void* user, int on);
  /* Every write until now must have its bit when this returns (fetch KVM's dirty log here). [bits are set at once] */
  int (*dirty_sync)(void* user);
  void (*event)(void* user, enum md_event event, const char* why);
} md_callbacks;

/* `machine_name` is the stream's machine: only guests of the same name take each other's state. */
md_guest* md_guest_new(const char* machine_name, const md_callbacks* callbacks, void* user);
/* Detaches first, or hangs up if that is refused. Blocks made by md_guest_new_block() are unmapped. NULL: nothing.
 * In a forked child the guest is its parent's: calls that would talk to the daemon fail, and this one closes the
 * child's descriptors only. A child that lives on calls it: while it holds them the daemon does not see its parent's
 * death. */
void md_guest_free(md_guest* guest);
/* Why the last call of this thread failed; valid until its next one. Never NULL. `guest` may be NULL. */
const char* md_guest_error(const md_guest* guest);
/* In a callback or hook that refuses: why, for the daemon's error. Returns -1: `return md_guest_refuse(guest, "...");`
 */
int md_guest_refuse(md_guest* guest, const char* why);

/* --- memory: before attach --- */
enum md_tracking {
  MD_TRACK_NONE = 0,
  MD_TRACK_WRITE_PROTECT = 1,
  MD_TRACK_BITMAP = 2,
  MD_TRACK_BOTH = 3,
  MD_TRACK_LAST = 0x7fffffff, /* refused; here so that a wrong number is a value that C++ may look at */
};

/* A sealed memfd of `length` bytes, mapped; `page_size` 4096 or 2097152 (huge pages, which must be there). */
void* md_guest_new_block(md_guest* guest, const char* name, uint64_t length, uint32_t page_size,
                         enum md_tracking tracking);
/* Memory of the caller's: `fd` is a memfd with F_SEAL_SHRINK, mapped MAP_SHARED at `address`. The library duplicates
 * it. */
int md_guest_add_block(md_guest* guest, const char* name, void* address, uint64_t length, int fd,
                       enum md_tracking tracking);
/* The memfd of a block, for helpers that map it themselves; the library's. -1: no such block. */
int md_guest_block_fd(const md_guest* guest, const char* name);
/* The shared bitmap of a block with MD_TRACK_BITMAP or MD_TRACK_BOTH: a bit per 4096 bytes. `fd`, if not NULL, gets its
 * memfd (the library's). */
unsigned char* md_guest_bitmap(const md_guest* guest, const char* name, int* fd);
/* Sets the bits of [offset, offset + length): after the write, atomically, from any thread or process that maps it. */
static inline void md_bitmap_set(unsigned char* bitmap, uint64_t offset, uint64_t length) {
  uint64_t page;
  if (length == 0) return;
  for (page = offset / 4096; page <= (offset + length - 1) / 4096; ++page)
    __atomic_fetch_or(bitmap + page / 8, (unsigned char)(1U << (page % 8)), __ATOMIC_RELEASE);
}
/* Punches [offset, offset + length) out of the block, which is zeros then, and tells the daemon. Multiples of the page
 * size. While pages are still to come (postcopy) they are made zeros without a hole, which those would fill again. */
int md_guest_give_back(md_guest* guest, const char* name, uint64_t offset, uint64_t length);
/* Tells the daemon of memory the caller punched out itself. Not while pages may still come: see above. */
int md_guest_given_back(md_guest* guest, const char* name, uint64_t offset, uint64_t length);

/* --- devices: before attach --- */
enum md_type {
  MD_TYPE_END = 0,
  MD_TYPE_BOOL, /* one byte of C's _Bool */
  MD_TYPE_U8,
  MD_TYPE_U16,
  MD_TYPE_U32,
  MD_TYPE_U64,
  MD_TYPE_I8,
  MD_TYPE_I16,
  MD_TYPE_I32,
  MD_TYPE_I64,
  MD_TYPE_DOUBLE,
  MD_TYPE_BUFFER,            /* raw bytes */
  MD_TYPE_STRUCT,            /* `nested` */
  MD_TYPE_UNUSED,            /* `size` bytes of zeros on the wire, no member */
  MD_TYPE_LAST = 0x7fffffff, /* refused; as MD_TRACK_LAST */
};

struct md_device;

/* One member of a device's state. The wire has the fields in this order, without names and lengths. */
typedef struct md_field {
  const char* name;
  enum md_type type;
  uint32_t version; /* belongs to states of this device version and newer; 0: to all */
  size_t offset;    /* offsetof */
  size_t size;      /* sizeof one element; of a buffer: all of it */
  uint32_t count;   /* elements of the array; 1: no array; of a counted one the capacity */
  int counted;      /* not 0: the first N elements (bytes of a buffer); N is the member at count_offset */
  size_t count_offset;
  enum md_type count_type; /* MD_TYPE_U8, _U16, _U32 or _I32; an earlier field, so that it is loaded before */
  const struct md_device* nested;
  bool (*exists)(const void* state, uint32_t version); /* decides alone, if not NULL; when saving and loading */
} md_field;

/* clang-format off */
#ifdef __cplusplus
#define MD_SIZEOF(T, member) sizeof(static_cast<T*>(nullptr)->member)
#else
#define MD_SIZEOF(T, member) sizeof(((T*)0)->member)
#endif
#define MD_FIELD(T, member, kind) \
  {#member, kind, 0, offsetof(T, member), MD_SIZEOF(T, member), 1, 0, 0, MD_TYPE_END, NULL, NULL}
#define MD_BOOL(T, member) MD_FIELD(T, member, MD_TYPE_BOOL)
#define MD_U8(T, member) MD_FIELD(T, member, MD_TYPE_U8)
#define MD_U16(T, member) MD_FIELD(T, member, MD_TYPE_U16)
#define MD_U32(T, member) MD_FIELD(T, member, MD_TYPE_U32)
#define MD_U64(T, member) MD_FIELD(T, member, MD_TYPE_U64)
#define MD_I8(T, member) MD_FIELD(T, member, MD_TYPE_I8)
#define MD_I16(T, member) MD_FIELD(T, member, MD_TYPE_I16)
#define MD_I32(T, member) MD_FIELD(T, member, MD_TYPE_I32)
#define MD_I64(T, member) MD_FIELD(T, member, MD_TYPE_I64)
#define MD_DOUBLE(T, member) MD_FIELD(T, member, MD_TYPE_DOUBLE)
#define MD_BUFFER(T, member) MD_FIELD(T, member, MD_TYPE_BUFFER)
#define MD_ARRAY(T, member, kind)                                                                    \
  {#member, kind, 0, offsetof(T, member), MD_SIZEOF(T, member[0]),                                   \
   MD_SIZEOF(T, member) / MD_SIZEOF(T, member[0]), 0, 0, MD_TYPE_END, NULL, NULL}
#define MD_COUNTED(T, member, kind, length, length_kind)                                             \
  {#member, kind, 0, offsetof(T, member), MD_SIZEOF(T, member[0]),                                   \
   MD_SIZEOF(T, member) / MD_SIZEOF(T, member[0]), 1, offsetof(T, length), length_kind, NULL, NULL}
#define MD_STRUCT(T, member, device) \
  {#member, MD_TYPE_STRUCT, 0, offsetof(T, member), MD_SIZEOF(T, member), 1, 0, 0, MD_TYPE_END, device, NULL}
#define MD_STRUCT_ARRAY(T, member, device)                                                           \
  {#member, MD_TYPE_STRUCT, 0, offsetof(T, member), MD_SIZEOF(T, member[0]),                         \
   MD_SIZEOF(T, member) / MD_SIZEOF(T, member[0]), 0, 0, MD_TYPE_END, device, NULL}
#define MD_UNUSED(bytes) {"unused", MD_TYPE_UNUSED, 0, 0, bytes, 1, 0, 0, MD_TYPE_END, NULL, NULL}
#define MD_END {NULL, MD_TYPE_END, 0, 0, 0, 0, 0, 0, MD_TYPE_END, NULL, NULL}
/* clang-format on */

/* Hooks return 0, or -1: then the migration fails with a sentence that names the hook. They look at no other device. */
typedef struct md_device {
  const char* name;
  uint32_t version;                           /* written; the newest that can be read */
  uint32_t minimum_version;                   /* the oldest that can be read */
  const md_field* fields;                     /* ends with MD_END */
  const struct md_device* const* subsections; /* NULL, or a list that ends with NULL; named "NAME/..." */
  bool (*needed)(const void* state);          /* of a device or a subsection: whether to send it; NULL: always */
  int (*pre_save)(void* state);
  int (*post_save)(void* state);
  int (*pre_load)(void* state, uint32_t version);
  int (*post_load)(void* state, uint32_t version);
  int unmigratable;  /* its presence forbids migration */
  int early;         /* sent in front of the other devices */
  size_t state_size; /* sizeof the state: then all fields are proved to lie in it; 0: not known */
} md_device;

#define MD_ANY_INSTANCE 0xffffffffU

/* `device`, what it points to and `state` must live as long as the guest. `path`: a bus path in front of the name, or
 * NULL. */
int md_guest_add_device(md_guest* guest, const md_device* device, void* state, const char* path, uint32_t instance);

/* A device whose state is bytes. save() calls md_write() as often as it likes; load() gets all bytes at once. */
void md_write(md_writer* writer, const void* bytes, size_t length);
/* What was written, for the stream's description, instead of one buffer: the members "vmsd_name", "version", "fields"
 * and "subsections" as docs/formats/vmstate.md has them, without braces, printable ASCII. */
void md_describe(md_writer* writer, const char* members);
typedef struct md_opaque {
  size_t size; /* sizeof(md_opaque) */
  const char* name;
  uint32_t version;
  uint32_t minimum_version;
  int (*save)(void* user, md_writer* writer);
  int (*load)(void* user, const void* bytes, size_t length, uint32_t version);
  bool (*needed)(const void* user); /* whether to send it; NULL: always */
  int unmigratable;                 /* its presence forbids migration */
  int early;                        /* sent in front of the other devices */
} md_opaque;
int md_guest_add_opaque(md_guest* guest, const md_opaque* device, void* user, const char* path, uint32_t instance);

/* --- attached --- */
enum md_attach_flags {
  MD_EMPTY = 0, /* waits for an incoming migration */
  MD_PAUSED = 1,
  MD_RUNNING = 2,
  MD_NO_THREAD = 0x100,
};
/* 16 bytes, or NULL for none; before attach. */
int md_guest_set_uuid(md_guest* guest, const uint8_t* uuid);
/* Threads that may wait for a page; 1 if it is never said. Before attach. */
int md_guest_set_vcpus(md_guest* guest, uint32_t vcpus);
int md_guest_attach(md_guest* guest, const char* socket_path, unsigned flags);
/* Back to the state before attach; the daemon has no machine then. Fails while a migration runs. */
int md_guest_detach(md_guest* guest);
int md_guest_is_attached(const md_guest* guest);
/* MD_NO_THREAD: a descriptor to poll for reading, and what to call then. -1: the daemon is gone. */
int md_guest_fd(const md_guest* guest);
int md_guest_dispatch(md_guest* guest);

/* Forbids migration for a reason that `query-migrate` shows. Returns its number (>= 0), or -1. May be called before
 * attach too; blockers are told again to every daemon. Refused while a migration runs. */
int md_guest_add_blocker(md_guest* guest, const char* reason);
int md_guest_delete_blocker(md_guest* guest, int number);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
