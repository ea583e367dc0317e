// SPDX-License-Identifier: Apache-2.0
#include "ram/packet_reader.hpp"

#include <algorithm>

namespace migrationd::ram {
namespace {

Error cut() { return wire_error("Unexpected end-of-file before all data were read"); }

}  // namespace

Result<std::size_t> PacketReader::read_some() {
  rest_.push_back({ahead().data() + have_, stream::multifd_header_bytes - have_});
  auto read = channel_.read(rest_);
  rest_.pop_back();
  if (read) total_read_.add(*read);
  return read;
}

Result<std::optional<ByteView>> PacketReader::header() {
  rest_.clear();
  while (have_ < stream::multifd_header_bytes) {
    MD_TRY(const std::size_t got, read_some());
    if (got == 0 && have_ == 0) return std::optional<ByteView>();
    if (got == 0) return cut();
    have_ += got;
  }
  current_ = 1 - current_;
  have_ = 0;
  return std::optional<ByteView>(headers_[current_]);
}

Result<void> PacketReader::payload(std::span<const iovec> pieces) {
  rest_.assign(pieces.begin(), pieces.end());
  while (!rest_.empty()) {
    MD_TRY(std::size_t got, read_some());
    if (got == 0) return cut();
    auto piece = rest_.begin();
    while (piece != rest_.end() && got >= piece->iov_len) {
      got -= piece->iov_len;
      ++piece;
    }
    rest_.erase(rest_.begin(), piece);
    if (rest_.empty()) {
      have_ = got;
    } else {
      rest_.front().iov_base = static_cast<std::byte*>(rest_.front().iov_base) + got;
      rest_.front().iov_len -= got;
    }
  }
  return {};
}

}  // namespace migrationd::ram
