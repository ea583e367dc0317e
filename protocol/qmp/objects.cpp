// SPDX-License-Identifier: Apache-2.0
#include "protocol/qmp/objects.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace migrationd::qmp {

QmpResult<> check_object_id(std::string_view id) {
  const auto is_letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  const auto is_later = [&](char c) {
    return is_letter(c) || (c >= '0' && c <= '9') || c == '-' || c == '.' || c == '_';
  };
  if (!id.empty() && is_letter(id.front()) && std::all_of(id.begin(), id.end(), is_later)) return {};
  return QmpError("Parameter 'id' expects an identifier");
}

QmpError refused_object(const ObjectAddArgs& args) {
  return QmpError(fmt::format("invalid object type: {}", to_name(args.qom_type)));
}

}  // namespace migrationd::qmp
