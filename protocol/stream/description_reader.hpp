// SPDX-License-Identifier: Apache-2.0
//
// The JSON events of a description, made into a VmDescription while they come. Nothing is kept of what the tree does
// not have, so the memory of a hostile text is bounded by limits::description_nodes, not by its length.
#pragma once

#include "protocol/stream/json_scan.hpp"
#include "protocol/stream/vmdescription.hpp"

#include <cstdint>
#include <string>
#include <vector>

namespace migrationd::stream {

class DescriptionReader final : public JsonEvents {
 public:
  explicit DescriptionReader(VmDescription& out) noexcept : out_(out) {}

  // Empty while all is well.
  const std::string& problem() const noexcept { return problem_; }
  bool saw_devices() const noexcept { return saw_devices_; }

  bool start_object() override;
  bool key(std::string_view name) override;
  bool end_object() override;
  bool start_array() override;
  bool end_array() override;
  bool string(std::string_view value) override;
  bool number(std::uint64_t value) override;
  bool negative(std::int64_t value) override;
  bool other() override { return true; }

 private:
  enum class Place : std::uint8_t {
    skipped,      // nothing in here is ours
    top,          // the outermost object
    devices,      // array of devices
    description,  // a device, a struct or a subsection
    fields,       // array of fields
    field,        // one of them
    subsections,  // array of descriptions
  };
  // The names that mean something somewhere.
  enum class Key : std::uint8_t {
    unknown,
    name,
    type,
    size,
    array_len,
    structure,
    vmsd_name,
    version_id,
    fields,
    subsections,
    instance_id,
    devices,
    page_size,
  };
  // Pointers stay valid while their frame is open: a container grows only between its elements.
  struct Frame {
    Place place = Place::skipped;
    StateDescription* state = nullptr;  // description; the owner for fields and subsections
    DescribedDevice* device = nullptr;  // a device's description only
    DescribedField* field = nullptr;
    bool is_struct = false;  // field: its type is "struct"
    bool has_size = false;
    bool has_fields = false;
    bool has_name = false;
    Key key = Key::unknown;
  };

  bool fail(std::string problem);
  static Key meaning_of(std::string_view name) noexcept;
  bool push(const Frame& frame);
  bool count_node();
  bool add_device();
  bool add_field();
  bool add_subsection();
  bool start_description_of_field();
  bool close_field(const Frame& frame);
  bool close_description(const Frame& frame);

  VmDescription& out_;
  std::vector<Frame> frames_;
  std::size_t nodes_ = 0;
  bool saw_devices_ = false;
  std::string problem_;
};

}  // namespace migrationd::stream
