// SPDX-License-Identifier: Apache-2.0
//
// query-commands and query-qmp-schema, in the form QEMU sends them: type names are masked (numbers), for clients must
// not depend on them; builtin types keep theirs, lists are "[NAME]", and "0" is the empty object.
#include "protocol/qmp/block_schema.hpp"
#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/type_model.hpp"

namespace migrationd::qmp {

namespace {

using Kind = TypeModel::Kind;

class SchemaPrinter {
 public:
  explicit SchemaPrinter(const TypeModel& model) : model_(model) {}

  OrderedJson print() {
    for (const auto& entry : model_.commands) out_.push_back(command(entry));
    for (const auto& entry : model_.events)
      out_.push_back({{"name", entry.name}, {"meta-type", "event"}, {"arg-type", name(entry.data)}});
    for (std::size_t i = 0; i < model_.types.size(); ++i)
      if (model_.types[i].kind != Kind::fragment) out_.push_back(type(i));
    for (auto& fragment : OrderedJson::parse(block_schema())) out_.push_back(std::move(fragment));
    return std::move(out_);
  }

 private:
  std::string name(std::size_t index) const {
    const auto& type = model_.types[index];
    switch (type.kind) {
      case Kind::builtin:
        return type.name;
      case Kind::array:
        return "[" + name(type.element) + "]";
      case Kind::fragment:
        return std::string(block_schema_list(type.name));
      case Kind::object:
        if (type.name == Empty::type_name) return "0";
        break;
      case Kind::enumeration:
      case Kind::alternate:
        break;
    }
    return std::to_string(index + 1);
  }

  static void add_features(OrderedJson& to, Stability stability) {
    if (stability == Stability::unstable) to["features"] = {"unstable"};
    if (stability == Stability::deprecated) to["features"] = {"deprecated"};
  }

  OrderedJson command(const TypeModel::CommandEntry& entry) const {
    OrderedJson out{{"name", entry.info->name},
                    {"ret-type", name(entry.result)},
                    {"meta-type", "command"},
                    {"arg-type", name(entry.arguments)}};
    if (entry.info->allow_oob) out["allow-oob"] = true;
    add_features(out, entry.info->stability);
    return out;
  }

  OrderedJson type(std::size_t index) const {
    const auto& type = model_.types[index];
    OrderedJson out{{"name", name(index)}};
    switch (type.kind) {
      case Kind::builtin:
        out["json-type"] = type.json_type;
        out["meta-type"] = "builtin";
        break;
      case Kind::enumeration:
        add_values(out, type);
        break;
      case Kind::array:
        out["element-type"] = name(type.element);
        out["meta-type"] = "array";
        break;
      case Kind::object:
        add_members(out, type);
        break;
      case Kind::alternate:
        out["members"] = OrderedJson::array();
        for (const auto& member : type.members) out["members"].push_back({{"type", name(member.type)}});
        out["meta-type"] = "alternate";
        break;
      case Kind::fragment:
        break;
    }
    return out;
  }

  static void add_values(OrderedJson& out, const TypeModel::Type& type) {
    auto members = OrderedJson::array();
    auto values = OrderedJson::array();
    for (const auto& value : type.values) {
      OrderedJson member{{"name", value.text}};
      add_features(member, value.stability);
      members.push_back(std::move(member));
      values.push_back(value.text);
    }
    out["members"] = std::move(members);
    out["meta-type"] = "enum";
    out["values"] = std::move(values);
  }

  void add_members(OrderedJson& out, const TypeModel::Type& type) const {
    auto members = OrderedJson::array();
    for (const auto& member : type.members) {
      OrderedJson entry{{"name", member.name}};
      if (member.optional) entry["default"] = nullptr;
      entry["type"] = name(member.type);
      add_features(entry, member.stability);
      members.push_back(std::move(entry));
    }
    if (!type.tag.empty()) {
      out["tag"] = type.tag;
      out["variants"] = OrderedJson::array();
      for (const auto& variant : type.variants)
        out["variants"].push_back({{"case", variant.tag_value}, {"type", name(variant.type)}});
    }
    out["members"] = std::move(members);
    out["meta-type"] = "object";
  }

  const TypeModel& model_;
  OrderedJson out_ = OrderedJson::array();
};

}  // namespace

const Prebuilt<std::vector<CommandName>>& query_commands() {
  static const Prebuilt<std::vector<CommandName>> answer = [] {
    OrderedJson names = OrderedJson::array();
    for (const auto& row : command_table()) names.push_back({{"name", row.name}});
    return Prebuilt<std::vector<CommandName>>{std::move(names)};
  }();
  return answer;
}

const Prebuilt<std::vector<SchemaInfo>>& query_qmp_schema() {
  static const Prebuilt<std::vector<SchemaInfo>> answer{SchemaPrinter(TypeModel::get()).print()};
  return answer;
}

}  // namespace migrationd::qmp
