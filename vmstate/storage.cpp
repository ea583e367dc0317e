// SPDX-License-Identifier: Apache-2.0
#include "vmstate/storage.hpp"

#include <cstdlib>
#include <cstring>

namespace migrationd::vmstate {
namespace {

// The member is a pointer to something: its bytes are read, for its type is not known.
void* pointed_to(void* member) {
  void* pointer{};
  std::memcpy(&pointer, member, sizeof pointer);
  return pointer;
}

Result<void> make_on_heap(const Field& row, void* member, std::size_t count) {
  std::free(pointed_to(member));
  const std::size_t each = row.is_bitmap ? sizeof(std::uint64_t) : row.count_is_bytes ? 1 : row.stride;
  void* const fresh = count != 0 ? std::calloc(count, each) : nullptr;
  std::memcpy(member, &fresh, sizeof fresh);
  if (fresh == nullptr && count != 0) return machine_error("no memory for it");
  return {};
}

}  // namespace

constinit const Storage heap_storage{&pointed_to, nullptr, &make_on_heap};
constinit const Storage pointer_storage{&pointed_to, nullptr, nullptr};

}  // namespace migrationd::vmstate
