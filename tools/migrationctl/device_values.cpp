// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/device_values.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <string_view>
#include <unordered_set>

namespace migrationd::ctl {

namespace {

// Names in JSON must be text.
std::string safe(std::string_view name) { return printable(name, limits::name_bytes); }

std::string hex_text(ByteView bytes) {
  constexpr std::string_view digits = "0123456789abcdef";
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const std::byte byte : bytes) {
    out += digits[static_cast<std::size_t>(byte >> 4)];
    out += digits[static_cast<std::size_t>(byte & std::byte{15})];
  }
  return out;
}

std::uint64_t load(ByteView bytes) {
  std::uint64_t value = 0;
  for (const std::byte byte : bytes) value = value << 8 | std::to_integer<std::uint64_t>(byte);
  return value;
}

bool is_number(std::string_view type, std::size_t size) {
  const bool power = size == 1 || size == 2 || size == 4 || size == 8;
  return power && (type.starts_with("int") || type.starts_with("uint") || type == "timer");
}

Json one_value(std::string_view type, ByteView bytes) {
  if (type == "bool" && bytes.size() == 1) return bytes[0] != std::byte{0};
  if (!is_number(type, bytes.size())) return hex_text(bytes);
  const std::uint64_t value = load(bytes);
  if (type.starts_with("uint")) return value;
  const auto shift = static_cast<unsigned>(64 - 8 * bytes.size());
  return static_cast<std::int64_t>(value << shift) >> shift;
}

Json value_of(const stream::DescribedField& field, ByteView bytes) {
  const bool scalar = field.type == "bool" || is_number(field.type, field.size);
  if (!field.array_len || !scalar || field.size == 0) return one_value(field.type, bytes);
  Json list = Json::array();
  for (std::size_t at = 0; at + field.size <= bytes.size(); at += field.size)
    list.push_back(one_value(field.type, bytes.subspan(at, field.size)));
  return list;
}

// A tree of objects, built from the outside in.
class Collector final : public stream::StateVisitor {
 public:
  void enter_struct(const stream::DescribedField& field) override { open(safe(field.name)); }
  void enter_subsection(const stream::StateDescription& sub) override { open(safe(sub.vmsd_name)); }
  void leave() override {
    Level done = std::move(levels_.back());
    levels_.pop_back();
    add(levels_.back(), done.name, std::move(done.members));
  }
  void value(const stream::DescribedField& field, ByteView bytes) override {
    add(levels_.back(), safe(field.name), value_of(field, bytes));
  }
  void opaque(ByteView bytes) override { add(levels_.back(), "bytes", hex_text(bytes)); }
  Json take() && { return std::move(levels_.front().members); }

 private:
  // An ordered object looks a name up by going through all of them: here a set knows the names, and members are put
  // behind the others without a look.
  struct Level {
    std::string name;
    Json members = Json::object();
    std::unordered_set<std::string> names;
    std::string last;  // the name that came last: elements of an array follow each other
    bool repeated = false;
  };

  void open(std::string name) {
    levels_.emplace_back();
    levels_.back().name = std::move(name);
  }
  // Elements of an array of structs come one after the other under one name, as do fields that are described one by
  // one.
  static void add(Level& level, const std::string& name, Json value) {
    auto& members = level.members.get_ref<Json::object_t&>();
    if (level.last == name && !members.empty()) {
      Json& there = members.back().second;
      if (!level.repeated) there = Json::array({std::move(there)});
      level.repeated = true;
      there.push_back(std::move(value));
      return;
    }
    level.last = name;
    level.repeated = false;
    // The same name again further on: told apart by its place.
    std::string key = level.names.insert(name).second ? name : fmt::format("{}#{}", name, members.size());
    members.push_back({std::move(key), std::move(value)});
  }

  std::vector<Level> levels_ = std::vector<Level>(1);
};

// The description's entry for a section; they are in the same order, early ones first.
std::optional<Json> values_of(const stream::VmDescription& description, std::size_t index,
                              const stream::DeviceSection& section, stream::WalkBudget& budget) {
  if (index >= description.devices.size()) return std::nullopt;
  const stream::DescribedDevice& device = description.devices[index];
  if (device.name != section.name || device.instance_id != section.instance_id) return std::nullopt;
  Collector collector;
  const auto walked = stream::walk_state(device.state, section.body, budget, &collector);
  if (!walked || *walked != section.body.size()) return std::nullopt;
  return std::move(collector).take();
}

void append_values(std::string& out, const Json& values, unsigned indent) {
  constexpr std::size_t shown = 64;
  for (const auto& [name, value] : values.items()) {
    out += fmt::format("{:{}}{}", "", indent, name);
    if (value.is_object()) {
      out += "\n";
      append_values(out, value, indent + 2);
    } else if (value.is_array() && !value.empty() && value.front().is_object()) {
      out += "\n";
      for (std::size_t i = 0; i < value.size(); ++i) {
        out += fmt::format("{:{}}[{}]\n", "", indent + 2, i);
        append_values(out, value[i], indent + 4);
      }
    } else if (value.is_string()) {
      const auto& text = value.get_ref<const std::string&>();
      out += fmt::format(" = {}{}\n", text.substr(0, shown),
                         text.size() > shown ? fmt::format("... ({} bytes)", text.size() / 2) : "");
    } else {
      out += fmt::format(" = {}\n", value.dump());
    }
  }
}

}  // namespace

std::vector<DescribedSection> describe_devices(const stream::DeviceTailContents& devices) {
  std::optional<stream::VmDescription> description;
  if (devices.description) {
    if (auto parsed = stream::parse_description(*devices.description)) description = std::move(*parsed);
  }
  stream::WalkBudget budget{limits::description_walk_steps};
  std::vector<DescribedSection> out;
  for (std::size_t i = 0; i < devices.sections.size(); ++i) {
    const stream::DeviceSection& section = devices.sections[i];
    DescribedSection one{safe(section.name),  section.instance_id, section.version_id,
                         section.body.size(), section.early,       std::nullopt};
    if (description) one.values = values_of(*description, i, section, budget);
    out.push_back(std::move(one));
  }
  return out;
}

std::string values_text(const Json& values, unsigned indent) {
  std::string out;
  if (values.is_object()) append_values(out, values, indent);
  return out;
}

}  // namespace migrationd::ctl
