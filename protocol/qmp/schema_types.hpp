// SPDX-License-Identifier: Apache-2.0
//
// SchemaInfo: the type of query-qmp-schema's own answer, declared like any other. The answer itself is built as JSON
// from the tables (introspect.cpp); these structs exist so that the schema can describe it.
#pragma once

#include "protocol/qmp/schema.hpp"

namespace migrationd::qmp {

enum class SchemaMetaType : std::uint8_t { builtin, enumeration, array, object, alternate, command, event };
template <>
inline constexpr auto name_table<SchemaMetaType> = names_up_to(SchemaMetaType::event, "SchemaMetaType",
                                                               {"builtin", "enum", "array", "object", "alternate",
                                                                "command", "event"});

enum class JsonType : std::uint8_t { string, number, integer, boolean, null, object, array, value };
template <>
inline constexpr auto name_table<JsonType> = names_up_to(JsonType::value, "JSONType",
                                                         {"string", "number", "int", "boolean", "null", "object",
                                                          "array", "value"});

struct SchemaInfoBuiltin {
  JsonType json_type = JsonType::string;
  static constexpr std::string_view type_name = "SchemaInfoBuiltin";
  static constexpr auto members() { return std::make_tuple(req("json-type", &SchemaInfoBuiltin::json_type)); }
};

struct SchemaInfoEnumMember {
  std::string name;
  std::optional<std::vector<std::string>> features;
  static constexpr std::string_view type_name = "SchemaInfoEnumMember";
  static constexpr auto members() {
    return std::make_tuple(req("name", &SchemaInfoEnumMember::name), opt("features", &SchemaInfoEnumMember::features));
  }
};

struct SchemaInfoEnum {
  std::vector<SchemaInfoEnumMember> enum_members;
  std::vector<std::string> values;
  static constexpr std::string_view type_name = "SchemaInfoEnum";
  static constexpr auto members() {
    return std::make_tuple(req("members", &SchemaInfoEnum::enum_members),
                           req("values", &SchemaInfoEnum::values).deprecated());
  }
};

struct SchemaInfoArray {
  std::string element_type;
  static constexpr std::string_view type_name = "SchemaInfoArray";
  static constexpr auto members() { return std::make_tuple(req("element-type", &SchemaInfoArray::element_type)); }
};

struct SchemaInfoObjectMember {
  std::string name;
  std::string type;
  std::optional<Any> default_value;  // null: the member is optional
  std::optional<std::vector<std::string>> features;
  static constexpr std::string_view type_name = "SchemaInfoObjectMember";
  static constexpr auto members() {
    using S = SchemaInfoObjectMember;
    return std::make_tuple(req("name", &S::name), req("type", &S::type), opt("default", &S::default_value),
                           opt("features", &S::features));
  }
};

struct SchemaInfoObjectVariant {
  std::string tag_value;
  std::string type;
  static constexpr std::string_view type_name = "SchemaInfoObjectVariant";
  static constexpr auto members() {
    return std::make_tuple(req("case", &SchemaInfoObjectVariant::tag_value),
                           req("type", &SchemaInfoObjectVariant::type));
  }
};

struct SchemaInfoObject {
  std::vector<SchemaInfoObjectMember> object_members;
  std::optional<std::string> tag;
  std::optional<std::vector<SchemaInfoObjectVariant>> variants;
  static constexpr std::string_view type_name = "SchemaInfoObject";
  static constexpr auto members() {
    using S = SchemaInfoObject;
    return std::make_tuple(req("members", &S::object_members), opt("tag", &S::tag), opt("variants", &S::variants));
  }
};

struct SchemaInfoAlternateMember {
  std::string type;
  static constexpr std::string_view type_name = "SchemaInfoAlternateMember";
  static constexpr auto members() { return std::make_tuple(req("type", &SchemaInfoAlternateMember::type)); }
};

struct SchemaInfoAlternate {
  std::vector<SchemaInfoAlternateMember> alternate_members;
  static constexpr std::string_view type_name = "SchemaInfoAlternate";
  static constexpr auto members() { return std::make_tuple(req("members", &SchemaInfoAlternate::alternate_members)); }
};

struct SchemaInfoCommand {
  std::string arg_type;
  std::string ret_type;
  std::optional<bool> allow_oob;
  static constexpr std::string_view type_name = "SchemaInfoCommand";
  static constexpr auto members() {
    using S = SchemaInfoCommand;
    return std::make_tuple(req("arg-type", &S::arg_type), req("ret-type", &S::ret_type),
                           opt("allow-oob", &S::allow_oob));
  }
};

struct SchemaInfoEvent {
  std::string arg_type;
  static constexpr std::string_view type_name = "SchemaInfoEvent";
  static constexpr auto members() { return std::make_tuple(req("arg-type", &SchemaInfoEvent::arg_type)); }
};

struct SchemaInfo {
  std::string name;
  SchemaMetaType meta_type = SchemaMetaType::builtin;
  std::optional<std::vector<std::string>> features;
  std::variant<SchemaInfoBuiltin, SchemaInfoEnum, SchemaInfoArray, SchemaInfoObject, SchemaInfoAlternate,
               SchemaInfoCommand, SchemaInfoEvent>
      u;

  static constexpr std::string_view type_name = "SchemaInfo";
  static constexpr auto members() {
    return std::make_tuple(req("name", &SchemaInfo::name), req("meta-type", &SchemaInfo::meta_type),
                           opt("features", &SchemaInfo::features));
  }
  static constexpr auto tag() { return &SchemaInfo::meta_type; }
  static constexpr auto branches() {
    using E = SchemaMetaType;
    return std::make_tuple(branch<SchemaInfoBuiltin>(E::builtin), branch<SchemaInfoEnum>(E::enumeration),
                           branch<SchemaInfoArray>(E::array), branch<SchemaInfoObject>(E::object),
                           branch<SchemaInfoAlternate>(E::alternate), branch<SchemaInfoCommand>(E::command),
                           branch<SchemaInfoEvent>(E::event));
  }
};

}  // namespace migrationd::qmp
