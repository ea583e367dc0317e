// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/reference.hpp"

#include "protocol/qmp/capabilities.hpp"
#include "protocol/qmp/encode.hpp"
#include "protocol/qmp/json_writer.hpp"
#include "protocol/qmp/parameter_codec.hpp"
#include "protocol/qmp/parameters.hpp"
#include "protocol/qmp/type_model.hpp"

#include <fmt/format.h>

namespace migrationd::qmp {

namespace {

using Kind = TypeModel::Kind;

std::string anchor(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c >= 'A' && c <= 'Z') out += static_cast<char>(c - 'A' + 'a');
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_') out += c;
  }
  return out;
}

class Page {
 public:
  explicit Page(const TypeModel& model) : model_(model) {}

  std::string make() {
    line("# The control socket: reference\n");
    line("Made from the command table by `qmp-reference`; do not edit. Sizes are bytes, times milliseconds, unless");
    line("a line says otherwise. `?` marks optional members.\n");
    commands();
    events();
    capabilities();
    parameters();
    types();
    return std::move(out_);
  }

 private:
  void line(std::string_view text) {
    out_ += text;
    out_ += '\n';
  }

  std::string link(std::size_t index) const {
    const auto& type = model_.types[index];
    switch (type.kind) {
      case Kind::builtin:
        return type.name;
      case Kind::array:
        return fmt::format("list of {}", link(type.element));
      case Kind::alternate:
        return "str or null";
      case Kind::fragment:
        return fmt::format("list of {} (always empty)", type.name);
      case Kind::object:
      case Kind::enumeration:
        break;
    }
    return fmt::format("[{}](#{})", type.name, anchor(type.name));
  }

  void members(const TypeModel::Type& type) {
    for (const auto& member : type.members) {
      const auto* note = member.stability == Stability::unstable     ? " (unstable)"
                         : member.stability == Stability::deprecated ? " (deprecated)"
                                                                     : "";
      line(fmt::format("- `{}`{} {}{}{}{}", member.name, member.optional ? "?" : "", link(member.type), note,
                       member.text.empty() ? "" : ": ", member.text));
    }
    for (const auto& variant : type.variants)
      if (!model_.types[variant.type].members.empty())
        line(fmt::format("- with `{}` = `{}`: the members of {}", type.tag, variant.tag_value, link(variant.type)));
  }

  void commands() {
    line("## Commands\n");
    for (const auto& command : model_.commands) {
      const auto& info = *command.info;
      line(fmt::format("### {}\n\n{}\n", info.name, info.text));
      line(fmt::format("Since {}.{}{}\n", info.since, info.allow_oob ? " May be executed out of band." : "",
                       info.stability == Stability::deprecated ? " Deprecated." : ""));
      const auto& arguments = model_.types[command.arguments];
      if (!arguments.members.empty()) {
        line("Arguments:\n");
        members(arguments);
        line("");
      }
      const bool returns_nothing = model_.types[command.result].name == Empty::type_name;
      line(fmt::format("Returns {}.\n", returns_nothing ? "`{}`" : link(command.result)));
    }
  }

  void events() {
    line("## Events\n");
    for (const auto& event : model_.events) {
      line(fmt::format("### {}\n\n{}\n", event.name, event.text));
      members(model_.types[event.data]);
      if (!model_.types[event.data].members.empty()) line("");
    }
  }

  void capabilities() {
    line("## Capabilities\n\nAll are off at first. One that is not available is refused when switched on.\n");
    line("| Name | Available | Meaning |\n| --- | --- | --- |");
    for (const auto& row : capability_table())
      line(fmt::format("| `{}` | {} | {} |", to_name(row.capability), row.available ? "yes" : "no", row.text));
    line("");
  }

  static std::string_view when(Effect effect) {
    switch (effect) {
      case Effect::at_once:
        return "at once";
      case Effect::next_migration:
        return "next migration";
      case Effect::at_end:
        return "at the end";
    }
    return "";
  }

  void parameters() {
    line("## Parameters\n");
    line("| Name | Type | Unit | Default | Accepted | New value counts | Meaning |");
    line("| --- | --- | --- | --- | --- | --- | --- |");
    const auto defaults = encode_object(MigrationParameters{});
    for (const auto& row : parameter_table()) {
      const auto found = defaults.find(std::string(row.name));
      line(fmt::format("| `{}` | {} | {} | {} | {} | {} | {} |", row.name, row.type, row.unit,
                       found == defaults.end() ? "unset" : write_json(*found),
                       row.accepts.empty() ? "any" : row.accepts, when(row.effect), row.text));
    }
    line("");
  }

  void types() {
    line("## Types\n");
    for (const auto& type : model_.types) {
      const bool is_argument = type.name.ends_with("-arg") || type.name == Empty::type_name;
      if (is_argument || (type.kind != Kind::object && type.kind != Kind::enumeration)) continue;
      line(fmt::format("### {}\n", type.name));
      if (type.kind == Kind::enumeration) {
        std::string names;
        for (const auto& value : type.values) names += fmt::format("{}`{}`", names.empty() ? "" : ", ", value.text);
        line(fmt::format("One of {}.\n", names));
      } else {
        members(type);
        line("");
      }
    }
  }

  const TypeModel& model_;
  std::string out_;
};

}  // namespace

std::string make_reference() { return Page(TypeModel::get()).make(); }

}  // namespace migrationd::qmp
