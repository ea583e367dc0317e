// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace migrationd::qmp {

// The reference of the control socket as Markdown: commands, events, capabilities, parameters and types, from the same
// tables that decode and answer.
std::string make_reference();

}  // namespace migrationd::qmp
