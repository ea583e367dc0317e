// SPDX-License-Identifier: Apache-2.0
//
// The comparison. Structs that are there once are looked through, for their bytes are just the next ones; what there
// may be any number of (arrays, lists, trees) is compared as a whole and then element against element.
//
// The first field that does not fit ends a table's comparison: whatever follows would be misread anyway, and naming it
// would hide the cause.
#include "tools/migrationctl/device_tables.hpp"

#include "base/limits.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <map>

namespace migrationd::ctl {
namespace {

// One field of a table as it lies on the wire, with the structs around it in its path. `subsections_of` alone: the
// place behind a struct where its subsections can stand.
struct Item {
  std::string path;
  const TableField* field = nullptr;
  const Table* subsections_of = nullptr;
  bool conditional = false;

  bool is_gap() const { return field != nullptr && (field->type == "unused_buffer" || field->type == "buffer"); }
  // All its bytes, if their number is fixed.
  std::uint64_t bytes() const {
    if (field == nullptr || conditional || !field->count.empty() || field->child || !field->shape.empty()) return 0;
    return field->size * field->elements;
  }
};

bool is_container(const TableField& field) { return field.shape == "sequence" || field.shape == "tree"; }

bool is_inline(const TableField& field) {
  return field.child != nullptr && field.elements == 1 && field.count.empty() &&
         (field.shape.empty() || field.shape == "view");
}

// The version a nested table has on each side: it is not on the wire.
std::uint32_t nested_version(const TableField& field, bool reading) {
  if (field.struct_version) return *field.struct_version;
  const bool as_field = is_container(field) || field.shape == "view";
  return reading && as_field ? field.since : field.child->version;
}

void flatten(const Table& table, std::uint32_t version, bool reading, const std::string& prefix, bool conditional,
             std::vector<Item>& into) {
  for (const TableField& field : table.fields) {
    if (!field.conditional && (field.since > version || field.until < version)) continue;
    if (field.required && field.elements == 0) continue;  // a validation
    const std::string path = prefix + field.name;
    const bool depends = conditional || field.conditional;
    if (is_inline(field)) {
      flatten(*field.child, nested_version(field, reading), reading, path + ".", depends, into);
      into.push_back({path, nullptr, field.child.get(), depends});
    } else {
      into.push_back({path, &field, nullptr, depends});
    }
  }
}

// "int32 equal" is an int32 on the wire, and all kinds of lists are one.
std::string_view wire_type(const TableField& field) {
  if (is_container(field)) return field.shape;
  std::string_view type = field.type;
  for (const std::string_view ending : {" equal", " le"}) {
    if (type.ends_with(ending)) type.remove_suffix(ending.size());
  }
  return type;
}

std::string shown(const Item& item) {
  if (item.field == nullptr) return fmt::format("the subsections of '{}'", printable(item.path));
  const TableField& field = *item.field;
  std::string text = fmt::format("'{}' ({}", printable(item.path), printable(field.type));
  if (field.size != 0 && item.is_gap()) text += fmt::format(" of {} bytes", field.size);
  if (field.elements != 1) text += fmt::format(" x {}", field.elements);
  if (!field.count.empty()) text += fmt::format(" x '{}'", printable(field.count));
  return text + ")";
}

class Comparer {
 public:
  Comparer(std::string device, Severity most, std::vector<TableFinding>& findings)
      : device_(std::move(device)), most_(most), findings_(findings) {}

  void tables(const Table& writer, std::uint32_t written, const Table& reader, std::uint32_t read,
              const std::string& prefix) {
    std::vector<Item> from;
    std::vector<Item> to;
    flatten(writer, written, false, prefix, false, from);
    flatten(reader, read, true, prefix, false, to);
    if (items(from, to)) subsections(writer, reader);
  }

  // A version that came with the bytes.
  void versioned(const Table& writer, const Table& reader, const std::string& what) {
    if (writer.version > reader.version) {
      return add(Severity::never, fmt::format("{}version {} is written, {} is the newest that is read", what,
                                              writer.version, reader.version));
    }
    if (writer.version < reader.minimum) {
      if (reader.minimum_old && writer.version >= *reader.minimum_old) {
        return add(Severity::sometimes, fmt::format("{}version {} is read by a reader of old versions, which no table "
                                                    "shows",
                                                    what, writer.version));
      }
      return add(Severity::never, fmt::format("{}version {} is written, {} is the oldest that is read", what,
                                              writer.version, reader.minimum));
    }
    tables(writer, writer.version, reader, writer.version, "");
  }

  void add(Severity severity, std::string text) {
    findings_.push_back({std::min(severity, most_), device_, std::move(text)});
  }

 private:
  bool items(const std::vector<Item>& from, const std::vector<Item>& to) {
    std::size_t i = 0;
    std::size_t j = 0;
    while (i < from.size() || j < to.size()) {
      const Item* const a = i < from.size() ? &from[i] : nullptr;
      const Item* const b = j < to.size() ? &to[j] : nullptr;
      if (a != nullptr && b != nullptr && fits(*a, *b)) {
        ++i;
        ++j;
      } else if (a != nullptr && a->is_gap() && absorbs(*a, to, j)) {
        ++i;
      } else if (b != nullptr && b->is_gap() && absorbs(*b, from, i)) {
        ++j;
      } else if (b != nullptr && b->field == nullptr) {
        ++j;  // the reader looks for subsections that are not sent
      } else if (a != nullptr && a->field == nullptr) {
        lost_subsections(*a);
        ++i;
      } else if (a != nullptr && a->conditional) {
        add(Severity::sometimes, fmt::format("{} is written on a condition, and not read", shown(*a)));
        ++i;
      } else if (b != nullptr && b->conditional) {
        add(Severity::sometimes, fmt::format("{} is read on a condition, and not written", shown(*b)));
        ++j;
      } else {
        mismatch(a, b);
        return false;
      }
    }
    return true;
  }

  void mismatch(const Item* a, const Item* b) {
    if (a == nullptr) return add(Severity::never, fmt::format("{} is read and not written", shown(*b)));
    if (b == nullptr) return add(Severity::never, fmt::format("{} is written and not read", shown(*a)));
    add(Severity::never, fmt::format("{} is written where {} is read", shown(*a), shown(*b)));
  }

  // The gap stands for fields of the other side that have just its size.
  static bool absorbs(const Item& gap, const std::vector<Item>& fields, std::size_t& at) {
    std::uint64_t left = gap.bytes();
    std::size_t next = at;
    while (left > 0 && next < fields.size()) {
      const std::uint64_t bytes = fields[next].bytes();
      if (bytes == 0 || bytes > left) return false;
      left -= bytes;
      ++next;
    }
    if (left > 0 || next == at) return false;
    at = next;
    return true;
  }

  bool fits(const Item& a, const Item& b) {
    if (a.field == nullptr || b.field == nullptr) {
      if (a.field != b.field) return false;
      subsections(*a.subsections_of, *b.subsections_of);
      return true;
    }
    const TableField& writer = *a.field;
    const TableField& reader = *b.field;
    const bool same_frame = writer.shape == reader.shape && writer.count.empty() == reader.count.empty() &&
                            writer.elements == reader.elements && writer.times == reader.times &&
                            (writer.child == nullptr) == (reader.child == nullptr) &&
                            (writer.key == nullptr) == (reader.key == nullptr);
    if (!same_frame || writer.size != reader.size) return false;
    const bool same_type = wire_type(writer) == wire_type(reader);
    if (!same_type && (writer.size == 0 || a.is_gap() != b.is_gap())) return false;
    // A field that one side has on a condition only, of another name, is another field.
    if (a.conditional != b.conditional) {
      if (writer.name != reader.name) return false;
      add(Severity::sometimes, fmt::format("{} is there on a condition on one side only", shown(a)));
    }
    if (!same_type && !a.is_gap()) {
      add(Severity::note, fmt::format("{} is read as {}", shown(a), shown(b)));
    }
    details(a, writer, reader);
    return true;
  }

  void details(const Item& item, const TableField& writer, const TableField& reader) {
    if (reader.bound < writer.bound) {
      add(Severity::sometimes,
          fmt::format("{} may have {} elements, of which {} are read", shown(item), writer.bound, reader.bound));
    }
    if (writer.key != nullptr) {
      tables(*writer.key, writer.key->version, *reader.key, reader.since, item.path + ".key.");
    }
    if (writer.child == nullptr) return;
    tables(*writer.child, nested_version(writer, false), *reader.child, nested_version(reader, true), item.path + ".");
  }

  void lost_subsections(const Item& item) {
    for (const Table& part : item.subsections_of->subsections) {
      add(Severity::sometimes, fmt::format("subsection '{}' is unknown", printable(part.name)));
    }
  }

  void subsections(const Table& writer, const Table& reader) {
    for (const Table& part : writer.subsections) {
      const Severity most = part.optional ? std::min(most_, Severity::sometimes) : most_;
      Comparer inner(device_, most, findings_);
      const auto found = std::find_if(reader.subsections.begin(), reader.subsections.end(),
                                      [&](const Table& other) { return other.name == part.name; });
      if (found == reader.subsections.end()) {
        inner.add(Severity::never, fmt::format("subsection '{}' is unknown", printable(part.name)));
      } else {
        inner.versioned(part, *found, fmt::format("subsection '{}': ", printable(part.name)));
      }
    }
  }

  std::string device_;
  Severity most_;  // less, where it is not certain that the bytes are sent
  std::vector<TableFinding>& findings_;
};

void compare_device(const TableDevice& writer, const TableDevice* reader, std::vector<TableFinding>& findings) {
  Comparer comparer(shown_device(writer), writer.table.optional ? Severity::sometimes : Severity::never, findings);
  if (reader == nullptr) return comparer.add(Severity::never, "the device is unknown");
  if (writer.table.unmigratable) return comparer.add(Severity::never, "the device forbids migration where it is sent");
  if (reader->table.unmigratable) return comparer.add(Severity::never, "the device forbids migration where it is read");
  if (!writer.table.legacy && !reader->table.legacy) return comparer.versioned(writer.table, reader->table, "");
  if (writer.table.version > reader->table.version) {
    return comparer.add(Severity::never, fmt::format("version {} is written, {} is the newest that is read",
                                                     writer.table.version, reader->table.version));
  }
  comparer.add(Severity::note, "its bytes are of its own making: nothing is known of them");
}

}  // namespace

std::string shown_device(const TableDevice& device) {
  return fmt::format("{} ({})", printable(device.id, limits::name_bytes), device.instance);
}

Comparison compare_tables(const TableSet& writer, const TableSet& reader) {
  using Name = std::pair<std::string_view, std::uint32_t>;
  std::map<Name, const TableDevice*> known;
  for (const TableDevice& device : reader.devices) known.emplace(Name(device.id, device.instance), &device);
  Comparison out;
  for (const TableDevice& device : writer.devices) {
    const auto found = known.find(Name(device.id, device.instance));
    compare_device(device, found == known.end() ? nullptr : found->second, out.findings);
    if (found != known.end()) known.erase(found);
  }
  for (const auto& [name, device] : known) {
    out.findings.push_back(
        {Severity::note, shown_device(*device), "no state comes for the device: it stays as it is made"});
  }
  return out;
}

}  // namespace migrationd::ctl
