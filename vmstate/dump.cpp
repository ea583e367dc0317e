// SPDX-License-Identifier: Apache-2.0
#include "vmstate/dump.hpp"

#include "vmstate/self_description.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::vmstate {
namespace {

std::string table_members(const Description& table);

std::string_view kind_name(ShapeKind kind) {
  switch (kind) {
    case ShapeKind::flat:
      return "array";
    case ShapeKind::pointers:
      return "pointers";
    case ShapeKind::sequence:
      return "sequence";
    case ShapeKind::tree:
      return "tree";
    case ShapeKind::view:
      return "view";
  }
  return "array";
}

std::string_view type_of(const Field& row) {
  if (!row.type_name.empty()) return row.type_name;
  if (row.nested != nullptr) return row.is_versioned ? "vstruct" : "struct";
  return row.codec->name;
}

// Bytes of one element on the wire, where all have the same: codecs with a length, and buffers of a fixed one.
std::size_t element_bytes(const Field& row) {
  if (row.nested != nullptr || row.codec == nullptr) return 0;
  if (row.codec->wire_bytes != 0) return row.codec->wire_bytes;
  return row.is_bitmap ? bitmap_words(row.bytes) * sizeof(std::uint64_t) : row.bytes;
}

std::string_view counting_field(const Description& table, const Field& row) {
  const auto found = std::find_if(table.rows.begin(), table.rows.end(), [&](const Field& other) {
    return other.member != 0 && other.member == row.count_member;
  });
  return found == table.rows.end() ? std::string_view("?") : found->name;
}

std::string field_members(const Description& table, const Field& row) {
  std::string out = fmt::format("\"name\": {}, \"type\": {}", json_string(row.name), json_string(type_of(row)));
  if (row.shape->kind != ShapeKind::flat) out += fmt::format(", \"shape\": \"{}\"", kind_name(row.shape->kind));
  if (const std::size_t bytes = element_bytes(row); bytes != 0) out += fmt::format(", \"size\": {}", bytes);
  const bool is_container = row.shape->kind == ShapeKind::sequence || row.shape->kind == ShapeKind::tree;
  if (row.is_counted) {
    out += fmt::format(", \"count\": {}", json_string(counting_field(table, row)));
    if (row.count_factor != 1) out += fmt::format(", \"times\": {}", row.count_factor);
  } else if (!is_container && row.capacity != 1) {
    out += fmt::format(", \"elements\": {}", row.capacity);
  }
  if (row.is_counted || is_container) out += fmt::format(", \"bound\": {}", row.capacity);
  if (row.version != 0) out += fmt::format(", \"since\": {}", row.version);
  if (row.last_version != every_version) out += fmt::format(", \"until\": {}", row.last_version);
  if (row.exists != nullptr) out += ", \"conditional\": true";
  if (row.must_exist) out += ", \"required\": true";
  if (row.is_versioned) out += fmt::format(", \"struct_version\": {}", row.struct_version);
  if (row.key != nullptr) out += ", \"key\": {" + table_members(*row.key) + "}";
  if (row.nested != nullptr) out += ", \"struct\": {" + table_members(*row.nested) + "}";
  return out;
}

std::string table_members(const Description& table) {
  std::string out = fmt::format("\"vmsd_name\": {}, \"version\": {}, \"minimum_version\": {}", json_string(table.name),
                                table.version, table.minimum_version);
  if (table.load_old != nullptr) out += fmt::format(", \"minimum_version_old\": {}", table.minimum_version_old);
  if (table.needed != nullptr) out += ", \"optional\": true";
  if (table.early) out += ", \"early\": true";
  if (table.unmigratable) out += ", \"unmigratable\": true";
  if (table.priority != Priority::normal) out += fmt::format(", \"priority\": {}", static_cast<int>(table.priority));
  out += ", \"fields\": [";
  for (std::size_t i = 0; i < table.rows.size(); ++i) {
    out += (i > 0 ? ", {" : "{") + field_members(table, table.rows[i]) + "}";
  }
  out += "]";
  if (table.parts.empty()) return out;
  out += ", \"subsections\": [";
  for (std::size_t i = 0; i < table.parts.size(); ++i) {
    out += (i > 0 ? ", {" : "{") + table_members(*table.parts[i]) + "}";
  }
  return out + "]";
}

}  // namespace

std::string dump_tables(std::span<const DumpedDevice> devices, std::string_view machine) {
  std::string out =
      fmt::format("{{\"device-tables\": {}, \"machine\": {}, \"devices\": [", dump_format, json_string(machine));
  for (std::size_t i = 0; i < devices.size(); ++i) {
    const DumpedDevice& device = devices[i];
    out += fmt::format("{}\n{{\"name\": {}, \"instance_id\": {}, ", i > 0 ? "," : "", json_string(device.id),
                       device.instance_id);
    out += device.legacy ? fmt::format("\"version\": {}, \"legacy\": true}}", device.table->version)
                         : table_members(*device.table) + "}";
  }
  return out + "\n]}\n";
}

}  // namespace migrationd::vmstate
