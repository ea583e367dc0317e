// SPDX-License-Identifier: Apache-2.0
//
// The run-state name in the body of the `globalstate` section (instance 0, version 1).
//
//   u32 size of the name with its NUL    100 bytes: the name, NUL padded
//
// QEMU 10.0 uses bytes 32 and 33 of the field for two flags of its own; patching leaves them alone.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/layout.hpp"

#include <string>
#include <string_view>

namespace migrationd::stream {

inline constexpr std::string_view globalstate_name = "globalstate";
// The name field of 10.0 ends where its flags begin.
inline constexpr std::size_t run_state_bytes_max = 31;

// "running", "paused", ...
Result<std::string> read_run_state(ByteView body);
// `body` with the name replaced. `name` is 1..31 bytes without NUL.
Result<Bytes> with_run_state(ByteView body, std::string_view name);
// A fresh body, as QEMU 7.2 writes it.
Result<Bytes> make_globalstate(std::string_view name);

}  // namespace migrationd::stream
