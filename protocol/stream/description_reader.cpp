// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/description_reader.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <array>
#include <limits>
#include <utility>

namespace migrationd::stream {

bool DescriptionReader::fail(std::string problem) {
  if (problem_.empty()) problem_ = std::move(problem);
  return false;
}

bool DescriptionReader::push(const Frame& frame) {
  if (frames_.size() >= limits::description_nesting) {
    return fail(fmt::format("nested deeper than {} levels", limits::description_nesting));
  }
  frames_.push_back(frame);
  return true;
}

bool DescriptionReader::count_node() {
  if (++nodes_ > limits::description_nodes) return fail(fmt::format("more than {} nodes", limits::description_nodes));
  return true;
}

bool DescriptionReader::add_device() {
  if (out_.devices.size() >= limits::sections) return fail(fmt::format("more than {} devices", limits::sections));
  DescribedDevice& device = out_.devices.emplace_back();
  Frame frame;
  frame.place = Place::description;
  frame.device = &device;
  frame.state = &device.state;
  return count_node() && push(frame);
}

bool DescriptionReader::add_field() {
  Frame frame;
  frame.place = Place::field;
  frame.field = &frames_.back().state->fields.emplace_back();
  return count_node() && push(frame);
}

bool DescriptionReader::add_subsection() {
  Frame frame;
  frame.place = Place::description;
  frame.state = &frames_.back().state->subsections.emplace_back();
  return count_node() && push(frame);
}

bool DescriptionReader::start_description_of_field() {
  DescribedField& field = *frames_.back().field;
  if (field.structure) return fail("a field has two \"struct\" members");
  field.structure = std::make_unique<StateDescription>();
  Frame frame;
  frame.place = Place::description;
  frame.state = field.structure.get();
  return count_node() && push(frame);
}

bool DescriptionReader::start_object() {
  Frame skipped;
  if (frames_.empty()) {
    Frame top;
    top.place = Place::top;
    return push(top);
  }
  switch (frames_.back().place) {
    case Place::devices:
      return add_device();
    case Place::fields:
      return add_field();
    case Place::subsections:
      return add_subsection();
    case Place::field:
      if (frames_.back().key == Key::structure) return start_description_of_field();
      break;
    case Place::skipped:
    case Place::top:
    case Place::description:
      break;
  }
  return push(skipped);
}

bool DescriptionReader::start_array() {
  if (frames_.empty()) return fail("not an object");
  Frame frame;
  Frame& parent = frames_.back();
  if (parent.place == Place::top && parent.key == Key::devices) {
    if (saw_devices_) return fail("two \"devices\" members");
    saw_devices_ = true;
    frame.place = Place::devices;
  } else if (parent.place == Place::description && parent.key == Key::fields) {
    if (parent.has_fields) return fail("two \"fields\" members in one description");
    parent.has_fields = true;
    frame.place = Place::fields;
    frame.state = parent.state;
  } else if (parent.place == Place::description && parent.key == Key::subsections) {
    frame.place = Place::subsections;
    frame.state = parent.state;
  } else if (parent.place == Place::devices || parent.place == Place::fields || parent.place == Place::subsections) {
    return fail("an array where an object is due");
  }
  return push(frame);
}

bool DescriptionReader::end_array() {
  frames_.pop_back();
  return true;
}

bool DescriptionReader::end_object() {
  const Frame frame = frames_.back();
  frames_.pop_back();
  if (frame.place == Place::field) return close_field(frame);
  if (frame.place == Place::description) return close_description(frame);
  return true;
}

bool DescriptionReader::close_field(const Frame& frame) {
  if (!frame.has_size) return fail(fmt::format("field '{}' has no size", printable(frame.field->name)));
  // Only type "struct" is walked; a description under another type's name is not used.
  if (!frame.is_struct) frame.field->structure.reset();
  if (frame.is_struct && !frame.field->structure) {
    return fail(fmt::format("field '{}' has no struct", printable(frame.field->name)));
  }
  return true;
}

bool DescriptionReader::close_description(const Frame& frame) {
  if (frame.device != nullptr && !frame.has_name) return fail("a device has no name");
  if (!frame.state->has_vmsd_name && !frame.state->size) return fail("a description has neither a name nor a size");
  return true;
}

DescriptionReader::Key DescriptionReader::meaning_of(std::string_view name) noexcept {
  // Most frequent first.
  static constexpr std::array<std::pair<std::string_view, Key>, 12> names{{{"name", Key::name},
                                                                           {"type", Key::type},
                                                                           {"size", Key::size},
                                                                           {"array_len", Key::array_len},
                                                                           {"struct", Key::structure},
                                                                           {"vmsd_name", Key::vmsd_name},
                                                                           {"version", Key::version_id},
                                                                           {"fields", Key::fields},
                                                                           {"subsections", Key::subsections},
                                                                           {"instance_id", Key::instance_id},
                                                                           {"devices", Key::devices},
                                                                           {"page_size", Key::page_size}}};
  for (const auto& [text, key] : names) {
    if (text == name) return key;
  }
  return Key::unknown;
}

bool DescriptionReader::key(std::string_view name) {
  frames_.back().key = meaning_of(name);
  return true;
}

bool DescriptionReader::number(std::uint64_t value) {
  if (frames_.empty()) return fail("not an object");
  Frame& frame = frames_.back();
  const bool fits_u32 = value <= std::numeric_limits<std::uint32_t>::max();
  if (frame.place == Place::top && frame.key == Key::page_size) out_.page_size = value;
  if (frame.place == Place::field) {
    if (frame.key == Key::array_len) frame.field->array_len = value;
    if (frame.key == Key::size) {
      frame.field->size = value;
      frame.has_size = true;
    }
  }
  if (frame.place == Place::description) {
    if (frame.key == Key::size) frame.state->size = value;
    if (frame.key == Key::version_id) {
      if (!fits_u32) return fail("a version is too large");
      frame.state->version = static_cast<std::uint32_t>(value);
    }
    if (frame.key == Key::instance_id && frame.device != nullptr) {
      if (!fits_u32) return fail("an instance id is too large");
      frame.device->instance_id = static_cast<std::uint32_t>(value);
    }
  }
  return true;
}

bool DescriptionReader::negative(std::int64_t value) {
  if (frames_.empty()) return fail("not an object");
  // Versions and ids are written signed by QEMU.
  const Frame& frame = frames_.back();
  const bool as_u32 =
      frame.place == Place::description && (frame.key == Key::version_id || frame.key == Key::instance_id);
  if (as_u32 && value >= std::numeric_limits<std::int32_t>::min()) {
    return number(static_cast<std::uint32_t>(static_cast<std::int32_t>(value)));
  }
  const bool counted = frame.key == Key::size || frame.key == Key::array_len;
  if (counted && (frame.place == Place::field || frame.place == Place::description)) return fail("a negative size");
  return true;
}

bool DescriptionReader::string(std::string_view value) {
  if (frames_.empty()) return fail("not an object");
  Frame& frame = frames_.back();
  const auto take_name = [&](std::string& target) {
    if (value.size() > limits::name_bytes) return fail("a name is longer than 255 bytes");
    target = value;
    return true;
  };
  if (frame.place == Place::field && frame.key == Key::type) {
    frame.is_struct = value == "struct";
    frame.field->type = value.substr(0, 24);
  } else if (frame.place == Place::field && frame.key == Key::name) {
    // Field names never meet a length byte; they are only shown.
    frame.field->name = value.substr(0, limits::name_bytes);
  } else if (frame.place == Place::description && frame.key == Key::vmsd_name) {
    frame.state->has_vmsd_name = true;
    return take_name(frame.state->vmsd_name);
  } else if (frame.place == Place::description && frame.key == Key::name && frame.device != nullptr) {
    frame.has_name = true;
    return take_name(frame.device->name);
  }
  return true;
}

}  // namespace migrationd::stream
