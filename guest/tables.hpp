// SPDX-License-Identifier: Apache-2.0
//
// Tables: a C program's md_device tables as descriptions of the VMState engine, translated once when the device is
// added. What is wrong with a table is said in a sentence then, not when the first migration fails.
//
// A table refers to strings, nested tables and hooks of the program's, which live as long as the guest.
//
// Thread: made by one; afterwards constant. Hooks run where the engine runs.
#pragma once

#include "base/result.hpp"
#include "guest/migrationd_guest.h"
#include "vmstate/description.hpp"

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace migrationd::guest {

// What md_guest_refuse() said in the callback or hook that runs; taken by whoever makes the error of it.
class Words {
 public:
  void say(std::string why) { why_ = std::move(why); }
  // "WHO refused" or "WHO refused: WHY".
  Error refused_by(const std::string& who);
  void clear() { why_.clear(); }

 private:
  std::string why_;
};

// A description that knows the C table it was made from, for its hooks.
struct Table : vmstate::Description {
  const md_device* source = nullptr;
  Words* words = nullptr;
  std::vector<vmstate::Field> fields;
  std::vector<const vmstate::Description*> subsections;
};

class Tables {
 public:
  explicit Tables(Words& words) noexcept : words_(words) {}

  // Lives as long as this. Errors (ErrorKind::plan) name table, field and fault.
  Result<const Table*> translate(const md_device& device);

 private:
  // A table, as itself or as a subsection of the struct that `owner` stands for.
  using Key = std::pair<const md_device*, std::uint64_t>;

  Result<const Table*> table_of(const md_device& device, std::uint64_t owner, std::size_t state_size, unsigned depth);
  Result<void> fill(Table& table, unsigned depth);
  Result<vmstate::Field> field_of(const Table& table, const md_field& field, unsigned depth);
  Result<vmstate::Field> shape_of(const Table& table, const md_field& field, unsigned depth);

  Words& words_;
  std::map<Key, std::unique_ptr<Table>> made_;
};

}  // namespace migrationd::guest
