// SPDX-License-Identifier: Apache-2.0
// A whole file as migrationctl's file commands see it: recognised, gone through, its memory drawn and its devices put
// into words. Compressed images are left out (a program would be started for each), and machines too large for a
// fuzzer.
#include "tools/migrationctl/device_values.hpp"
#include "tools/migrationctl/image_walk.hpp"
#include "tools/migrationctl/memory_map.hpp"
#include "tools/migrationctl/memory_picture.hpp"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

using namespace migrationd;
using namespace migrationd::ctl;

namespace {

constexpr std::uint64_t largest_machine = std::uint64_t{1} << 30;

void require(bool right) {
  if (!right) std::abort();
}

// As MemoryMap, and proves that what it is told lies within the blocks.
class Proving final : public ImageVisitor {
 public:
  Result<void> blocks_known(const WalkedImage& image) override {
    image_ = &image;
    std::uint64_t total = 0;
    for (const WalkedBlock& one : image.blocks) total += one.block.used_length;
    if (total > largest_machine) return plan_error("too large for a fuzzer");
    return map.blocks_known(image);
  }
  Result<void> zero_pages(std::size_t block, std::uint64_t first, std::uint64_t count) override {
    check(block, first, count);
    return map.zero_pages(block, first, count);
  }
  Result<void> page(std::size_t block, std::uint64_t page, ByteView bytes) override {
    check(block, page, 1);
    require(bytes.size() == stream::page_bytes);
    return map.page(block, page, bytes);
  }
  Result<void> encoded_page(std::size_t block, std::uint64_t page, const stream::RamRecord& record) override {
    check(block, page, 1);
    return map.encoded_page(block, page, record);
  }
  Result<void> bitmap(std::size_t block, const Bitmap& bitmap) override {
    require(block < image_->blocks.size() && bitmap.size() == image_->blocks[block].pages());
    return map.bitmap(block, bitmap);
  }
  MemoryMap map;

 private:
  void check(std::size_t block, std::uint64_t first, std::uint64_t count) const {
    require(block < image_->blocks.size());
    const std::uint64_t pages = image_->blocks[block].pages();
    require(first < pages && count <= pages - first);
  }
  const WalkedImage* image_ = nullptr;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const auto stop = StopSource::make();
  OpenedImage image;
  image.path = "input";
  image.fd.reset(::memfd_create("input", MFD_CLOEXEC));
  image.size = size;
  require(::write(image.fd.get(), data, size) == static_cast<ssize_t>(size));
  auto recognised = stream::recognise_image(reading(image.fd.get()));
  require(recognised.has_value());
  image.image = std::move(*recognised);
  if (!image.image.check_usable() || !image.image.decompressor().empty()) return 0;
  Proving visitor;
  WalkedImage walked;
  const auto done = walk_image(image, visitor, **stop, walked);
  require(!done || (walked.memory_complete && walked.devices && walked.configuration));
  for (const Bitmap& one : visitor.map.data()) {
    const Picture picture = draw(one, 64, 16, PictureStyle::ascii);
    require(picture.rows.size() <= 16);
  }
  if (!walked.devices) return 0;
  for (const DescribedSection& one : describe_devices(*walked.devices)) {
    if (one.values) static_cast<void>(values_text(*one.values, 2));
  }
  return 0;
}
