// SPDX-License-Identifier: Apache-2.0
//
// libvirt's save image: a header, the domain's XML, and a migration stream behind them (docs/formats/save-image.md).
//
//   0   magic        16 bytes: "LibvirtQemudSave"; "LibvirtQemudPart" until the image is whole
//   16  version      u32: 1 or 2
//   20  data_len     u32: bytes between byte 92 and the stream
//   24  was_running  u32: whether the domain goes on by itself when it is restored
//   28  format       u32: SaveImageFormat; not there in version 1
//   32  cookie       u32: where in the data libvirt's cookie begins; 0: there is none
//   36  56 bytes of zeros
//   92  data: the XML, NUL; the cookie (XML too), NUL; zeros, so that the XML can grow in its place
//
// The words are in the byte order of the host that wrote them: a version above 2 is a swapped one.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/decoded.hpp"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace migrationd::stream {

inline constexpr std::size_t save_image_header_bytes = 92;
inline constexpr std::uint32_t save_image_version = 2;
// Libvirt leaves so much behind the texts.
inline constexpr std::size_t save_image_padding = 65536;
// A domain's XML has some kilobytes, a large one some hundred.
inline constexpr std::uint32_t save_image_data_max = 16U << 20;

// How the stream is stored; the numbers of the file.
enum class SaveImageFormat : std::uint32_t { raw = 0, gzip = 1, bzip2 = 2, xz = 3, lzop = 4, zstd = 5, sparse = 6 };

// Libvirt's names: "raw", "gzip", ... Of the five compressed ones it is the program's name too.
std::string_view to_name(SaveImageFormat format) noexcept;
constexpr bool is_compressed(SaveImageFormat format) noexcept {
  return format != SaveImageFormat::raw && format != SaveImageFormat::sparse;
}

struct SaveImageHeader {
  bool complete = true;       // false: the magic of an image that is being written, or whose writing was interrupted
  bool byte_swapped = false;  // written on a host of the other byte order
  std::uint32_t version = save_image_version;
  std::uint32_t data_length = 0;  // 1..save_image_data_max
  bool was_running = false;
  SaveImageFormat format = SaveImageFormat::raw;
  std::uint32_t cookie_offset = 0;  // below data_length; 0: none

  // Where the stream, or what a compressor made of it, begins in the file.
  std::uint64_t stream_offset() const noexcept { return save_image_header_bytes + std::uint64_t{data_length}; }
  bool operator==(const SaveImageHeader&) const = default;
};

// Whether these bytes (16 or more) begin a save image, whole or not.
bool is_save_image(ByteView start) noexcept;
// The header alone. Refused by its first bytes if it is none; an unknown version or format, and places outside the
// data.
Decoded<SaveImageHeader> decode_save_image_header(ByteView available);
void encode_save_image_header(ByteWriter& out, const SaveImageHeader& header);

// The two texts of the data, without their NULs; views.
struct SaveImageTexts {
  std::string_view xml;
  std::string_view cookie;  // empty: there is none
};
// `data` is data_length bytes. Error: no XML, or one without an end.
Result<SaveImageTexts> decode_save_image_texts(const SaveImageHeader& header, ByteView data);

// Header and data of a new image whose stream begins right behind them. `xml` holds no NUL and is not empty; error: it
// is too long. `complete` as the header says it: write the whole with false first.
struct NewSaveImage {
  std::string_view xml;
  std::string_view cookie = {};
  SaveImageFormat format = SaveImageFormat::raw;
  bool was_running = false;
};
Result<SaveImageHeader> plan_save_image(const NewSaveImage& image);
void encode_save_image(ByteWriter& out, const SaveImageHeader& header, const NewSaveImage& image);

}  // namespace migrationd::stream
