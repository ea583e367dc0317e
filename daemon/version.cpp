// SPDX-License-Identifier: Apache-2.0
#include "daemon/version.hpp"

namespace migrationd {

// The build says it once, in meson.build's project().
constinit const std::string_view version = MIGRATIOND_VERSION;

}  // namespace migrationd
