// SPDX-License-Identifier: Apache-2.0
//
// The JSON events of a description, made into a VmDescription while they come. Nothing is kept of what the tree does
// not have, so the memory of a hostile text is bounded by limits::description_nodes, not by its length.
#pragma once

#include "protocol/stream/vmdescription.hpp"

#include <nlohmann/json.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace migrationd::stream {

class DescriptionReader {
 public:
  using number_integer_t = nlohmann::json::number_integer_t;
  using number_unsigned_t = nlohmann::json::number_unsigned_t;
  using number_float_t = nlohmann::json::number_float_t;
  using string_t = nlohmann::json::string_t;
  using binary_t = nlohmann::json::binary_t;

  explicit DescriptionReader(VmDescription& out) noexcept : out_(out) {}

  // Empty while all is well.
  const std::string& problem() const noexcept { return problem_; }
  bool saw_devices() const noexcept { return saw_devices_; }

  // nlohmann's SAX interface; false stops the parser.
  bool null() { return true; }
  bool boolean(bool) { return true; }
  bool number_integer(number_integer_t value);
  bool number_unsigned(number_unsigned_t value);
  bool number_float(number_float_t, const string_t&) { return true; }
  bool string(string_t& value);
  bool binary(binary_t&) { return true; }
  bool start_object(std::size_t);
  bool end_object();
  bool start_array(std::size_t);
  bool end_array();
  bool key(string_t& name);
  bool parse_error(std::size_t position, const std::string& token, const nlohmann::detail::exception& error);

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
    std::string key;
  };

  bool fail(std::string problem);
  bool push(Frame frame);
  bool count_node();
  bool add_device();
  bool add_field();
  bool add_subsection();
  bool start_description_of_field();
  bool take_number(std::uint64_t value);
  bool close_field(const Frame& frame);
  bool close_description(const Frame& frame);

  VmDescription& out_;
  std::vector<Frame> frames_;
  std::size_t nodes_ = 0;
  bool saw_devices_ = false;
  std::string problem_;
};

}  // namespace migrationd::stream
