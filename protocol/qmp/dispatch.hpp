// SPDX-License-Identifier: Apache-2.0
//
// From a row of the command table to its handler, typed.
//
// dispatch() decodes the arguments, calls handlers.handle(cmd::X{}, args, context...) and encodes the result. The
// handler set must have an overload for every row except those the session answers itself; a missing one stops the
// compiler with the command's name in the message. A set may be put together from families:
//
//   struct Handlers : MigrateHandlers, QueryHandlers {
//     using MigrateHandlers::handle;
//     using QueryHandlers::handle;
//   };
//
// A coroutine that wants to await inside uses visit_command() itself.
//
// Include it in one source file: it instantiates every decoder.
#pragma once

#include "protocol/qmp/commands.hpp"
#include "protocol/qmp/decode.hpp"
#include "protocol/qmp/encode.hpp"

#include <array>
#include <cstdlib>

namespace migrationd::qmp {

template <class Handlers, class C, class... Context>
concept HandlesCommand = requires(Handlers& handlers, const typename C::Args& args, Context&... context) {
  { handlers.handle(C{}, args, context...) } -> std::convertible_to<QmpResult<typename C::Result>>;
};

namespace detail {

template <class Return, class Visitor, class C>
Return visit_row(Visitor& visitor) {
  if constexpr (handled_by_session<C>) {
    std::abort();  // the session machine never hands it out
  } else {
    return visitor.template operator()<C>();
  }
}

template <class Return, class Visitor, class... Rows>
Return visit_table(CommandTable<Rows...>, std::size_t index, Visitor& visitor) {
  static constexpr std::array<Return (*)(Visitor&), sizeof...(Rows)> rows{&visit_row<Return, Visitor, Rows>...};
  return rows.at(index)(visitor);
}

}  // namespace detail

// visitor.operator()<C>() for the row C of `command`; all rows must return the same type.
template <class Visitor>
auto visit_command(const CommandInfo& command, Visitor&& visitor) {
  using Plain = std::remove_reference_t<Visitor>;
  using Return = decltype(visitor.template operator()<cmd::QueryVersion>());
  return detail::visit_table<Return, Plain>(AllCommands{}, command.index, visitor);
}

template <class Handlers, class... Context>
QmpResult<OrderedJson> dispatch(Handlers& handlers, const CommandInfo& command, const Json& arguments,
                                Context&... context) {
  return visit_command(command, [&]<class C>() -> QmpResult<OrderedJson> {
    static_assert(HandlesCommand<Handlers, C, Context...>, "no handler for the command C");
    const auto args = decode<typename C::Args>(arguments);
    if (!args) return args.error();
    const QmpResult<typename C::Result> result = handlers.handle(C{}, *args, context...);
    if (!result) return result.error();
    return encode(*result);
  });
}

}  // namespace migrationd::qmp
