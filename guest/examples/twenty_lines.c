/* SPDX-License-Identifier: Apache-2.0
 *
 * The smallest guest: a counter that goes on counting elsewhere.
 *   twenty-lines SOCKET          counts, attached to the daemon behind SOCKET
 *   twenty-lines SOCKET empty    waits for it at the far end
 */
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "guest/migrationd_guest.h"

static sem_t turn; /* whoever has it may write: the loop below, or the daemon */
static struct counter { uint32_t value; } state;
static const md_field fields[] = {MD_U32(struct counter, value), MD_END};
static const md_device device = {.name = "counter", .version = 1, .fields = fields};

static int stop(void* user) { return (void)user, sem_wait(&turn); }
static int start(void* user) { return (void)user, sem_post(&turn); }
static void event(void* user, enum md_event what, const char* why) {
  if (what == MD_LEFT) printf("left %s\n", why), fflush(stdout), _exit(user != NULL);
}

int main(int argc, char** argv) {
  md_callbacks callbacks = {.size = sizeof callbacks, .stop = stop, .start = start, .event = event};
  md_guest* guest = md_guest_new("twenty-lines", &callbacks, NULL);
  uint32_t* memory = md_guest_new_block(guest, "ram", 64 << 20, 4096, MD_TRACK_WRITE_PROTECT);
  sem_init(&turn, 0, argc < 3);
  if (!memory || md_guest_add_device(guest, &device, &state, NULL, MD_ANY_INSTANCE) ||
      md_guest_attach(guest, argv[1], argc < 3 ? MD_RUNNING : MD_EMPTY))
    return fprintf(stderr, "%s\n", md_guest_error(guest)), 1;
  for (; sem_wait(&turn) == 0; sem_post(&turn), usleep(100)) {
    if (memory[state.value % 16384 * 1024] > state.value) return fprintf(stderr, "memory from the future\n"), 1;
    memory[state.value % 16384 * 1024] = state.value;
    if (++state.value % 1000 == 0) printf("counter %u\n", state.value), fflush(stdout);
  }
}
