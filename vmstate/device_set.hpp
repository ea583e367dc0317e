// SPDX-License-Identifier: Apache-2.0
//
// DeviceSet: the devices of one machine, by the names they have in a stream.
//
// A device is a description and an object. Its id string is "PATH/NAME" when it sits at a bus path, else the
// description's name; equal strings are told apart by the instance id. The set is ordered by priority, highest
// first, then by registration; saving walks that order. Loading takes sections in any order and finds the device
// by (id string, instance id or alias), or by its bare description name for a device with a path
// (docs/formats/vmstate.md, "Registration").
//
// A device's bytes travel in one FULL section. Framing it is not this folder's work: a Section here is what
// stands between the section type and the footer.
//
// Thread: a DeviceSet, its objects and a LoadPass belong to one thread. Objects outlive the set.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "vmstate/blockers.hpp"
#include "vmstate/description.hpp"
#include "vmstate/self_description.hpp"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::vmstate {

struct Identity {
  std::string path{};                          // bus path, "0000:00:03.0"; empty: none
  std::optional<std::uint32_t> instance_id{};  // none: the first free one
  // A second instance id that old streams have, and the oldest version of the description that can bring it (not below
  // its minimum).
  std::optional<std::uint32_t> alias_id{};
  std::uint32_t alias_since_version = 0;
  // Among the devices of the same description, for streams that name only that; none: in order of registration.
  std::optional<std::uint32_t> compat_instance_id{};
};

// A device without a table: bytes of its own making.
struct LegacyHandlers {
  std::uint32_t version = 0;  // written; the newest that can be read, older ones are load's business
  std::function<Result<void>(ByteWriter& out)> save{};
  // Reads exactly its own bytes.
  std::function<Result<void>(ByteReader& in, std::uint32_t version)> load{};
};

struct SavedSection {
  std::uint32_t section_id = 0;
  std::string name;
  std::uint32_t instance_id = 0;
  std::uint32_t version_id = 0;
  Bytes body;
  bool early = false;   // belongs to the setup phase
  bool legacy = false;  // without a table: described as one buffer
  Layout layout;
};

// One section to be loaded. The views are used during the call only; the name is a peer's and may hold anything.
struct SectionView {
  std::string_view name;
  std::uint32_t instance_id = 0;
  std::uint32_t version_id = 0;
  ByteView body;
};

class DeviceSet {
 public:
  // Section ids are handed out from `first_section_id` on, one per device, whether it sends anything or not.
  explicit DeviceSet(std::uint32_t first_section_id = 0) noexcept : next_section_id_(first_section_id) {}

  // Errors (ErrorKind::machine): the id string is longer than 255 bytes, or the pair is taken, an alias below the
  // minimum version, or the device forbids migration where only what can be migrated is wanted.
  template <class T>
  Result<void> add(const DescriptionOf<T>& table, T& object, Identity identity = {}) {
    return add_table(table, &object, std::move(identity));
  }
  // The same for a table made at run time: `object` is what it describes.
  Result<void> add_table(const Description& table, void* object, Identity identity = {});
  // A device that writes and reads its bytes itself, under a name. Errors as add().
  Result<void> add_legacy(std::string id, LegacyHandlers handlers, std::optional<std::uint32_t> instance_id = {});
  // Takes out the devices of this object. Not while a LoadPass is in use.
  void remove(const void* object);

  std::size_t size() const noexcept { return devices_.size(); }

  // Reasons of the moment. Those of the devices themselves are not in here.
  Blockers& blockers() noexcept { return blockers_; }
  const Blockers& blockers() const noexcept { return blockers_; }
  // The blockers of the mode, the oldest first, then "non-migratable device: ID" of every device that forbids
  // migration.
  std::vector<std::string> blocked_reasons(MigrationMode mode = MigrationMode::normal) const;
  // With the text that migrate fails with.
  Result<void> may_migrate(MigrationMode mode = MigrationMode::normal) const;

  // Id strings of the devices the guest still has to release; a migration waits until there are none.
  std::vector<std::string> unplug_pending() const;

  // Makes the devices those of a machine version: `versions` newest first (vmstate/property.hpp). Rows for devices that
  // are not here are passed over. Errors (ErrorKind::plan): an unknown version, property or value.
  Result<void> become(std::string_view version, std::span<const MachineVersion> versions);

  // All devices that are needed, early ones first, each class in the set's order. Refused as by may_migrate(). The
  // objects are as before afterwards, as far as their hooks keep to the rules.
  Result<std::vector<SavedSection>> save(MigrationMode mode = MigrationMode::normal);

  // The tables as JSON, for `migrationctl compare-devices` (docs/formats/vmstate.md, "Tables as JSON").
  std::string dump_tables(std::string_view machine = {}) const;

 private:
  friend class LoadPass;

  struct LegacyDevice {
    std::string id;
    Description table;  // name and version
    LegacyHandlers handlers;
  };
  struct Device {
    const Description* table = nullptr;
    void* object = nullptr;
    std::string id;  // as in the stream
    std::uint32_t instance_id = 0;
    std::optional<std::uint32_t> alias_id;
    std::uint32_t compat_instance_id = 0;  // by description name; devices with a path
    bool has_path = false;
    std::uint32_t section_id = 0;
    std::unique_ptr<LegacyDevice> legacy;

    bool answers_to(std::string_view name, std::uint32_t instance) const;
  };

  Result<void> insert(Device device, const Identity& identity);
  Result<SavedSection> save_device(const Device& device) const;
  Result<void> apply(const CompatProperty& compat);
  std::uint32_t free_instance(std::string_view id) const;
  std::optional<std::size_t> find(std::string_view id, std::uint32_t instance_id) const;

  std::vector<Device> devices_;
  Blockers blockers_;
  std::uint32_t next_section_id_;
};

// Loads the sections of one stream into a set. A second section for one device is refused.
class LoadPass {
 public:
  explicit LoadPass(DeviceSet& set) : set_(set), loaded_(set.devices_.size(), false) {}

  // Loads one section whose body is known as a whole; bytes left over are an error.
  Result<void> load(const SectionView& section);
  // Loads one section from a stream that goes on behind it; `in` is left where the footer must be.
  Result<void> load(std::string_view name, std::uint32_t instance_id, std::uint32_t version_id, ByteReader& in);
  // Id strings of the devices that no section was loaded for, in the set's order.
  std::vector<std::string> missing() const;

 private:
  DeviceSet& set_;
  std::vector<bool> loaded_;
};

// The JSON text that describes the sections, as it stands behind a stream. `configuration`, if not null, is the
// layout of the configuration section. Padded by description_padding().
std::string describe_stream(std::span<const SavedSection> sections, std::uint32_t page_size,
                            const Layout* configuration = nullptr);

}  // namespace migrationd::vmstate
