// SPDX-License-Identifier: Apache-2.0
//
// What kind of file is this, and where does its stream begin? For everybody who opens files with machines in them: the
// daemon, migrationctl, and who reads pages of one lazily.
//
// Pure: reading is the caller's (pread of a descriptor, mostly). A few kilobytes are looked at, never pages; whether
// the file is whole up to its end is for who reads it.
#pragma once

#include "base/bytes.hpp"
#include "base/result.hpp"
#include "protocol/stream/configuration.hpp"
#include "protocol/stream/save_image.hpp"

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::stream {

enum class ImageKind : std::uint8_t {
  plain,               // a migration stream, as `migrate file:` writes it
  mapped_ram,          // a stream whose pages have places in the file
  libvirt_raw,         // a save image with a plain stream
  libvirt_sparse,      // a save image with a mapped-ram stream
  libvirt_compressed,  // a save image with a compressed plain stream
  incomplete,          // one of them that was not written to its end
  unknown,
};

// "plain", "mapped-ram", "libvirt-raw", "libvirt-sparse", "libvirt-compressed", "incomplete", "unknown".
std::string_view to_name(ImageKind kind) noexcept;

struct Image {
  ImageKind kind = ImageKind::unknown;
  // Where the stream (compressed: what the decompressor takes) begins, from byte 0 of the file.
  std::uint64_t stream_offset = 0;
  // It begins as libvirt's save images do.
  bool save_image = false;
  // Of save images whose header is understood, incomplete ones too.
  std::optional<SaveImageHeader> libvirt;
  // Of plain and mapped_ram, libvirt's or not.
  std::optional<Configuration> configuration;
  // incomplete, unknown: why, in one sentence.
  std::string reason;

  // Pages lie at places of their own, so they can be read without reading what comes before.
  bool has_places() const noexcept { return kind == ImageKind::mapped_ram || kind == ImageKind::libvirt_sparse; }
  // The program that makes the stream readable ("gzip"); empty: none is needed.
  std::string_view decompressor() const noexcept {
    return kind == ImageKind::libvirt_compressed ? to_name(libvirt->format) : std::string_view();
  }
  // It and its arguments, as libvirt runs it: the stream's bytes on standard input. Empty: none is needed.
  std::vector<std::string> decompressor_command() const;
  // Errors for who cannot go on with it: incomplete and unknown files, with the reason.
  Result<void> check_usable() const;
};

// Fills `into` from `offset` of the file; fewer bytes than asked for only at its end.
using ReadAt = std::function<Result<std::size_t>(std::uint64_t offset, std::span<std::byte> into)>;

// Looks at the file from `start` on; save images begin at byte 0 of the file only. Errors: those of `read`; everything
// about the bytes is said by the kind.
Result<Image> recognise_image(const ReadAt& read, std::uint64_t start = 0);

// The domain's XML and libvirt's cookie, of a file that has a header.
struct SaveImageText {
  std::string xml;
  std::string cookie;
};
Result<SaveImageText> read_save_image_texts(const ReadAt& read, const SaveImageHeader& header);

}  // namespace migrationd::stream
