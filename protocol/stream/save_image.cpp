// SPDX-License-Identifier: Apache-2.0
#include "protocol/stream/save_image.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace migrationd::stream {

namespace {

constexpr std::string_view magic_whole = "LibvirtQemudSave";
constexpr std::string_view magic_part = "LibvirtQemudPart";
static_assert(magic_whole.size() == magic_part.size());
constexpr std::size_t word_count = 5;
constexpr std::array<std::string_view, 7> format_names{"raw", "gzip", "bzip2", "xz", "lzop", "zstd", "sparse"};

using Words = std::array<std::uint32_t, word_count>;

// In this host's own order: libvirt writes its structure as it lies in memory.
Words load_words(ByteView bytes) noexcept {
  Words words{};
  std::memcpy(words.data(), bytes.data(), sizeof words);
  return words;
}

void swap(Words& words) noexcept {
  for (std::uint32_t& word : words) word = __builtin_bswap32(word);
}

bool begins_with(ByteView bytes, std::string_view text) noexcept {
  const std::size_t count = std::min(bytes.size(), text.size());
  return as_text(bytes.first(count)) == text.substr(0, count);
}

Result<void> check(const SaveImageHeader& header) {
  if (header.data_length == 0) return wire_error("save image: the header leaves no room for the domain's XML");
  if (header.data_length > save_image_data_max) {
    return Error(ErrorKind::limit, fmt::format("save image: {} bytes of XML, at most {} are taken", header.data_length,
                                               save_image_data_max));
  }
  if (header.cookie_offset >= header.data_length) {
    return wire_error(fmt::format("save image: the cookie at {} lies behind the data's end ({} bytes)",
                                  header.cookie_offset, header.data_length));
  }
  return {};
}

std::string_view text_in(ByteView bytes) noexcept {
  const std::string_view text = as_text(bytes);
  return text.substr(0, text.find('\0'));
}

}  // namespace

std::string_view to_name(SaveImageFormat format) noexcept { return format_names.at(static_cast<std::size_t>(format)); }

bool is_save_image(ByteView start) noexcept {
  return start.size() >= magic_whole.size() && (begins_with(start, magic_whole) || begins_with(start, magic_part));
}

Decoded<SaveImageHeader> decode_save_image_header(ByteView available) {
  if (!begins_with(available, magic_whole) && !begins_with(available, magic_part)) {
    return wire_error("save image: it does not begin as libvirt's images do");
  }
  if (available.size() < save_image_header_bytes) {
    return Decoded<SaveImageHeader>::need_more(save_image_header_bytes);
  }
  Words words = load_words(available.subspan(magic_whole.size()));
  SaveImageHeader header;
  header.complete = begins_with(available, magic_whole);
  header.byte_swapped = words[0] > save_image_version;
  if (header.byte_swapped) swap(words);
  if (words[0] == 0 || words[0] > save_image_version) {
    return wire_error(
        fmt::format("save image: version {} is not supported, only 1 and {}", words[0], save_image_version));
  }
  header.version = words[0];
  header.data_length = words[1];
  header.was_running = words[2] != 0;
  if (header.version > 1) {
    if (words[3] >= format_names.size()) {
      return wire_error(
          fmt::format("save image: format {} is not known, only 0 to {}", words[3], format_names.size() - 1));
    }
    header.format = static_cast<SaveImageFormat>(words[3]);
  }
  header.cookie_offset = words[4];
  if (auto right = check(header); !right) return std::move(right).error();
  return Decoded<SaveImageHeader>::ready(header, save_image_header_bytes);
}

void encode_save_image_header(ByteWriter& out, const SaveImageHeader& header) {
  Words words{header.version, header.data_length, header.was_running ? 1U : 0U,
              static_cast<std::uint32_t>(header.format), header.cookie_offset};
  if (header.byte_swapped) swap(words);
  out.text(header.complete ? magic_whole : magic_part).bytes(std::as_bytes(std::span(words)));
  out.zeros(save_image_header_bytes - magic_whole.size() - sizeof words);
}

Result<SaveImageTexts> decode_save_image_texts(const SaveImageHeader& header, ByteView data) {
  const std::size_t xml_room = header.cookie_offset == 0 ? header.data_length : header.cookie_offset;
  if (data.size() != header.data_length) return wire_error("save image: the domain's XML is cut off");
  SaveImageTexts texts;
  texts.xml = text_in(data.first(xml_room));
  if (texts.xml.empty()) return wire_error("save image: the domain's XML is missing");
  if (texts.xml.size() == xml_room) return wire_error("save image: the domain's XML has no end");
  if (header.cookie_offset != 0) texts.cookie = text_in(data.subspan(xml_room));
  return texts;
}

Result<SaveImageHeader> plan_save_image(const NewSaveImage& image) {
  if (image.xml.empty() || image.xml.find('\0') != std::string_view::npos) {
    return plan_error("the domain's XML is empty or holds a zero byte");
  }
  const std::size_t xml = image.xml.size() + 1;
  const std::size_t cookie = image.cookie.empty() ? 0 : image.cookie.size() + 1;
  if (xml + cookie > save_image_data_max - save_image_padding) {
    return plan_error(fmt::format("the domain's XML has {} bytes, at most {} fit", image.xml.size(),
                                  save_image_data_max - save_image_padding - 1));
  }
  SaveImageHeader header;
  header.data_length = static_cast<std::uint32_t>(xml + cookie + save_image_padding);
  header.was_running = image.was_running;
  header.format = image.format;
  header.cookie_offset = cookie == 0 ? 0 : static_cast<std::uint32_t>(xml);
  return header;
}

void encode_save_image(ByteWriter& out, const SaveImageHeader& header, const NewSaveImage& image) {
  const std::size_t start = out.size();
  encode_save_image_header(out, header);
  out.text(image.xml).u8(0);
  if (!image.cookie.empty()) out.text(image.cookie).u8(0);
  out.zeros(static_cast<std::size_t>(header.stream_offset()) - (out.size() - start));
}

}  // namespace migrationd::stream
