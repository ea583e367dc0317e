// SPDX-License-Identifier: Apache-2.0
//
// Device tables as a program dumped them (vmstate's dump_tables; docs/formats/vmstate.md, "Tables as JSON"), and the
// comparison of two dumps: does what one writes load in the other?
//
// A stream has no names of fields and no lengths, so a table is compared as the reader would read it: the writer's
// fields in order, each against the reader's next one, with gaps (unused) as large as what they stand for. What
// depends on the state (predicates, optional subsections, counts) is never certain.
//
// Thread: pure, but for read_tables().
#pragma once

#include "base/result.hpp"
#include "tools/migrationctl/text.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ctl {

struct Table;

struct TableField {
  std::string name;
  std::string type;
  std::string shape;           // empty: elements one after the other
  std::uint64_t size = 0;      // bytes of one element; 0: its table or its count says
  std::uint64_t elements = 1;  // of a fixed array
  std::string count;           // the field that counts them; empty: none
  std::uint64_t times = 1;
  std::uint64_t bound = 0;
  std::uint32_t since = 0;
  std::uint32_t until = 0x7fffffff;
  bool conditional = false;
  bool required = false;
  std::optional<std::uint32_t> struct_version;
  std::shared_ptr<const Table> key;
  std::shared_ptr<const Table> child;
};

struct Table {
  std::string name;
  std::uint32_t version = 0;
  std::uint32_t minimum = 0;
  std::optional<std::uint32_t> minimum_old;
  bool optional = false;
  bool unmigratable = false;
  bool legacy = false;
  std::vector<TableField> fields;
  std::vector<Table> subsections;
};

struct TableDevice {
  std::string id;
  std::uint32_t instance = 0;
  Table table;
};

struct TableSet {
  std::string machine;
  std::vector<TableDevice> devices;
};

// Errors (ErrorKind::wire): not such a dump. Bounded in depth and numbers by the file's size.
Result<TableSet> parse_tables(std::string_view text);
Result<TableSet> read_tables(const std::string& path);

// How sure it is that a stream does not load.
enum class Severity : std::uint8_t {
  note,       // it loads; something is worth knowing
  sometimes,  // it depends on the state whether it loads
  never,
};
std::string_view to_name(Severity severity);

// Its name and instance number, printable; what is longer than any id in a stream is cut.
std::string shown_device(const TableDevice& device);

struct TableFinding {
  Severity severity = Severity::note;
  std::string device;  // as shown_device() has it
  std::string text;
};

struct Comparison {
  std::vector<TableFinding> findings;
  Severity worst() const;
};

// What a stream that `writer` sends meets in `reader`.
Comparison compare_tables(const TableSet& writer, const TableSet& reader);

}  // namespace migrationd::ctl
