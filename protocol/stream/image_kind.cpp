// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/image_kind.hpp"

#include "protocol/stream/header.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>

namespace migrationd::stream {

namespace {

constexpr std::array<std::string_view, 7> kind_names{
    "plain", "mapped-ram", "libvirt-raw", "libvirt-sparse", "libvirt-compressed", "incomplete", "unknown"};

// More than any real configuration section needs (a name, two capabilities, a UUID).
constexpr std::size_t look_bytes = std::size_t{32} << 10;

bool is_all_zero(ByteView bytes) noexcept {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte value) { return value == std::byte{0}; });
}

Result<Bytes> look(const ReadAt& read, std::uint64_t offset) {
  Bytes bytes(look_bytes);
  MD_TRY(const std::size_t got, read(offset, bytes));
  bytes.resize(got);
  return bytes;
}

void say(Image& image, ImageKind kind, std::string reason) {
  image.kind = kind;
  image.reason = std::move(reason);
}

bool lists_mapped_ram(const Configuration& configuration) {
  if (!configuration.capabilities) return false;
  const auto& list = *configuration.capabilities;
  return std::find(list.begin(), list.end(), capability_mapped_ram) != list.end();
}

// A stream at `bytes`: plain or mapped-ram by its configuration.
void recognise_stream(Image& image, ByteView bytes) {
  if (bytes.empty()) return say(image, ImageKind::incomplete, "it ends where its stream should begin");
  if (is_all_zero(bytes.first(std::min(bytes.size(), header_bytes)))) {
    return say(image, ImageKind::incomplete, "it was not written to its end (zeros stand where its header is due)");
  }
  const auto header = decode_header(bytes);
  if (header.failed()) return say(image, ImageKind::unknown, header.error().text());
  if (header.needs_more()) return say(image, ImageKind::incomplete, "it ends within its header");
  auto configuration = decode_configuration(bytes.subspan(header.consumed()));
  if (configuration.failed()) return say(image, ImageKind::unknown, configuration.error().text());
  if (configuration.needs_more()) {
    // Either the file ends here, or the section passes every real one's length.
    if (bytes.size() < look_bytes) return say(image, ImageKind::incomplete, "it ends within its configuration");
    return say(image, ImageKind::unknown, "its configuration section is larger than any real one");
  }
  image.kind = lists_mapped_ram(configuration.value()) ? ImageKind::mapped_ram : ImageKind::plain;
  image.configuration = std::move(configuration).value();
}

Result<void> recognise_save_image(Image& image, ByteView start, const ReadAt& read) {
  image.save_image = true;
  const auto header = decode_save_image_header(start);
  if (header.failed()) {
    say(image, ImageKind::unknown, header.error().text());
    return {};
  }
  if (header.needs_more()) {
    say(image, ImageKind::incomplete, "it ends within libvirt's header");
    return {};
  }
  image.libvirt = header.value();
  image.stream_offset = header.value().stream_offset();
  if (!header.value().complete) {
    say(image, ImageKind::incomplete, "libvirt's header says that the image is not whole");
    return {};
  }
  MD_TRY(const Bytes bytes, look(read, image.stream_offset));
  if (is_compressed(header.value().format)) {
    image.kind = ImageKind::libvirt_compressed;
    if (bytes.empty()) say(image, ImageKind::incomplete, "it ends where its stream should begin");
    return {};
  }
  recognise_stream(image, bytes);
  const bool sparse = header.value().format == SaveImageFormat::sparse;
  if (image.kind != ImageKind::plain && image.kind != ImageKind::mapped_ram) return {};
  if (sparse != (image.kind == ImageKind::mapped_ram)) {
    say(image, ImageKind::unknown,
        fmt::format("libvirt's header says {}, but the stream is of the other kind", to_name(header.value().format)));
    return {};
  }
  if (sparse && header.value().byte_swapped) {
    // Its bitmaps are words of that host.
    say(image, ImageKind::unknown, "it is sparse and of a host of the other byte order");
    return {};
  }
  image.kind = sparse ? ImageKind::libvirt_sparse : ImageKind::libvirt_raw;
  return {};
}

}  // namespace

std::string_view to_name(ImageKind kind) noexcept { return kind_names.at(static_cast<std::size_t>(kind)); }

std::vector<std::string> Image::decompressor_command() const {
  if (decompressor().empty()) return {};
  std::vector<std::string> command{std::string(decompressor()), "-dc"};
  if (libvirt->format == SaveImageFormat::lzop) command.emplace_back("--ignore-warn");
  return command;
}

Result<void> Image::check_usable() const {
  if (kind == ImageKind::incomplete) return wire_error(fmt::format("the file is incomplete: {}", reason));
  if (kind == ImageKind::unknown) return wire_error(fmt::format("the file holds no machine: {}", reason));
  return {};
}

Result<Image> recognise_image(const ReadAt& read, std::uint64_t start) {
  Image image;
  image.stream_offset = start;
  MD_TRY(const Bytes bytes, look(read, start));
  if (start == 0 && is_save_image(bytes)) {
    MD_CHECK(recognise_save_image(image, bytes, read));
  } else {
    recognise_stream(image, bytes);
  }
  return image;
}

Result<SaveImageText> read_save_image_texts(const ReadAt& read, const SaveImageHeader& header) {
  Bytes data(std::min(header.data_length, save_image_data_max));
  MD_TRY(const std::size_t got, read(save_image_header_bytes, data));
  MD_TRY(const SaveImageTexts texts, decode_save_image_texts(header, ByteView(data).first(got)));
  return SaveImageText{std::string(texts.xml), std::string(texts.cookie)};
}

}  // namespace migrationd::stream
