// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/commands.hpp"

#include <array>

namespace migrationd::qmp {

namespace {

template <class... Rows>
constexpr auto make_table(CommandTable<Rows...>) {
  std::array<CommandInfo, sizeof...(Rows)> table{
      CommandInfo{Rows::name, Rows::allow_oob, Rows::stability, Rows::since, Rows::text, 0}...};
  for (std::size_t i = 0; i < table.size(); ++i) table[i].index = i;
  return table;
}

constexpr auto all_commands = make_table(AllCommands{});

constexpr bool names_are_unique() {
  for (std::size_t i = 0; i < all_commands.size(); ++i)
    for (std::size_t j = 0; j < i; ++j)
      if (all_commands[i].name == all_commands[j].name) return false;
  return true;
}
static_assert(names_are_unique());

}  // namespace

std::span<const CommandInfo> command_table() { return all_commands; }

const CommandInfo* find_command(std::string_view name) {
  const auto found =
      std::find_if(all_commands.begin(), all_commands.end(), [&](const CommandInfo& row) { return row.name == name; });
  return found == all_commands.end() ? nullptr : &*found;
}

}  // namespace migrationd::qmp
