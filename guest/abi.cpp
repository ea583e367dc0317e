// SPDX-License-Identifier: Apache-2.0
//
// The C interface. Nothing that is thrown gets past here: every function ends in an int or a pointer, and the reason
// for a failure is kept for the calling thread.
#include "guest/guest.hpp"

#include <cstring>
#include <exception>
#include <memory>
#include <string>

using migrationd::Error;
using migrationd::Result;
using migrationd::guest::Guest;

struct md_guest {
  std::unique_ptr<Guest> guest;
};

namespace {

thread_local std::string last_error;

void keep_error(const char* text) noexcept {
  try {
    last_error = text;
  } catch (const std::exception&) {
    last_error.clear();
  }
}

// Runs `function`, which returns a Result<Value>; `failed` stands for its error.
template <class Value, class Function>
Value guarded(Value failed, Function function) noexcept {
  try {
    auto result = function();
    if (result) return *std::move(result);
    keep_error(result.error().text().c_str());
  } catch (const std::exception& failure) {
    keep_error(failure.what());
  }
  return failed;
}

// The same for functions that return 0 or -1.
template <class Function>
int status(Function function) noexcept {
  return guarded(-1, [&]() -> Result<int> {
    MD_CHECK(function());
    return 0;
  });
}

Result<void> prove(const md_guest* guest) {
  if (guest == nullptr) return migrationd::plan_error("the guest is NULL");
  return {};
}

Result<migrationd::guest::Tracking> tracking_of(md_tracking value) {
  const auto number = static_cast<unsigned>(value);
  if (number > MD_TRACK_BOTH) return migrationd::plan_error("tracking is none of enum md_tracking");
  return static_cast<migrationd::guest::Tracking>(number);
}

std::string_view text_of(const char* text) noexcept { return text == nullptr ? std::string_view{} : text; }

}  // namespace

extern "C" {

md_guest* md_guest_new(const char* machine_name, const md_callbacks* callbacks, void* user) {
  return guarded(static_cast<md_guest*>(nullptr), [&]() -> Result<md_guest*> {
    MD_TRY(auto guest, Guest::make(machine_name, callbacks, user));
    return new md_guest{std::move(guest)};
  });
}

void md_guest_free(md_guest* guest) {
  // In a callback there is no way to end the thread that runs it.
  if (guest == nullptr || guest->guest->is_serving_here()) return;
  // Of the rest of a guest whose thread does not exist here nothing can be undone; it is the child's copy.
  if (guest->guest->is_in_child()) return guest->guest->leave();
  status([&]() -> Result<void> {
    delete guest;
    return {};
  });
}

const char* md_guest_error(const md_guest* /*guest*/) { return last_error.c_str(); }

int md_guest_refuse(md_guest* guest, const char* why) {
  status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    guest->guest->words().say(std::string(text_of(why)));
    return {};
  });
  return -1;
}

void* md_guest_new_block(md_guest* guest, const char* name, uint64_t length, uint32_t page_size,
                         enum md_tracking tracking) {
  return guarded(static_cast<void*>(nullptr), [&]() -> Result<void*> {
    MD_CHECK(prove(guest));
    MD_TRY(const auto kind, tracking_of(tracking));
    MD_TRY(auto* const blocks, guest->guest->blocks_to_change());
    MD_TRY(std::byte* const address, blocks->create(text_of(name), length, page_size, kind));
    return address;
  });
}

int md_guest_add_block(md_guest* guest, const char* name, void* address, uint64_t length, int fd,
                       enum md_tracking tracking) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    MD_TRY(const auto kind, tracking_of(tracking));
    MD_TRY(auto* const blocks, guest->guest->blocks_to_change());
    return blocks->adopt(text_of(name), static_cast<std::byte*>(address), length, fd, kind);
  });
}

int md_guest_block_fd(const md_guest* guest, const char* name) {
  return guarded(-1, [&]() -> Result<int> {
    MD_CHECK(prove(guest));
    MD_TRY(const std::size_t at, guest->guest->blocks().find(text_of(name)));
    return guest->guest->blocks().all()[at].memory.get();
  });
}

unsigned char* md_guest_bitmap(const md_guest* guest, const char* name, int* fd) {
  return guarded(static_cast<unsigned char*>(nullptr), [&]() -> Result<unsigned char*> {
    MD_CHECK(prove(guest));
    MD_TRY(const std::size_t at, guest->guest->blocks().find(text_of(name)));
    const auto& block = guest->guest->blocks().all()[at];
    if (!block.bitmap) return migrationd::plan_error("block '" + block.name + "' is not tracked by a bitmap");
    if (fd != nullptr) *fd = block.bitmap.get();
    return reinterpret_cast<unsigned char*>(block.bits.address());
  });
}

int md_guest_give_back(md_guest* guest, const char* name, uint64_t offset, uint64_t length) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->give_back(name == nullptr ? "" : name, offset, length, true);
  });
}

int md_guest_given_back(md_guest* guest, const char* name, uint64_t offset, uint64_t length) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->give_back(name == nullptr ? "" : name, offset, length, false);
  });
}

int md_guest_add_device(md_guest* guest, const md_device* device, void* state, const char* path, uint32_t instance) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    if (device == nullptr || state == nullptr) return migrationd::plan_error("device or state is NULL");
    MD_TRY(auto* const devices, guest->guest->devices_to_change());
    return devices->add(*device, state, text_of(path), instance);
  });
}

void md_write(md_writer* writer, const void* bytes, size_t length) {
  if (writer == nullptr || length == 0) return;
  status([&]() -> Result<void> {
    // Kept as a fault of the writer: the function that calls this returns nothing.
    writer->is_full = writer->is_full || length > migrationd::limits::device_state_bytes - writer->bytes.size();
    if (writer->is_full) return {};
    const auto* const from = static_cast<const std::byte*>(bytes);
    writer->bytes.insert(writer->bytes.end(), from, from + length);
    return {};
  });
}

void md_describe(md_writer* writer, const char* members) {
  if (writer == nullptr) return;
  status([&]() -> Result<void> {
    writer->description = text_of(members);
    return {};
  });
}

int md_guest_add_opaque(md_guest* guest, const md_opaque* device, void* user, const char* path, uint32_t instance) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    if (device == nullptr || device->size < sizeof device->size) {
      return migrationd::plan_error("opaque device: `size` is not sizeof(md_opaque)");
    }
    md_opaque known{};
    std::memcpy(&known, device, std::min(device->size, sizeof known));
    MD_TRY(auto* const devices, guest->guest->devices_to_change());
    return devices->add(known, user, text_of(path), instance);
  });
}

int md_guest_set_uuid(md_guest* guest, const uint8_t* uuid) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->set_uuid(uuid);
  });
}

int md_guest_set_vcpus(md_guest* guest, uint32_t vcpus) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->set_vcpus(vcpus);
  });
}

int md_guest_attach(md_guest* guest, const char* socket_path, unsigned flags) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->attach(socket_path, flags);
  });
}

int md_guest_detach(md_guest* guest) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->detach();
  });
}

int md_guest_is_attached(const md_guest* guest) {
  return guarded(0, [&]() -> Result<int> {
    MD_CHECK(prove(guest));
    return guest->guest->is_attached() ? 1 : 0;
  });
}

int md_guest_fd(const md_guest* guest) {
  return guarded(-1, [&]() -> Result<int> {
    MD_CHECK(prove(guest));
    return guest->guest->loop_fd();
  });
}

int md_guest_dispatch(md_guest* guest) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->dispatch();
  });
}

int md_guest_add_blocker(md_guest* guest, const char* reason) {
  return guarded(-1, [&]() -> Result<int> {
    MD_CHECK(prove(guest));
    return guest->guest->add_blocker(reason);
  });
}

int md_guest_delete_blocker(md_guest* guest, int number) {
  return status([&]() -> Result<void> {
    MD_CHECK(prove(guest));
    return guest->guest->delete_blocker(number);
  });
}

}  // extern "C"
