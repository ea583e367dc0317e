// SPDX-License-Identifier: Apache-2.0
#include "tools/migrationctl/image_writer.hpp"

#include "protocol/stream/header.hpp"
#include "protocol/stream/mapped_ram.hpp"
#include "protocol/stream/ram_record.hpp"
#include "protocol/stream/sections.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <filesystem>

namespace migrationd::ctl {

namespace {

using stream::page_bytes;

constexpr std::size_t run_bytes = std::size_t{1} << 20;

bool is_zero(ByteView bytes) noexcept {
  return bytes[0] == std::byte{0} && std::memcmp(bytes.data(), bytes.data() + 1, bytes.size() - 1) == 0;
}

void append(Bytes& to, ByteView bytes) { to.insert(to.end(), bytes.begin(), bytes.end()); }

// As the input's, with or without mapped-ram among the capabilities.
stream::Configuration configuration_for(const stream::Configuration& from, bool mapped) {
  stream::Configuration out = from;
  std::vector<std::string> list = from.capabilities.value_or(std::vector<std::string>());
  std::erase(list, stream::capability_mapped_ram);
  if (mapped) list.emplace_back(stream::capability_mapped_ram);
  out.capabilities.reset();
  if (!list.empty()) out.capabilities = std::move(list);
  return out;
}

void encode_preamble(ByteWriter& out, const WalkedImage& image, bool mapped) {
  stream::encode_header(out);
  stream::encode_configuration(out, configuration_for(*image.configuration, mapped));
  stream::encode_section_start(out, {image.ram_section_id, stream::ram_section_name, 0, stream::ram_section_version});
}

// Ends a RAM body.
void encode_body_end(ByteWriter& out, const WalkedImage& image) {
  std::array<std::byte, stream::ram_word_bytes> eos{};
  out.bytes(ByteView(eos).first(stream::encode_eos(eos.data())));
  stream::encode_footer(out, image.ram_section_id);
}

Bytes early_devices(const WalkedImage& image) {
  ByteWriter out;
  for (const stream::DeviceSection& one : image.devices->sections) {
    if (one.early) stream::encode_device_section(out, one);
  }
  return std::move(out).take();
}

void encode_devices(ByteWriter& out, const WalkedImage& image) {
  for (const stream::DeviceSection& one : image.devices->sections) {
    if (!one.early) stream::encode_device_section(out, one);
  }
  stream::encode_eof(out);
  if (image.devices->description) stream::encode_description(out, *image.devices->description);
}

std::uint64_t total_of(const WalkedImage& image) {
  std::uint64_t total = 0;
  for (const WalkedBlock& one : image.blocks) total += one.block.used_length;
  return total;
}

}  // namespace

// --- LibvirtImage and Target ----------------------------------------------------------------------------------------

Result<LibvirtImage> LibvirtImage::begin(const std::string& path, const stream::NewSaveImage& image) {
  LibvirtImage out;
  out.path_ = path;
  MD_TRY(out.header_, stream::plan_save_image(image));
  MD_TRY(out.fd_, create_for_writing(path));
  ByteWriter bytes;
  stream::SaveImageHeader unfinished = out.header_;
  unfinished.complete = false;
  stream::encode_save_image(bytes, unfinished, image);
  MD_CHECK(write_at(out.fd_.get(), 0, bytes.view()));
  MD_CHECK(make_durable(out.fd_.get(), path));
  return out;
}

Result<void> LibvirtImage::finish() {
  ByteWriter bytes;
  stream::encode_save_image_header(bytes, header_);
  MD_CHECK(write_at(fd_.get(), 0, bytes.view()));
  return make_durable(fd_.get(), path_);
}

Result<Target> open_target(const std::string& path, const stream::NewSaveImage* image, StopSource& stop) {
  Target out;
  out.path = path;
  std::uint64_t start = 0;
  if (image != nullptr) {
    MD_TRY(LibvirtImage made, LibvirtImage::begin(path, *image));
    start = made.stream_offset();
    out.libvirt.emplace(std::move(made));
    out.fd.reset(::open(path.c_str(), O_RDWR | O_CLOEXEC));
    if (!out.fd) return Error::from_errno(fmt::format("Could not open '{}'", printable(path, 4096)));
  } else {
    MD_TRY(out.fd, create_for_writing(path));
  }
  MD_TRY(UniqueFd own, out.fd.duplicate());
  out.file = std::make_unique<transports::FileChannel>(std::move(own), start, stop, path);
  out.file->write_mark_last();
  return out;
}

Result<void> Target::finish() {
  MD_CHECK(file->sync_to_disk());
  if (libvirt) return libvirt->finish();
  return make_durable(fd.get(), path);
}

// --- PlainWriter ----------------------------------------------------------------------------------------------------

PlainWriter::PlainWriter(Target& target, const WalkedImage& image) : image_(image), out_(*target.file) {}

Result<void> PlainWriter::begin() {
  ByteWriter out;
  encode_preamble(out, image_, false);
  std::vector<stream::RamSetupBlock> blocks;
  for (const WalkedBlock& one : image_.blocks) {
    blocks.push_back(one.block);
    blocks.back().page_size.reset();  // only behind a POSTCOPY_ADVISE, which is not written
  }
  stream::encode_ram_setup(out, blocks);
  encode_body_end(out, image_);
  out.bytes(early_devices(image_));
  stream::encode_section_end(out, image_.ram_section_id);
  return out_.append(out.view());
}

// Empty: the block of the record before.
std::string_view PlainWriter::name_for(std::size_t block) {
  if (block_ == block) return {};
  block_ = block;
  return image_.blocks[block].block.name;
}

Result<void> PlainWriter::zeros(std::size_t block, std::uint64_t first, std::uint64_t count) {
  constexpr std::uint64_t at_once = 4096;
  std::array<std::byte, stream::ram_record_header_max + 1> named{};
  if (count > 0 && block_ != block) {
    const std::size_t size = stream::encode_zero_record(named.data(), first * page_bytes, name_for(block));
    MD_CHECK(out_.append(ByteView(named).first(size)));
    ++first;
    --count;
  }
  while (count > 0) {
    const auto now = static_cast<std::size_t>(std::min(count, at_once));
    scratch_.resize(now * stream::zero_record_bytes);
    stream::encode_zero_run(scratch_.data(), first * page_bytes, now);
    MD_CHECK(out_.append(scratch_));
    first += now;
    count -= now;
  }
  return {};
}

Result<void> PlainWriter::pages(std::size_t block, std::uint64_t first, ByteView bytes) {
  std::array<std::byte, stream::ram_record_header_max> header{};
  for (; !bytes.empty(); bytes = bytes.subspan(page_bytes), ++first) {
    const std::size_t size = stream::encode_page_header(header.data(), first * page_bytes, name_for(block));
    MD_CHECK(out_.append(ByteView(header).first(size)));
    MD_CHECK(out_.append_reference(bytes.first(page_bytes)));
  }
  return out_.flush();
}

Result<void> PlainWriter::end() {
  ByteWriter out;
  encode_body_end(out, image_);
  encode_devices(out, image_);
  MD_CHECK(out_.append(out.view()));
  return out_.flush();
}

// --- PlacesWriter ---------------------------------------------------------------------------------------------------

PlacesWriter::PlacesWriter(Target& target, const WalkedImage& image) : target_(target), image_(image) {}

Result<void> PlacesWriter::put(ByteView bytes) {
  const iovec piece{const_cast<std::byte*>(bytes.data()), bytes.size()};
  return target_.file->write({&piece, 1});
}

Result<void> PlacesWriter::begin() {
  ByteWriter out;
  encode_preamble(out, image_, true);
  stream::encode_mem_size(out, total_of(image_));
  MD_CHECK(put(out.view()));
  for (const WalkedBlock& one : image_.blocks) {
    if (one.block.address) return plan_error("a stream made with x-ignore-shared cannot become mapped-ram");
    ByteWriter entry;
    entry.str8(one.block.name).u64(one.block.used_length);
    const std::uint64_t entry_end = target_.file->position() + entry.size() + stream::mapped_ram_header_bytes;
    MD_TRY(const ram::MappedPlace place, ram::place_mapped_block(entry_end, one.block.used_length));
    stream::encode_mapped_ram_header(entry, ram::header_of(place));
    MD_CHECK(put(entry.view()));
    target_.file->seek(place.pages_end);
    places_.push_back(place);
    present_.emplace_back(one.pages());
  }
  return {};
}

Result<void> PlacesWriter::pages(std::size_t block, std::uint64_t first, ByteView bytes) {
  for (; !bytes.empty(); bytes = bytes.subspan(page_bytes), ++first) {
    const ByteView page = bytes.first(page_bytes);
    if (is_zero(page)) {
      MD_CHECK(zeros(block, first, 1));
      continue;
    }
    const bool adjacent = block == run_block_ && first == run_first_ + run_.size() / page_bytes;
    if (!adjacent || run_.size() >= run_bytes) MD_CHECK(flush());
    if (run_.empty()) {
      run_block_ = block;
      run_first_ = first;
    }
    append(run_, page);
    present_[block].set(first);
  }
  return {};
}

Result<void> PlacesWriter::flush() {
  if (run_.empty()) return {};
  MD_CHECK(write_at(target_.fd.get(), places_[run_block_].pages_offset + run_first_ * page_bytes, run_));
  run_.clear();
  return {};
}

Result<void> PlacesWriter::zeros(std::size_t block, std::uint64_t first, std::uint64_t count) {
  const std::uint64_t end = first + count;
  for (std::uint64_t page = present_[block].find_set(first, end); page < end;
       page = present_[block].find_set(page, end)) {
    const std::uint64_t stop = present_[block].find_clear(page, end);
    MD_CHECK(drop(block, page, stop - page));
    page = stop;
  }
  return {};
}

// Pages that had been written: the file loses them again.
Result<void> PlacesWriter::drop(std::size_t block, std::uint64_t first, std::uint64_t count) {
  MD_CHECK(flush());
  present_[block].clear_range(first, count);
  // Where holes cannot be made the old bytes stay; the bitmap says that they do not count.
  ::fallocate(target_.fd.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
              static_cast<off_t>(places_[block].pages_offset + first * page_bytes),
              static_cast<off_t>(count * page_bytes));
  return {};
}

Result<void> PlacesWriter::read_page(std::size_t block, std::uint64_t page, std::span<std::byte> into) {
  MD_CHECK(flush());
  std::fill(into.begin(), into.end(), std::byte{0});
  if (!present_[block].test(page)) return {};
  return target_.file->read_at(places_[block].pages_offset + page * page_bytes, into);
}

Result<void> PlacesWriter::end() {
  MD_CHECK(flush());
  for (std::size_t block = 0; block < places_.size(); ++block) {
    MD_CHECK(
        write_at(target_.fd.get(), places_[block].bitmap_offset, stream::encode_mapped_ram_bitmap(present_[block])));
  }
  ByteWriter out;
  encode_body_end(out, image_);
  out.bytes(early_devices(image_));
  stream::encode_section_end(out, image_.ram_section_id);
  encode_body_end(out, image_);
  encode_devices(out, image_);
  return put(out.view());
}

}  // namespace migrationd::ctl
