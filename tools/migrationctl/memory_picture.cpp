// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/memory_picture.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

namespace migrationd::ctl {

namespace {

constexpr std::size_t shades = 5;
using Palette = std::array<std::string_view, shades>;
constexpr Palette utf8{" ", "\u2591", "\u2592", "\u2593", "\u2588"};
constexpr Palette ascii{" ", ".", ":", "o", "#"};

const Palette& palette(PictureStyle style) { return style == PictureStyle::blocks ? utf8 : ascii; }

// 0: no data; 4: all; 1 to 3: a third each of what lies between.
std::size_t shade(std::uint64_t set, std::uint64_t pages) {
  if (set == 0) return 0;
  if (set == pages) return shades - 1;
  return 1 + std::min<std::uint64_t>(set * 3 / pages, 2);
}

std::uint64_t count(const Bitmap& data, std::uint64_t first, std::uint64_t end) {
  std::uint64_t set = 0;
  for (std::uint64_t page = data.find_set(first, end); page < end; page = data.find_set(page, end)) {
    const std::uint64_t stop = data.find_clear(page, end);
    set += stop - page;
    page = stop;
  }
  return set;
}

}  // namespace

PictureStyle picture_style(bool terminal, const char* lc_all, const char* lc_ctype, const char* lang) {
  if (!terminal) return PictureStyle::ascii;
  for (const char* const one : {lc_all, lc_ctype, lang}) {
    if (one == nullptr || *one == '\0') continue;
    std::string name(one);
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c); });
    const bool utf = name.find("utf-8") != std::string::npos || name.find("utf8") != std::string::npos;
    return utf ? PictureStyle::blocks : PictureStyle::ascii;
  }
  return PictureStyle::ascii;
}

Picture draw(const Bitmap& data, std::size_t width, std::size_t max_rows, PictureStyle style) {
  Picture out;
  while ((data.size() + out.pages_per_cell - 1) / out.pages_per_cell > width * max_rows) out.pages_per_cell *= 2;
  std::string row;
  std::size_t cells = 0;
  for (std::uint64_t first = 0; first < data.size(); first += out.pages_per_cell) {
    const std::uint64_t end = std::min<std::uint64_t>(data.size(), first + out.pages_per_cell);
    row += palette(style)[shade(count(data, first, end), end - first)];
    if (++cells < width) continue;
    out.rows.push_back(std::move(row));
    row.clear();
    cells = 0;
  }
  if (cells > 0) out.rows.push_back(std::move(row));
  return out;
}

std::string picture_legend(PictureStyle style) {
  const Palette& signs = palette(style);
  return fmt::format("'{}' zero or never touched, '{}' '{}' '{}' some data, '{}' all data", signs[0], signs[1],
                     signs[2], signs[3], signs[4]);
}

}  // namespace migrationd::ctl
