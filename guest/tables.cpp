// SPDX-License-Identifier: Apache-2.0
#include "guest/tables.hpp"

#include "guest/protocol.hpp"
#include "vmstate/runtime.hpp"

#include <fmt/format.h>

#include <limits>

namespace migrationd::guest {

namespace {

using vmstate::CountType;
using vmstate::Field;

// Ends of lists that are not there: a table without MD_END must not make us read on for ever.
constexpr std::size_t most_fields = 4096;
// No struct is larger; above it stands what was computed wrongly, and the engine's mark for "no offset".
constexpr std::size_t most_offset = std::size_t{1} << 30;

const Table& table_behind(const vmstate::Description& table) { return static_cast<const Table&>(table); }

Result<void> hook_result(const Table& table, const char* hook, int result) {
  if (result == 0) return {};
  return table.words->refused_by(fmt::format("{}() of '{}'", hook, table.name));
}

Result<void> run_pre_save(const vmstate::Description& description, void* object) {
  const Table& table = table_behind(description);
  return hook_result(table, "pre_save", table.source->pre_save(object));
}
Result<void> run_post_save(const vmstate::Description& description, void* object) {
  const Table& table = table_behind(description);
  return hook_result(table, "post_save", table.source->post_save(object));
}
Result<void> run_pre_load(const vmstate::Description& description, void* object, std::uint32_t version) {
  const Table& table = table_behind(description);
  return hook_result(table, "pre_load", table.source->pre_load(object, version));
}
Result<void> run_post_load(const vmstate::Description& description, void* object, std::uint32_t version) {
  const Table& table = table_behind(description);
  return hook_result(table, "post_load", table.source->post_load(object, version));
}

struct Scalar {
  const vmstate::Codec* codec = nullptr;
  std::size_t bytes = 0;
  const char* name = "";
};

// Without codec: the type is none with a fixed length, or none at all.
Scalar scalar_of(md_type type) {
  switch (type) {
    case MD_TYPE_BOOL:
      return {&vmstate::codec::boolean, 1, "BOOL"};
    case MD_TYPE_U8:
      return {&vmstate::codec::u8, 1, "U8"};
    case MD_TYPE_U16:
      return {&vmstate::codec::u16, 2, "U16"};
    case MD_TYPE_U32:
      return {&vmstate::codec::u32, 4, "U32"};
    case MD_TYPE_U64:
      return {&vmstate::codec::u64, 8, "U64"};
    case MD_TYPE_I8:
      return {&vmstate::codec::i8, 1, "I8"};
    case MD_TYPE_I16:
      return {&vmstate::codec::i16, 2, "I16"};
    case MD_TYPE_I32:
      return {&vmstate::codec::i32, 4, "I32"};
    case MD_TYPE_I64:
      return {&vmstate::codec::i64, 8, "I64"};
    case MD_TYPE_DOUBLE:
      return {&vmstate::codec::binary64, 8, "DOUBLE"};
    case MD_TYPE_END:
    case MD_TYPE_BUFFER:
    case MD_TYPE_STRUCT:
    case MD_TYPE_UNUSED:
    case MD_TYPE_LAST:
      break;
  }
  return {};
}

CountType count_type_of(md_type type) noexcept {
  if (type == MD_TYPE_U8) return CountType::u8;
  if (type == MD_TYPE_U16) return CountType::u16;
  if (type == MD_TYPE_U32) return CountType::u32;
  return type == MD_TYPE_I32 ? CountType::i32 : CountType::none;
}

std::uint64_t owner_number(const md_device& device) noexcept { return reinterpret_cast<std::uintptr_t>(&device); }

Result<std::uint32_t> buffer_bytes(const md_field& field) {
  const std::uint64_t each = field.size;
  if (each == 0 || each > std::numeric_limits<std::uint32_t>::max() / field.count) {
    return plan_error(fmt::format("a buffer of {} times {} bytes", field.count, each));
  }
  return static_cast<std::uint32_t>(each * field.count);
}

struct FaultSentence {
  vmstate::TableFault fault;
  const char* sentence;
};

// What a program's author can do something about; the rest is said before, field by field.
constexpr FaultSentence fault_sentences[] = {
    {vmstate::TableFault::field_name_twice, "two fields have one name"},
    {vmstate::TableFault::field_outside_object,
     "a field or its count lies outside the state (state_size, or size of the field it is nested in)"},
    {vmstate::TableFault::count_after_its_array,
     "a count stands behind its array, so that it would be loaded too late"},
    {vmstate::TableFault::minimum_above_version, "the minimum version is above the version"},
    {vmstate::TableFault::version_negative, "the version is above 0x7fffffff"},
    {vmstate::TableFault::subsection_name_not_prefixed, "a subsection's name does not begin with the table's"},
    {vmstate::TableFault::subsection_twice, "two subsections have one name"},
    {vmstate::TableFault::subsection_taken_by_another,
     "a subsection follows a struct or another subsection whose name its own begins with, and would be taken for a "
     "part of that"},
    {vmstate::TableFault::subsection_above_top_level,
     "a subsection is unmigratable or early, which only a device can be"},
    {vmstate::TableFault::nested_too_deep, "nested too deep"},
};

std::string sentence_of(vmstate::TableFault fault) {
  for (const FaultSentence& row : fault_sentences) {
    if (row.fault == fault) return row.sentence;
  }
  return std::string(vmstate::fault_name(fault));
}

Result<void> prove_name(const char* name) {
  if (name == nullptr || *name == '\0') return plan_error("has no name");
  const std::string_view text(name);
  if (!is_name(text) || text.size() > vmstate::table_name_bytes) {
    return plan_error(fmt::format("its name is not 1 to {} bytes of printable ASCII", vmstate::table_name_bytes));
  }
  return {};
}

}  // namespace

Error Words::refused_by(const std::string& who) {
  std::string why = std::exchange(why_, {});
  return machine_error(why.empty() ? who + " refused" : fmt::format("{} refused: {}", who, why));
}

Result<const Table*> Tables::translate(const md_device& device) {
  MD_TRY(const Table* table, table_of(device, owner_number(device), device.state_size, 0));
  // Here for what no single field shows.
  if (const auto fault = vmstate::check_now(*table); fault != vmstate::TableFault::none) {
    return plan_error(fmt::format("table '{}': {}", table->name, sentence_of(fault)));
  }
  return table;
}

Result<const Table*> Tables::table_of(const md_device& device, std::uint64_t owner, std::size_t state_size,
                                      unsigned depth) {
  if (auto named = prove_name(device.name); !named) {
    return std::move(named).error().with(
        fmt::format("table '{}'", printable(device.name == nullptr ? "" : device.name)));
  }
  const auto about = [&](Error error) { return std::move(error).with(fmt::format("table '{}'", device.name)); };
  if (depth > vmstate::table_depth) {
    return about(plan_error("nested too deep, or in itself"));
  }
  const Key key{&device, owner};
  if (const auto known = made_.find(key); known != made_.end()) return known->second.get();
  auto made = std::make_unique<Table>();
  Table& table = *made;
  table.source = &device;
  table.words = &words_;
  table.name = device.name;
  table.version = device.version;
  table.minimum_version = device.minimum_version;
  table.owner = owner;
  table.object_bytes = device.state_size != 0 ? device.state_size : state_size;
  table.unmigratable = device.unmigratable != 0;
  table.early = device.early != 0;
  table.needed = device.needed;
  if (device.pre_save != nullptr) table.before_save = &run_pre_save;
  if (device.post_save != nullptr) table.after_save = &run_post_save;
  if (device.pre_load != nullptr) table.before_load = &run_pre_load;
  if (device.post_load != nullptr) table.after_load = &run_post_load;
  if (auto filled = fill(table, depth); !filled) return about(std::move(filled).error());
  table.rows = table.fields;
  table.parts = table.subsections;
  return made_.emplace(key, std::move(made)).first->second.get();
}

Result<void> Tables::fill(Table& table, unsigned depth) {
  const md_device& device = *table.source;
  if (device.fields == nullptr) return plan_error("has no fields; one without state has a list of MD_END alone");
  for (const md_field* field = device.fields; field->type != MD_TYPE_END; ++field) {
    if (table.fields.size() >= most_fields) return plan_error("has no MD_END, or more than 4096 fields");
    auto row = field_of(table, *field, depth);
    if (!row) {
      const char* const name = field->name == nullptr ? "" : field->name;
      return std::move(row).error().with(fmt::format("field {} '{}'", table.fields.size(), printable(name)));
    }
    table.fields.push_back(*row);
  }
  if (device.subsections == nullptr) return {};
  for (const md_device* const* part = device.subsections; *part != nullptr; ++part) {
    if (table.subsections.size() >= vmstate::table_subsections) {
      return plan_error(
          fmt::format("more than {} subsections, or no NULL behind the last", vmstate::table_subsections));
    }
    MD_TRY(const Table* made, table_of(**part, table.owner, table.object_bytes, depth + 1));
    if (table.object_bytes != 0 && made->object_bytes > table.object_bytes) {
      return plan_error(fmt::format("the state has {} bytes, but its subsection '{}' describes {}", table.object_bytes,
                                    made->name, made->object_bytes));
    }
    table.subsections.push_back(made);
  }
  return {};
}

Result<Field> Tables::field_of(const Table& table, const md_field& field, unsigned depth) {
  MD_CHECK(prove_name(field.name));
  if (field.count == 0) return plan_error("has no elements (count is 0; 1 for no array)");
  if (field.version > table.version) {
    return plan_error(fmt::format("its version {} is above the table's {}", field.version, table.version));
  }
  if (field.offset > most_offset || (field.counted != 0 && field.count_offset > most_offset)) {
    return plan_error("its offset, or that of its count, is above 1 GiB");
  }
  MD_TRY(Field row, shape_of(table, field, depth));
  row.version = field.version;
  row.exists = field.exists;
  row.has_predicate = field.exists != nullptr;
  return row;
}

Result<Field> Tables::shape_of(const Table& table, const md_field& field, unsigned depth) {
  const bool is_counted = field.counted != 0;
  const CountType count = count_type_of(field.count_type);
  if (is_counted && count == CountType::none) {
    return plan_error("is counted, but count_type is none of MD_TYPE_U8, _U16, _U32 and _I32");
  }
  if (field.type == MD_TYPE_UNUSED) {
    MD_TRY(const std::uint32_t bytes, buffer_bytes(field));
    if (is_counted) return plan_error("unused bytes are not counted");
    return vmstate::unused_at(table.owner, bytes);
  }
  if (field.type == MD_TYPE_BUFFER) {
    MD_TRY(const std::uint32_t bytes, buffer_bytes(field));
    if (!is_counted) return vmstate::buffer_at(field.name, table.owner, field.offset, bytes);
    return vmstate::counted_buffer_at(field.name, table.owner, field.offset, bytes, count, field.count_offset);
  }
  Field row;
  if (field.type == MD_TYPE_STRUCT) {
    if (field.nested == nullptr) return plan_error("is a struct, but `nested` is NULL");
    if (field.size == 0) return plan_error("is a struct of 0 bytes (size is its sizeof)");
    MD_TRY(const Table* child, table_of(*field.nested, owner_number(*field.nested), field.size, depth + 1));
    if (child->object_bytes > field.size) {
      return plan_error(
          fmt::format("has {} bytes, but '{}' describes {}", field.size, child->name, child->object_bytes));
    }
    row = vmstate::structure_at(field.name, table.owner, *child, field.offset, field.size, field.count);
  } else {
    const Scalar scalar = scalar_of(field.type);
    if (scalar.codec == nullptr)
      return plan_error(fmt::format("type {} is none of enum md_type", static_cast<int>(field.type)));
    if (field.size != scalar.bytes) {
      return plan_error(fmt::format("has {} bytes, but {} has {} (arrays are described by MD_ARRAY)", field.size,
                                    scalar.name, scalar.bytes));
    }
    row = vmstate::field_at(field.name, table.owner, *scalar.codec, field.offset, field.count);
  }
  return is_counted ? vmstate::counted_by(row, count, field.count_offset) : row;
}

}  // namespace migrationd::guest
