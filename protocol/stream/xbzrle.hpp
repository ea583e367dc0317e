// SPDX-License-Identifier: Apache-2.0
//
// XBZRLE: a page as the difference to what the receiver has.
//
//   ( zrun nzrun )*   zrun = len, skip len bytes;   nzrun = len and len bytes to copy
//   len = ULEB128 of one or two bytes (at most 16383)
//
// Bytes behind the last nzrun stay as they are: a trailing run of equal bytes is never encoded.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/layout.hpp"

#include <cstddef>
#include <optional>
#include <span>

namespace migrationd::stream {

using PageView = std::span<const std::byte, page_bytes>;
using MutablePage = std::span<std::byte, page_bytes>;

// Applies `delta` to `page`. Strict: the first zrun may be 0, every other run is at least 1, nothing passes the
// page's end. On an error the page may be partly changed; the migration fails anyway.
Result<void> xbzrle_decode(ByteView delta, MutablePage page);

// The delta that makes `before` into `after`, byte for byte as QEMU's encoder makes it, into `out`; returns its
// length: 0 when the pages are equal. Nothing when it would not fit (send the page raw then).
std::optional<std::size_t> xbzrle_encode(PageView before, PageView after, MutablePage out) noexcept;

}  // namespace migrationd::stream
