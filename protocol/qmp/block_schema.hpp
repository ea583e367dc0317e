// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "protocol/qmp/schema.hpp"

namespace migrationd::qmp {

// A JSON array of SchemaInfo, to be appended to query-qmp-schema's answer.
std::string_view block_schema();
// The name in it of the list of `fragment` (NoBlockDevices::fragment, NoBlockNodes::fragment).
std::string_view block_schema_list(std::string_view fragment);

}  // namespace migrationd::qmp
