// SPDX-License-Identifier: Apache-2.0
#include "ram/ram_map.hpp"

#include "base/limits.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <utility>

namespace migrationd::ram {
namespace {

std::string of_block(const std::string& name) { return fmt::format("block '{}'", printable(name)); }

// hugetlb pages are promised when a mapping without MAP_NORESERVE is made, and the promise stays with the file.
// Without it the first touch of a page the pool lacks is SIGBUS; with it the lack is an error here.
Result<Mapping> map_reserved(int fd, std::size_t length) {
  void* const address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (address == MAP_FAILED) return Error::from_errno("reserve 2 MiB pages (see /proc/sys/vm/nr_hugepages)");
  return Mapping(static_cast<std::byte*>(address), length);
}

Result<void> check_geometry(const std::string& name, std::uint64_t length, std::size_t backing_page) {
  if (backing_page != page_size && backing_page != huge_page_size)
    return machine_error(fmt::format("{}: pages of {} bytes are not supported", of_block(name), backing_page));
  if (length == 0 || length % backing_page != 0)
    return machine_error(
        fmt::format("{}: length {} is not a multiple of its page size {}", of_block(name), hex(length), backing_page));
  if (length > limits::ram_block_bytes)
    return Error(ErrorKind::limit,
                 fmt::format("{}: length {} is above {}", of_block(name), hex(length), hex(limits::ram_block_bytes)));
  return {};
}

}  // namespace

Mapping::Mapping(Mapping&& other) noexcept
    : address_(std::exchange(other.address_, nullptr)), length_(std::exchange(other.length_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  if (this != &other) {
    if (address_ != nullptr) ::munmap(address_, length_);
    address_ = std::exchange(other.address_, nullptr);
    length_ = std::exchange(other.length_, 0);
  }
  return *this;
}

Mapping::~Mapping() {
  if (address_ != nullptr) ::munmap(address_, length_);
}

Result<Mapping> Mapping::of_fd(int fd, std::size_t length) {
  void* const address = ::mmap(nullptr, length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (address == MAP_FAILED) return Error::from_errno(fmt::format("map {} bytes of guest memory", length));
  // A core file with guest memory in it is huge and holds the guest's secrets. Failing to say so harms nothing.
  ::madvise(address, length, MADV_DONTDUMP);
  return Mapping(static_cast<std::byte*>(address), length);
}

RamBlock::RamBlock(std::string name, std::uint64_t length, std::size_t backing_page, UniqueFd fd,
                   Mapping engine) noexcept
    : name_(std::move(name)),
      length_(length),
      backing_page_(backing_page),
      fd_(std::move(fd)),
      engine_(std::move(engine)) {}

Result<std::unique_ptr<RamBlock>> RamBlock::create(std::string name, std::uint64_t length, std::size_t backing_page) {
  MD_CHECK(check_geometry(name, length, backing_page));
  const bool huge = backing_page == huge_page_size;
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | (huge ? MFD_HUGETLB | MFD_HUGE_2MB : 0U);
  // One name for all: /proc/PID/maps shows it, and the block's own name came from a peer.
  UniqueFd fd(::memfd_create("migrationd-ram", flags));
  if (!fd) return Error::from_errno(of_block(name) + ": make a memfd");
  if (::ftruncate(fd.get(), static_cast<off_t>(length)) != 0)
    return Error::from_errno(fmt::format("{}: set its length to {}", of_block(name), hex(length)));
  if (::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK) != 0) return Error::from_errno(of_block(name) + ": seal it");
  if (huge) {
    auto reserved = map_reserved(fd.get(), length);
    if (!reserved) return std::move(reserved).error().with(of_block(name));
  }
  auto engine = Mapping::of_fd(fd.get(), length);
  if (!engine) return std::move(engine).error().with(of_block(name));
  return std::unique_ptr<RamBlock>(
      new RamBlock(std::move(name), length, backing_page, std::move(fd), std::move(*engine)));
}

Result<void> check_foreign_memory(int fd, std::uint64_t length, std::size_t page) {
  // Only memfds take seals; a file of a disk or of /dev/shm has none that could be asked for, or cannot get this one.
  const int seals = ::fcntl(fd, F_GET_SEALS);
  if (seals < 0) return machine_error("the descriptor is no memfd");
  if ((seals & F_SEAL_SHRINK) == 0) return machine_error("the memfd is not sealed against shrinking (F_SEAL_SHRINK)");
  struct stat status {};
  struct statfs system {};
  if (::fstat(fd, &status) != 0 || ::fstatfs(fd, &system) != 0) return Error::from_errno("look at the memfd");
  if (static_cast<std::uint64_t>(status.st_size) != length)
    return machine_error(fmt::format("the memfd has {} bytes, not {}", status.st_size, length));
  const std::size_t own_page = system.f_type == HUGETLBFS_MAGIC ? static_cast<std::size_t>(system.f_bsize) : page_size;
  if (own_page != page) return machine_error(fmt::format("the memfd has pages of {} bytes, not of {}", own_page, page));
  return {};
}

Result<std::unique_ptr<RamBlock>> RamBlock::guarded(std::string name, UniqueFd fd, std::uint64_t length,
                                                    std::size_t backing_page) {
  auto engine = Mapping::of_fd(fd.get(), length);
  if (!engine) return std::move(engine).error().with(of_block(name));
  auto guard = BusGuard::watch(engine->data(), length, backing_page);
  if (!guard) return std::move(guard).error().with(of_block(name));
  std::unique_ptr<RamBlock> block(
      new RamBlock(std::move(name), length, backing_page, std::move(fd), std::move(*engine)));
  block->guard_ = std::move(*guard);
  return block;
}

Result<std::unique_ptr<RamBlock>> RamBlock::adopt(std::string name, UniqueFd fd, std::uint64_t length,
                                                  std::size_t backing_page) {
  MD_CHECK(check_geometry(name, length, backing_page));
  auto proved = check_foreign_memory(fd.get(), length, backing_page);
  if (!proved) return std::move(proved).error().with(of_block(name));
  return guarded(std::move(name), std::move(fd), length, backing_page);
}

namespace {

// The page size of a file that is memory. Without a name it must be the kernel's own kind of it.
Result<std::size_t> page_of_shared(int fd, std::uint64_t length, bool named) {
  struct stat status {};
  struct statfs system {};
  if (::fstat(fd, &status) != 0 || ::fstatfs(fd, &system) != 0) return Error::from_errno("look at the descriptor");
  const bool huge = system.f_type == HUGETLBFS_MAGIC;
  if (!S_ISREG(status.st_mode) || (!named && !huge && system.f_type != TMPFS_MAGIC)) {
    return machine_error(named ? "it is no regular file"
                               : "the descriptor is no shared memory (a memfd, or a file of tmpfs or hugetlbfs)");
  }
  if ((::fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDWR) {
    return machine_error("the descriptor is not open for reading and writing");
  }
  if (static_cast<std::uint64_t>(status.st_size) < length) {
    return machine_error(
        fmt::format("the {} has {} bytes, the block {}", named ? "file" : "descriptor's file", status.st_size, length));
  }
  return huge ? static_cast<std::size_t>(system.f_bsize) : page_size;
}

}  // namespace

Result<std::unique_ptr<RamBlock>> RamBlock::take_over(std::string name, UniqueFd fd, std::uint64_t length) {
  auto page = page_of_shared(fd.get(), length, false);
  if (!page) return std::move(page).error();
  MD_CHECK(check_geometry(name, length, *page));
  return guarded(std::move(name), std::move(fd), length, *page);
}

Result<std::unique_ptr<RamBlock>> RamBlock::open_file(std::string name, const std::string& path, std::uint64_t length) {
  const std::string who = fmt::format("'{}'", printable(path, printable_address_bytes));
  UniqueFd fd(::open(path.c_str(), O_RDWR | O_CLOEXEC | O_NONBLOCK));
  if (!fd) return Error::from_errno(who);
  auto page = page_of_shared(fd.get(), length, true);
  if (!page) return std::move(page).error().with(who);
  MD_CHECK(check_geometry(name, length, *page));
  MD_TRY(auto block, guarded(std::move(name), std::move(fd), length, *page));
  block->named_file_ = true;
  return block;
}

Result<void> RamBlock::check() const {
  const auto broken = guard_ ? guard_->broken() : std::nullopt;
  if (!broken) return {};
  return machine_error(fmt::format(
      "{}: the memory at {} could not be had (a huge page that was given back and is gone, or an error of the memory)",
      of_block(name_), hex(*broken)));
}

Result<std::uint64_t> RamBlock::allocated_bytes() const {
  struct stat status {};
  if (::fstat(fd_.get(), &status) != 0) return Error::from_errno(of_block(name_) + ": count its pages");
  return static_cast<std::uint64_t>(status.st_blocks) * 512;
}

Result<void> RamBlock::populate() {
  while (::madvise(engine_.data(), length_, MADV_POPULATE_WRITE) != 0) {
    if (errno == EINTR || errno == EAGAIN) continue;
    return Error::from_errno(fmt::format("{}: get {} bytes of memory", of_block(name_), length_));
  }
  return {};
}

Result<void> RamBlock::punch(std::uint64_t offset, std::uint64_t length) {
  if (offset % backing_page_ != 0 || length % backing_page_ != 0 || offset > length_ || length > length_ - offset)
    return machine_error(fmt::format("{}: range {}+{} cannot be discarded (length {}, pages of {})", of_block(name_),
                                     hex(offset), hex(length), hex(length_), backing_page_));
  if (length == 0) return {};
  if (::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
                  static_cast<off_t>(length)) != 0)
    return Error::from_errno(fmt::format("{}: discard {}+{}", of_block(name_), hex(offset), hex(length)));
  return {};
}

Result<void> RamBlock::reserve() {
  if (backing_page_ == page_size) return {};
  auto reserved = map_reserved(fd_.get(), length_);
  if (!reserved) return std::move(reserved).error().with(of_block(name_));
  return {};
}

Result<void> RamMap::add(std::unique_ptr<RamBlock> block) {
  if (find(block->name())) return machine_error(of_block(block->name()) + ": there are two of that name");
  if (blocks_.size() >= limits::ram_blocks)
    return Error(ErrorKind::limit, fmt::format("more than {} blocks of memory", limits::ram_blocks));
  if (block->length() > limits::ram_total_bytes - total_bytes())
    return Error(ErrorKind::limit, fmt::format("{}: all blocks together are above {}", of_block(block->name()),
                                               hex(limits::ram_total_bytes)));
  blocks_.push_back(std::move(block));
  return {};
}

std::uint64_t RamMap::total_bytes() const noexcept {
  std::uint64_t total = 0;
  for (const auto& block : blocks_) total += block->length();
  return total;
}

Result<void> RamMap::check() const {
  for (const auto& block : blocks_) MD_CHECK(block->check());
  return {};
}

Result<std::size_t> RamMap::find(std::string_view name) const {
  const auto found =
      std::find_if(blocks_.begin(), blocks_.end(), [name](const auto& block) { return block->name() == name; });
  if (found == blocks_.end())
    return machine_error(fmt::format("block '{}': this machine has no memory of that name", printable(name)));
  return static_cast<std::size_t>(found - blocks_.begin());
}

Result<GuestSpan> RamMap::prove(std::size_t block, std::uint64_t offset, std::uint64_t length) const {
  if (block >= blocks_.size()) return wire_error(fmt::format("memory block number {} does not exist", block));
  const RamBlock& target = *blocks_[block];
  if (offset > target.length() || length > target.length() - offset)
    return wire_error(fmt::format("{}: offset {} is past the end (used {})", of_block(target.name()), hex(offset),
                                  hex(target.length())));
  return GuestSpan(block, offset, static_cast<std::size_t>(length));
}

}  // namespace migrationd::ram
