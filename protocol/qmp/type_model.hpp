// SPDX-License-Identifier: Apache-2.0
//
// TypeModel: the declarations of all commands, events and types as plain data, made once from the compile-time tables.
// query-qmp-schema and the reference page are two ways of printing it.
//
// Thread: immutable after make().
#pragma once

#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/schema.hpp"

#include <string>
#include <vector>

namespace migrationd::qmp {

struct TypeModel {
  enum class Kind : std::uint8_t { builtin, enumeration, array, object, alternate, fragment };

  struct Member {
    std::string_view name;
    std::size_t type;
    bool optional;
    Stability stability;
    std::string_view text;
  };
  struct Variant {
    std::string_view tag_value;
    std::size_t type;
  };
  struct Type {
    Kind kind;
    std::string name;               // readable: "MigrationInfo", "[str]"; a builtin's is also its name on the wire
    std::string_view json_type;     // builtin
    std::vector<EnumName> values;   // enumeration
    std::size_t element = 0;        // array
    std::vector<Member> members;    // object; of an alternate only the types count
    std::string_view tag;           // object: empty when it is no union
    std::vector<Variant> variants;  // object
  };
  struct CommandEntry {
    const CommandInfo* info;
    std::size_t arguments;
    std::size_t result;
  };
  struct EventEntry {
    std::string_view name;
    std::string_view text;
    std::size_t data;
  };

  std::vector<Type> types;
  std::vector<CommandEntry> commands;
  std::vector<EventEntry> events;

  static const TypeModel& get();
};

}  // namespace migrationd::qmp
