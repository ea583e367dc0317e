// SPDX-License-Identifier: Apache-2.0
#include "guest/blocks.hpp"

#include "base/limits.hpp"
#include "guest/memfd.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace migrationd::guest {

namespace {

constexpr std::uint64_t small_page = 4096;

Error about(std::string_view name, Error error) {
  return std::move(error).with(fmt::format("block '{}'", printable(name)));
}

bool has_bitmap(Tracking tracking) noexcept { return tracking == Tracking::bitmap || tracking == Tracking::both; }

std::uint64_t bitmap_bytes(std::uint64_t length) noexcept {
  const std::uint64_t bytes = (length / small_page + 7) / 8;
  return (bytes + small_page - 1) / small_page * small_page;
}

}  // namespace

Mapping::~Mapping() {
  if (address_ != nullptr) ::munmap(address_, length_);
}

AddBlock Block::message() const {
  return {name, reinterpret_cast<std::uintptr_t>(address), length, page_size, tracking};
}

Result<void> Blocks::prove_new(std::string_view name, std::uint64_t length, std::uint32_t page_size) const {
  if (!is_name(name)) return plan_error("its name is not 1 to 255 bytes of printable ASCII");
  if (page_size != 4096 && page_size != 2097152) {
    return plan_error(fmt::format("page size {} is neither 4096 nor 2097152", page_size));
  }
  if (length == 0 || length % page_size != 0 || length > limits::ram_block_bytes) {
    return plan_error(
        fmt::format("length {} is not a multiple of {} up to {}", length, page_size, limits::ram_block_bytes));
  }
  if (blocks_.size() >= guest_blocks) return plan_error(fmt::format("there are {} blocks already", guest_blocks));
  if (find(name)) return plan_error("there is one of that name already");
  return {};
}

Result<void> Blocks::add_bitmap(Block& block) const {
  if (!has_bitmap(block.tracking)) return {};
  const std::uint64_t bytes = bitmap_bytes(block.length);
  MD_TRY(block.bitmap, make_memory(block.name + "-dirty", bytes, small_page));
  MD_TRY(std::byte* const bits, map_memory(block.bitmap.get(), bytes, block.name));
  block.bits = Mapping(bits, bytes);
  return {};
}

Result<std::byte*> Blocks::create(std::string_view name, std::uint64_t length, std::uint32_t page_size,
                                  Tracking tracking) {
  const auto made = [&]() -> Result<std::byte*> {
    MD_CHECK(prove_new(name, length, page_size));
    Block block;
    block.name = name;
    block.length = length;
    block.page_size = page_size;
    block.tracking = tracking;
    MD_TRY(block.memory, make_memory(block.name, length, page_size));
    MD_TRY(block.address, map_memory(block.memory.get(), length, block.name));
    block.own = Mapping(block.address, length);
    MD_CHECK(add_bitmap(block));
    return blocks_.emplace_back(std::move(block)).address;
  };
  auto address = made();
  if (!address) return about(name, std::move(address).error());
  return address;
}

Result<void> Blocks::adopt(std::string_view name, std::byte* address, std::uint64_t length, int fd, Tracking tracking) {
  const auto added = [&]() -> Result<void> {
    MD_TRY(const std::uint32_t page_size, prove_memory(fd, length));
    MD_CHECK(prove_new(name, length, page_size));
    const auto start = reinterpret_cast<std::uintptr_t>(address);
    if (start == 0 || start % page_size != 0) {
      return plan_error(fmt::format("address {} is not aligned to pages of {}", hex(start), page_size));
    }
    MD_CHECK(prove_mapping(address, length, fd));
    const auto overlaps = [&](const Block& other) {
      return address < other.address + other.length && other.address < address + length;
    };
    const auto other = std::find_if(blocks_.begin(), blocks_.end(), overlaps);
    if (other != blocks_.end()) return plan_error(fmt::format("overlaps block '{}'", other->name));
    Block block;
    block.name = name;
    block.address = address;
    block.length = length;
    block.page_size = page_size;
    block.tracking = tracking;
    const int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) return Error::from_errno("duplicate the memfd");
    block.memory.reset(copy);
    MD_CHECK(add_bitmap(block));
    blocks_.push_back(std::move(block));
    return {};
  };
  auto done = added();
  if (!done) return about(name, std::move(done).error());
  return {};
}

Result<std::size_t> Blocks::find(std::string_view name) const {
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].name == name) return i;
  }
  return plan_error(fmt::format("there is no block '{}'", printable(name)));
}

Result<void> Blocks::prove_range(std::size_t at, std::uint64_t offset, std::uint64_t length) const {
  const Block& block = blocks_[at];
  if (length == 0 || offset % block.page_size != 0 || length % block.page_size != 0) {
    return about(block.name, plan_error(fmt::format("offset {} and length {} are not whole pages of {}", hex(offset),
                                                    hex(length), block.page_size)));
  }
  if (offset > block.length || length > block.length - offset) {
    return about(block.name, plan_error(fmt::format("offset {} and length {} are past its end {}", hex(offset),
                                                    hex(length), hex(block.length))));
  }
  return {};
}

Result<void> Blocks::punch(std::size_t at, std::uint64_t offset, std::uint64_t length) const {
  const Block& block = blocks_[at];
  if (::fallocate(block.memory.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) != 0) {
    return about(block.name, Error::from_errno("punch a hole"));
  }
  return {};
}

Result<void> Blocks::forbid_huge_pages() const {
  for (const Block& block : blocks_) {
    if (block.page_size != small_page) continue;
    // EINVAL: a kernel without transparent huge pages, where there is nothing to forbid.
    if (::madvise(block.address, block.length, MADV_NOHUGEPAGE) != 0 && errno != EINVAL) {
      return about(block.name, Error::from_errno("forbid huge pages"));
    }
  }
  return {};
}

}  // namespace migrationd::guest
