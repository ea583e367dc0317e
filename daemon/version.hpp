// SPDX-License-Identifier: Apache-2.0
// Who speaks, and whose protocol.
#pragma once

#include <string_view>

namespace migrationd {

extern const std::string_view version;
// The QEMU whose control protocol was measured and is spoken: what query-version reports as `qemu`.
inline constexpr int qemu_major = 10;
inline constexpr int qemu_minor = 0;
inline constexpr int qemu_micro = 13;

}  // namespace migrationd
