// SPDX-License-Identifier: Apache-2.0
//
// Self-description: what was written, field by field, and its JSON form at the end of a stream.
//
// The engine notes a Layout while it saves, from the same rows and with the sizes that really were written, so
// the description cannot say anything else than the bytes. Rendering it is a pure function here. The shape and
// text style are those of docs/formats/vmstate.md, "The description of a stream": compact, ", " and ": ", keys in
// fixed order, `size` last.
//
// Thread: values.
#pragma once

#include "base/bytes.hpp"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::vmstate {

struct FieldLayout;

// One description as it was written: the fields that were there, and the subsections that were sent.
struct Layout {
  std::string_view name;  // the table's constant
  std::uint32_t version = 0;
  std::vector<FieldLayout> fields;
  std::vector<Layout> subsections;

  bool operator==(const Layout& other) const;
};

struct FieldLayout {
  std::string name;
  std::string_view type;
  std::uint64_t size = 0;              // bytes of one element, its subsections included
  std::uint32_t array_length = 0;      // > 1: stands for so many equal elements
  std::optional<std::uint32_t> index;  // element of an array that could not be compressed
  std::vector<Layout> nested;          // of a struct, vstruct or tmp: its layout, exactly one; else empty

  bool operator==(const FieldLayout& other) const;
};

// The members of one description without braces: "vmsd_name": ..., "version": ..., "fields": [...].
std::string json_members(const Layout& layout);

// `text` as a JSON string with its quotes.
std::string json_string(std::string_view text);

// Blanks to append so that a reader that looks for the last zero byte and then for the first '{' finds the text
// and not a length byte 0x7b in front of it. `length` is that of the text; the result is below 17 MiB and almost
// always 0.
std::size_t description_padding(std::size_t length);

}  // namespace migrationd::vmstate
