// SPDX-License-Identifier: Apache-2.0
//
// One code point at a time, as strictly as QEMU's JSON (qmp.md 1.2): no surrogates, no noncharacters, nothing above
// U+10FFFF, no overlong forms except C0 80, which stands for U+0000.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace migrationd::qmp {

struct Utf8 {
  std::optional<std::uint32_t> code_point;  // nothing: not valid
  std::size_t length;                       // bytes it takes, at least 1
};

// `text` is not empty.
Utf8 decode_utf8(std::string_view text);

// U+FDD0..U+FDEF and the last two of every plane: QEMU refuses them, escaped or raw.
bool is_noncharacter(std::uint32_t code_point);

void append_utf8(std::string& out, std::uint32_t code_point);

}  // namespace migrationd::qmp
