// SPDX-License-Identifier: Apache-2.0
//
// How long the two processes of a cpr-transfer wait for each other, with the reasons.
#pragma once

#include <chrono>

namespace migrationd::limits {

// An old process writes its list in one go. Who connects to the cpr socket and does not, holds the place of the one
// that would.
inline constexpr auto cpr_list_wait = std::chrono::seconds(10);
// An old process connects the main channel when the cpr socket is closed, within a millisecond; by a name that has to
// be looked up within seconds. One that has given up meanwhile would be waited for while its next attempt finds nobody.
inline constexpr auto cpr_main_wait = std::chrono::seconds(30);

}  // namespace migrationd::limits
