// SPDX-License-Identifier: Apache-2.0
//
// COMPRESS_PAGE of QEMU 7.2: one zlib stream per page.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/xbzrle.hpp"

#include <memory>

namespace migrationd::stream {

// Inflates pages one after the other; keeps zlib's state (about 40 KiB) between them. One thread.
class PageInflater {
 public:
  PageInflater();
  ~PageInflater();
  PageInflater(PageInflater&&) noexcept;
  PageInflater& operator=(PageInflater&&) noexcept;

  // `compressed` is one complete zlib stream, nothing behind it, that gives exactly 4096 bytes into `page`.
  Result<void> inflate(ByteView compressed, MutablePage page);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// For tests and for senders to 7.2: the page as one zlib stream of at most compressed_max bytes.
Bytes deflate_page(PageView page, int level);

}  // namespace migrationd::stream
