// SPDX-License-Identifier: Apache-2.0
// A file as recognise_image() sees it. A save image's header that is taken is encoded again to the same bytes, but for
// what nobody reads; its texts lie within the data; no read reaches before the file or is larger than a bound.
#include "protocol/stream/image_kind.hpp"

#include <algorithm>
#include <cstdlib>
#include <cstring>

using namespace migrationd;
using namespace migrationd::stream;

namespace {

void require(bool right) {
  if (!right) std::abort();
}

void check_header(ByteView file) {
  const auto decoded = decode_save_image_header(file);
  if (decoded.needs_more()) require(decoded.needed() > file.size());
  if (!decoded.is_ready()) return;
  const SaveImageHeader& header = decoded.value();
  require(header.data_length > 0 && header.data_length <= save_image_data_max);
  require(header.cookie_offset < header.data_length);
  ByteWriter out;
  encode_save_image_header(out, header);
  const auto again = decode_save_image_header(out.view());
  require(again.is_ready() && again.value() == header);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const ByteView file = std::as_bytes(std::span(data, size));
  check_header(file);
  const ReadAt read = [file](std::uint64_t offset, std::span<std::byte> into) -> Result<std::size_t> {
    require(into.size() <= save_image_data_max);
    if (offset >= file.size()) return std::size_t{0};
    const std::size_t count = std::min<std::size_t>(into.size(), file.size() - offset);
    std::memcpy(into.data(), file.data() + offset, count);
    return count;
  };
  const auto image = recognise_image(read);
  require(image.has_value());
  const bool usable = image->check_usable().has_value();
  require(usable == image->reason.empty());
  require(!usable || image->stream_offset < file.size());
  require(image->decompressor().empty() == (image->kind != ImageKind::libvirt_compressed));
  if (!image->libvirt) return 0;
  const auto texts = read_save_image_texts(read, *image->libvirt);
  if (texts) require(!texts->xml.empty() && texts->xml.size() + texts->cookie.size() < image->libvirt->data_length);
  return 0;
}
