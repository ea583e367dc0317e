// SPDX-License-Identifier: Apache-2.0
//
// Devices: what of a guest is not memory. Described ones (tables) and opaque ones (bytes) in one list, in the order
// they were added, which is the order they are saved in.
//
// Loading finds a device by (id string, instance), or one with a path by its bare name and its number among those of
// that name, as QEMU does.
//
// Thread: added by one thread before the guest attaches; then used by the serving thread.
#pragma once

#include "base/result.hpp"
#include "guest/migrationd_guest.h"
#include "guest/protocol.hpp"
#include "guest/tables.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

// What md_write() and md_describe() fill.
struct md_writer {
  migrationd::Bytes bytes;
  std::string description;
  bool is_full = false;  // more than the bound was written
};

namespace migrationd::guest {

class Devices {
 public:
  explicit Devices(Words& words) noexcept : words_(words), tables_(words) {}

  Result<void> add(const md_device& device, void* state, std::string_view path, std::uint32_t instance);
  Result<void> add(const md_opaque& device, void* user, std::string_view path, std::uint32_t instance);

  // What the daemon is told of each.
  std::vector<AddDevice> messages() const;

  // The state of all devices that are needed.
  Result<std::vector<StateSection>> save();
  // Errors: an unknown device or version, a state that does not fit, a hook that refused. Then some devices are loaded
  // and others not.
  Result<void> load(const std::vector<StateSection>& sections);

 private:
  struct Device {
    AddDevice facts;
    std::string name;                // without the path
    std::uint32_t of_that_name = 0;  // its number among those
    const Table* table = nullptr;    // null: opaque
    md_opaque opaque{};
    void* state = nullptr;  // or the opaque one's `user`
  };

  Result<void> insert(Device device, std::string_view path, std::uint32_t instance);
  Device* find(const StateSection& section);
  Result<StateSection> save_one(const Device& device);
  Result<void> save_opaque(const Device& device, StateSection& out);
  Result<void> load_one(const Device& device, const StateSection& section);

  Words& words_;
  Tables tables_;
  std::vector<Device> devices_;
};

}  // namespace migrationd::guest
