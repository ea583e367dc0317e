// SPDX-License-Identifier: Apache-2.0
//
// Writing a file with a machine in it: the stream's frame around pages that come from elsewhere, plain or mapped-ram,
// at byte 0 or behind libvirt's header.
//
// A file that is being written is marked as unfinished: its stream's first bytes are kept back, libvirt's header says
// Part. finish() syncs the data, and then sets the marks. Memory: a bit per page, and two buffers of 1 MiB.
#pragma once

#include "base/bitmap.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "protocol/stream/save_image.hpp"
#include "tools/migrationctl/image_walk.hpp"
#include "transports/buffered.hpp"
#include "transports/file_channel.hpp"

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::ctl {

// A save image whose header says Part until finish().
class LibvirtImage {
 public:
  // Makes the file. Error: the XML does not fit; the file cannot be written.
  static Result<LibvirtImage> begin(const std::string& path, const stream::NewSaveImage& image);
  std::uint64_t stream_offset() const noexcept { return header_.stream_offset(); }
  bool sparse() const noexcept { return header_.format == stream::SaveImageFormat::sparse; }
  void set_was_running(bool running) noexcept { header_.was_running = running; }
  // When the stream is on the disk.
  Result<void> finish();

 private:
  std::string path_;
  UniqueFd fd_;
  stream::SaveImageHeader header_;
};

// The file to write into; made by open_target().
struct Target {
  std::string path;
  std::optional<LibvirtImage> libvirt;
  std::unique_ptr<transports::FileChannel> file;  // positioned at the stream's place
  UniqueFd fd;                                    // the same file, for pages and holes

  // Syncs and marks it as whole.
  Result<void> finish();
};
// `image`: libvirt's header and texts go first; null: none.
Result<Target> open_target(const std::string& path, const stream::NewSaveImage* image, StopSource& stop);

// A plain stream, page by page in any order.
class PlainWriter {
 public:
  PlainWriter(Target& target, const WalkedImage& image);

  // Header, configuration, block list, early devices.
  Result<void> begin();
  Result<void> zeros(std::size_t block, std::uint64_t first, std::uint64_t count);
  // Adjacent pages; `bytes` may be reused when it returns.
  Result<void> pages(std::size_t block, std::uint64_t first, ByteView bytes);
  // The other devices and the description.
  Result<void> end();

 private:
  std::string_view name_for(std::size_t block);

  const WalkedImage& image_;
  transports::BufferedWriter out_;
  std::optional<std::size_t> block_;  // of the last record
  Bytes scratch_;
};

// A mapped-ram stream. Pages may come again, and become zero again.
class PlacesWriter {
 public:
  // `image.blocks` need no places: they get new ones.
  PlacesWriter(Target& target, const WalkedImage& image);

  Result<void> begin();
  Result<void> zeros(std::size_t block, std::uint64_t first, std::uint64_t count);
  Result<void> pages(std::size_t block, std::uint64_t first, ByteView bytes);
  // For deltas: what the page holds now.
  Result<void> read_page(std::size_t block, std::uint64_t page, std::span<std::byte> into);
  Result<void> end();

 private:
  Result<void> put(ByteView bytes);
  Result<void> flush();
  Result<void> drop(std::size_t block, std::uint64_t first, std::uint64_t count);

  Target& target_;
  const WalkedImage& image_;
  std::vector<ram::MappedPlace> places_;
  std::vector<Bitmap> present_;
  // Adjacent pages not yet written.
  std::size_t run_block_ = 0;
  std::uint64_t run_first_ = 0;
  Bytes run_;
};

}  // namespace migrationd::ctl
