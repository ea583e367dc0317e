// SPDX-License-Identifier: Apache-2.0
//
// JSON as QEMU writes it: one line of ASCII, ": " after keys, ", " between members, \uXXXX in upper-case hex, doubles
// with 17 significant digits (qmp.md 1). What is not UTF-8 appears as \uFFFD. Numbers that JSON cannot express are
// written as the nearest that it can: infinities as the largest double, NaN as 0.
//
// Thread: pure functions.
#pragma once

#include "protocol/qmp/error.hpp"

namespace migrationd::qmp {

std::string write_json(const OrderedJson& value);
std::string write_json(const Json& value);

// One message of the control socket: the value and CR LF, without which libvirt would wait for ever.
std::string write_line(const OrderedJson& value);

// Appends `text` as a quoted string.
void append_quoted(std::string& out, std::string_view text);

}  // namespace migrationd::qmp
