// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/device_tables.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <limits>

namespace migrationd::ctl {
namespace {

constexpr unsigned tables_depth = 64;  // the library's own bound is 16

// Reads members of one object; the first thing wrong is kept.
class Members {
 public:
  explicit Members(const Json& object) : object_(object) {
    if (!object.is_object()) fail("an object is missing");
  }

  std::string text(const char* name, bool required) {
    const Json* const value = find(name, required);
    if (value == nullptr) return {};
    if (!value->is_string()) return fail(fmt::format("'{}' is no text", name)), std::string();
    return value->get<std::string>();
  }
  template <class T>
  T number(const char* name, T otherwise, bool required = false) {
    const Json* const value = find(name, required);
    if (value == nullptr) return otherwise;
    if (!value->is_number_unsigned() || value->get<std::uint64_t>() > std::numeric_limits<T>::max()) {
      fail(fmt::format("'{}' is no number", name));
      return otherwise;
    }
    return value->get<T>();
  }
  bool flag(const char* name) {
    const Json* const value = find(name, false);
    return value != nullptr && value->is_boolean() && value->get<bool>();
  }
  const Json* find(const char* name, bool required) {
    const auto found = object_.is_object() ? object_.find(name) : object_.end();
    if (object_.is_object() && found != object_.end()) return &*found;
    if (required) fail(fmt::format("'{}' is missing", name));
    return nullptr;
  }
  void fail(std::string what) {
    if (problem_.empty()) problem_ = std::move(what);
  }
  Result<void> done() const {
    if (problem_.empty()) return {};
    return wire_error(problem_);
  }

 private:
  const Json& object_;
  std::string problem_;
};

Result<Table> table_of(const Json& json, unsigned depth);

Result<std::shared_ptr<const Table>> nested_table(const Json* json, unsigned depth) {
  if (json == nullptr) return std::shared_ptr<const Table>();
  MD_TRY(Table table, table_of(*json, depth + 1));
  return std::make_shared<const Table>(std::move(table));
}

Result<TableField> field_of(const Json& json, unsigned depth) {
  Members members(json);
  TableField field;
  field.name = members.text("name", true);
  field.type = members.text("type", true);
  field.shape = members.text("shape", false);
  field.size = members.number<std::uint64_t>("size", 0);
  field.elements = members.number<std::uint64_t>("elements", 1);
  field.count = members.text("count", false);
  field.times = members.number<std::uint64_t>("times", 1);
  field.bound = members.number<std::uint64_t>("bound", 0);
  field.since = members.number<std::uint32_t>("since", 0);
  field.until = members.number<std::uint32_t>("until", field.until);
  field.conditional = members.flag("conditional");
  field.required = members.flag("required");
  if (members.find("struct_version", false) != nullptr) {
    field.struct_version = members.number<std::uint32_t>("struct_version", 0);
  }
  MD_CHECK(members.done());
  MD_TRY(field.key, nested_table(members.find("key", false), depth));
  MD_TRY(field.child, nested_table(members.find("struct", false), depth));
  return field;
}

Result<Table> table_of(const Json& json, unsigned depth) {
  if (depth > tables_depth) return wire_error("tables are nested too deep");
  Members members(json);
  Table table;
  table.legacy = members.flag("legacy");
  table.name = members.text("vmsd_name", !table.legacy);
  table.version = members.number<std::uint32_t>("version", 0, true);
  table.minimum = members.number<std::uint32_t>("minimum_version", 0);
  if (members.find("minimum_version_old", false) != nullptr) {
    table.minimum_old = members.number<std::uint32_t>("minimum_version_old", 0);
  }
  table.optional = members.flag("optional");
  table.unmigratable = members.flag("unmigratable");
  const Json* const fields = members.find("fields", !table.legacy);
  const Json* const parts = members.find("subsections", false);
  if (fields != nullptr && !fields->is_array()) members.fail("'fields' is no list");
  if (parts != nullptr && !parts->is_array()) members.fail("'subsections' is no list");
  MD_CHECK(members.done());
  if (fields != nullptr) {
    for (const Json& one : *fields) {
      auto field = field_of(one, depth);
      if (!field) return std::move(field).error().with(fmt::format("'{}'", printable(table.name)));
      table.fields.push_back(std::move(*field));
    }
  }
  if (parts != nullptr) {
    for (const Json& one : *parts) {
      MD_TRY(Table part, table_of(one, depth + 1));
      table.subsections.push_back(std::move(part));
    }
  }
  return table;
}

}  // namespace

Result<TableSet> parse_tables(std::string_view text) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_discarded()) return wire_error("this is no JSON");
  Members members(json);
  TableSet set;
  if (members.number<unsigned>("device-tables", 0) != 1) {
    return wire_error("this is no dump of device tables (\"device-tables\": 1)");
  }
  set.machine = members.text("machine", false);
  const Json* const devices = members.find("devices", true);
  if (devices != nullptr && !devices->is_array()) members.fail("'devices' is no list");
  MD_CHECK(members.done());
  for (const Json& one : *devices) {
    Members named(one);
    TableDevice device;
    device.id = named.text("name", true);
    device.instance = named.number<std::uint32_t>("instance_id", 0);
    MD_CHECK(named.done());
    auto table = table_of(one, 0);
    if (!table) return std::move(table).error().with(fmt::format("device '{}'", printable(device.id)));
    device.table = std::move(*table);
    set.devices.push_back(std::move(device));
  }
  return set;
}

Result<TableSet> read_tables(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return Error::from_errno(fmt::format("open {}", printable(path, printable_address_bytes)));
  std::string text;
  std::vector<char> piece(1 << 16);
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())), file.gcount() > 0) {
    text.append(piece.data(), static_cast<std::size_t>(file.gcount()));
    if (text.size() > limits::description_bytes) {
      return Error(ErrorKind::limit, fmt::format("{} is above {} bytes", printable(path, printable_address_bytes),
                                                 limits::description_bytes));
    }
  }
  auto set = parse_tables(text);
  if (!set) return std::move(set).error().with(printable(path, printable_address_bytes));
  return set;
}

std::string_view to_name(Severity severity) {
  switch (severity) {
    case Severity::note:
      return "note";
    case Severity::sometimes:
      return "sometimes";
    case Severity::never:
      return "never";
  }
  return "never";
}

Severity Comparison::worst() const {
  Severity out = Severity::note;
  for (const TableFinding& finding : findings) out = std::max(out, finding.severity);
  return out;
}

}  // namespace migrationd::ctl
