// SPDX-License-Identifier: Apache-2.0
//
// Which pages of a block hold data, drawn with one character per stretch of memory. Pure.
#pragma once

#include "base/bitmap.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace migrationd::ctl {

enum class PictureStyle : std::uint8_t {
  blocks,  // UTF-8: blank, light, medium, dark shade, full block
  ascii,   // blank, '.', ':', 'o', '#'
};

// From the terminal and the locale's variables: LC_ALL, LC_CTYPE, LANG, the first that is set.
PictureStyle picture_style(bool terminal, const char* lc_all, const char* lc_ctype, const char* lang);

struct Picture {
  std::vector<std::string> rows;     // each `width` cells, the last one shorter
  std::uint64_t pages_per_cell = 1;  // a power of two
};

// Blank: no data at all; full: every page. Anything between is one of three shades, so a single page with data is seen,
// and a single zero page too. At most `max_rows` rows of `width` cells.
Picture draw(const Bitmap& data, std::size_t width, std::size_t max_rows, PictureStyle style);

// "' ' none, '.' up to a third, ..." for people.
std::string picture_legend(PictureStyle style);

}  // namespace migrationd::ctl
