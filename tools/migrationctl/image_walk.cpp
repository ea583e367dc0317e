// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/image_walk.hpp"

#include "base/limits.hpp"
#include "protocol/stream/footer_scan.hpp"
#include "protocol/stream/header.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "protocol/stream/sections.hpp"
#include "ram/decode_next.hpp"
#include "ram/mapped_loader.hpp"
#include "ram/ram_section_reader.hpp"
#include "transports/buffered.hpp"
#include "transports/file_channel.hpp"
#include "transports/filter_channel.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <map>
#include <utility>
#include <variant>

namespace migrationd::ctl {

namespace {

using ram::decode_next;
using stream::RamKind;
using stream::RamRecord;

// Every byte that is read is shown to the tap first.
class TappedChannel final : public transports::Channel {
 public:
  TappedChannel(transports::Channel& inner, const StreamTap& tap) : inner_(inner), tap_(tap) {}

  Result<std::size_t> read(std::span<const iovec> into) override {
    MD_TRY(const std::size_t got, inner_.read(into));
    std::size_t left = got;
    for (const iovec& piece : into) {
      const std::size_t count = std::min(left, piece.iov_len);
      if (count > 0) MD_CHECK(tap_({static_cast<const std::byte*>(piece.iov_base), count}));
      left -= count;
    }
    return got;
  }
  Result<void> write(std::span<const iovec> from) override { return inner_.write(from); }
  void shutdown() noexcept override { inner_.shutdown(); }
  Result<void> finish_writing() override { return inner_.finish_writing(); }
  bool bidirectional() const noexcept override { return false; }
  bool is_file() const noexcept override { return true; }
  Result<void> sync_to_disk() override { return inner_.sync_to_disk(); }
  std::string describe() const override { return inner_.describe(); }
  int readable_fd() const noexcept override { return -1; }

 private:
  transports::Channel& inner_;
  const StreamTap& tap_;
};

class Walk {
 public:
  // `file` is null when the stream comes out of a program.
  Walk(transports::Channel& channel, transports::SeekableChannel* file, bool mapped, ImageVisitor& visitor,
       WalkedImage& found)
      : reader_(channel), file_(file), mapped_(mapped), visitor_(visitor), found_(found) {}

  Result<void> run() {
    MD_CHECK(preamble());
    while (!found_.memory_complete) {
      auto element = decode_next(reader_, stream::decode_element);
      if (!element) return std::move(element).error().with(fmt::format("the element at {}", hex(reader_.position())));
      MD_CHECK(take(*element));
    }
    return devices();
  }

 private:
  Result<void> preamble() {
    auto header = decode_next(reader_, stream::decode_header);
    if (!header) return std::move(header).error();
    auto configuration = decode_next(reader_, stream::decode_configuration);
    if (!configuration) return std::move(configuration).error().with("configuration section");
    if (configuration->capabilities) {
      const auto& list = *configuration->capabilities;
      addresses_ = std::find(list.begin(), list.end(), stream::capability_ignore_shared) != list.end();
    }
    found_.configuration = std::move(*configuration);
    return {};
  }

  Result<void> take(const stream::Element& element) {
    if (const auto* start = std::get_if<stream::SectionStart>(&element)) return begin_ram(start->header);
    if (const auto* part = std::get_if<stream::SectionPart>(&element)) return body(part->section_id);
    if (const auto* full = std::get_if<stream::SectionFull>(&element)) return early_section(full->header);
    if (const auto* end = std::get_if<stream::SectionEnd>(&element)) {
      MD_CHECK(body(end->section_id));
      found_.memory_complete = true;
      return {};
    }
    // What a source with a return path, or for postcopy, says in passing. Nobody answers a file.
    if (const auto* command = std::get_if<stream::Command>(&element)) {
      advised_ = advised_ || std::holds_alternative<stream::command::PostcopyAdvise>(*command);
      return {};
    }
    return wire_error("the stream ends before its memory is complete");
  }

  Result<void> begin_ram(const stream::SectionHeader& header) {
    if (header.name != stream::ram_section_name || header.instance_id != 0 ||
        header.version_id != stream::ram_section_version) {
      return wire_error(fmt::format("section '{}' version {}: only 'ram' version {} may come in parts",
                                    printable(header.name), header.version_id, stream::ram_section_version));
    }
    if (ram_id_) return wire_error("section 'ram' starts twice");
    ram_id_ = found_.ram_section_id = header.section_id;
    auto listed = list_blocks();
    if (!listed) return std::move(listed).error().with("section 'ram': block list");
    for (std::size_t i = 0; i < found_.blocks.size(); ++i) indices_.emplace(found_.blocks[i].block.name, i);
    MD_CHECK(visitor_.blocks_known(found_));
    if (mapped_) MD_CHECK(bitmaps());
    return body(header.section_id);
  }

  Result<void> list_blocks() {
    if (mapped_) {
      if (addresses_) return wire_error("x-ignore-shared and mapped-ram do not go together");
      MD_TRY(const auto list, ram::read_mapped_setup(reader_, *file_));
      for (const ram::MappedBlock& one : list) found_.blocks.push_back({one.block, one.place});
      return {};
    }
    stream::RamSetupOptions options;
    options.addresses = addresses_;
    options.postcopy_advised = advised_;
    MD_TRY(auto list, ram::read_ram_setup(reader_, options));
    for (stream::RamSetupBlock& one : list) found_.blocks.push_back({std::move(one), std::nullopt});
    return {};
  }

  Result<void> bitmaps() {
    for (std::size_t index = 0; index < found_.blocks.size(); ++index) {
      const WalkedBlock& one = found_.blocks[index];
      const std::string context = fmt::format("block '{}'", printable(one.block.name));
      Bytes bytes(one.place->bitmap_bytes);
      auto read = file_->read_at(one.place->bitmap_offset, bytes);
      if (!read) return std::move(read).error().with(context);
      auto bitmap = stream::decode_mapped_ram_bitmap(bytes, one.pages());
      if (!bitmap) return std::move(bitmap).error().with(context);
      MD_CHECK(visitor_.bitmap(index, *bitmap));
    }
    return {};
  }

  Result<void> body(std::uint32_t section_id) {
    if (!ram_id_ || section_id != *ram_id_)
      return wire_error(fmt::format("a part of the unknown section {}", section_id));
    auto taken = mapped_ ? empty_body() : records();
    if (!taken) return std::move(taken).error().with("section 'ram'");
    auto footer = decode_next(
        reader_, [&](ByteView bytes) { return stream::decode_footer(bytes, section_id, stream::ram_section_name); });
    if (!footer) return std::move(footer).error();
    return {};
  }

  Result<void> empty_body() {
    auto end = decode_next(reader_, stream::decode_mapped_ram_body);
    if (!end) return std::move(end).error();
    return {};
  }

  Result<void> records() {
    std::size_t wanted = stream::ram_word_bytes;
    while (true) {
      MD_TRY(const ByteView window, reader_.peek(wanted));
      std::size_t taken = 0;
      bool ended = false;
      while (!ended) {
        const ByteView rest = window.subspan(taken);
        const RamRecord record = stream::decode_ram_record(rest, block_.has_value());
        if (record.kind == RamKind::need_more) {
          wanted = record.size;
          break;
        }
        if (record.kind == RamKind::zero && !record.named) {
          const auto run = stream::decode_zero_run(rest, rest.size() / stream::zero_record_bytes);
          MD_CHECK(zeros(run.offset, run.pages));
          taken += run.pages * stream::zero_record_bytes;
          continue;
        }
        MD_CHECK(this->record(rest, record));
        taken += record.size;
        ended = record.kind == RamKind::eos;
      }
      reader_.consume(taken);
      if (ended) return {};
    }
  }

  Result<void> record(ByteView bytes, const RamRecord& record) {
    if (record.named) MD_CHECK(choose_block(record.name));
    switch (record.kind) {
      case RamKind::page:
        return whole_page(record);
      case RamKind::zero:
        return zeros(record.offset, 1);
      case RamKind::xbzrle:
      case RamKind::compressed:
        return encoded(record);
      case RamKind::eos:
      case RamKind::multifd_flush:
        return {};
      case RamKind::mem_size:
        return wire_error("a second block list");
      case RamKind::malformed:
      case RamKind::need_more:
        break;
    }
    return stream::ram_record_error(bytes, block_.has_value());
  }

  Result<void> whole_page(const RamRecord& record) {
    MD_TRY(const std::uint64_t page, prove(record.offset, 1));
    return visitor_.page(*block_, page, record.payload);
  }

  Result<void> encoded(const RamRecord& record) {
    MD_TRY(const std::uint64_t page, prove(record.offset, 1));
    return visitor_.encoded_page(*block_, page, record);
  }

  Result<void> zeros(std::uint64_t offset, std::uint64_t pages) {
    MD_TRY(const std::uint64_t first, prove(offset, pages));
    return visitor_.zero_pages(*block_, first, pages);
  }

  Result<void> choose_block(std::string_view name) {
    const auto found = indices_.find(name);
    if (found == indices_.end()) {
      return wire_error(fmt::format("a page of block '{}', which was not listed", printable(name)));
    }
    block_ = found->second;
    return {};
  }

  // The number of the page at `offset` of the current block, when so many lie within it.
  Result<std::uint64_t> prove(std::uint64_t offset, std::uint64_t pages) const {
    const WalkedBlock& one = found_.blocks[*block_];
    const std::uint64_t first = offset / stream::page_bytes;
    if (first < one.pages() && pages <= one.pages() - first) return first;
    return wire_error(fmt::format("block '{}': a page at {} is past the end (used {})", printable(one.block.name),
                                  hex(offset), hex(one.block.used_length)));
  }

  Result<void> early_section(const stream::SectionHeader& header) {
    const std::string context = fmt::format("section '{}' before the memory", printable(header.name));
    if (!ram_id_) return wire_error("comes before 'ram'").with(context);
    if (early_.size() >= limits::sections) return Error(ErrorKind::limit, "too many sections").with(context);
    stream::EarlySectionScan scan(header.section_id, *ram_id_);
    auto found = scan.feed(reader_.buffered());
    while (found.needs_more()) {
      if (found.needed() > reader_.capacity()) return wire_error("its end was not found").with(context);
      MD_TRY(const ByteView available, reader_.peek(found.needed()));
      found = scan.feed(available);
    }
    if (found.failed()) return std::move(found).error().with(context);
    stream::DeviceSection section{header.section_id, header.name, header.instance_id, header.version_id, {}, true};
    const ByteView body = reader_.buffered().first(found.value());
    section.body.assign(body.begin(), body.end());
    reader_.consume(found.consumed());
    early_.push_back(std::move(section));
    return {};
  }

  Result<void> devices() {
    stream::DeviceTail tail(*ram_id_, std::move(early_));
    auto read = read_tail(tail);
    if (!read) return std::move(read).error().with("device sections");
    found_.devices = std::move(tail).take();
    return {};
  }

  Result<void> read_tail(stream::DeviceTail& tail) {
    while (true) {
      MD_TRY(const bool ended, reader_.at_end());
      if (ended) {
        MD_TRY(const auto progress, tail.closed());
        if (progress == stream::TailProgress::complete) return {};
        return wire_error("the stream ends too early");
      }
      const ByteView available = reader_.buffered();
      MD_CHECK(tail.feed(available));
      reader_.consume(available.size());
    }
  }

  transports::BufferedReader reader_;
  transports::SeekableChannel* file_;
  bool mapped_;
  ImageVisitor& visitor_;
  WalkedImage& found_;
  bool addresses_ = false;
  bool advised_ = false;
  std::optional<std::uint32_t> ram_id_;
  std::map<std::string, std::size_t, std::less<>> indices_;
  std::optional<std::size_t> block_;
  std::vector<stream::DeviceSection> early_;
};

Result<std::unique_ptr<transports::Channel>> decompressed(const OpenedImage& image, UniqueFd input, StopSource& stop) {
  if (::lseek(input.get(), static_cast<off_t>(image.image.stream_offset), SEEK_SET) < 0) {
    return Error::from_errno("seek to the compressed stream");
  }
  MD_TRY(auto child, transports::start_filter(image.image.decompressor_command(), std::move(input)));
  return transports::make_filter_channel(std::move(child), stop, image.image.decompressor(), image.path);
}

}  // namespace

Result<void> walk_image(const OpenedImage& image, ImageVisitor& visitor, StopSource& stop, WalkedImage& found,
                        const StreamTap& tap) {
  MD_CHECK(image.image.check_usable());
  MD_TRY(UniqueFd fd, image.fd.duplicate());
  if (!image.image.decompressor().empty()) {
    MD_TRY(const auto channel, decompressed(image, std::move(fd), stop));
    if (!tap) return Walk(*channel, nullptr, false, visitor, found).run();
    TappedChannel tapped(*channel, tap);
    return Walk(tapped, nullptr, false, visitor, found).run();
  }
  transports::FileChannel file(std::move(fd), image.image.stream_offset, stop, image.path);
  if (!tap) return Walk(file, &file, image.image.has_places(), visitor, found).run();
  TappedChannel tapped(file, tap);
  return Walk(tapped, &file, image.image.has_places(), visitor, found).run();
}

}  // namespace migrationd::ctl
