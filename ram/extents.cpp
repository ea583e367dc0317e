// SPDX-License-Identifier: Apache-2.0
#include "ram/extents.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace migrationd::ram {

Result<Extents> Extents::of(const RamBlock& block) {
  if (block.backing_page() == page_size) {
    UniqueFd file(::open(fmt::format("/proc/self/fd/{}", block.fd()).c_str(), O_RDONLY | O_CLOEXEC));
    if (!file) return Error::from_errno(fmt::format("block '{}': open its memfd anew", printable(block.name())));
    return Extents(block, std::move(file));
  }
  Extents extents(block, UniqueFd());
  // Without the probe everything counts as data, which is correct; see the top of extents.hpp.
  if (!extents.make_probe()) extents.probe_fd_.reset();
  return extents;
}

Result<void> Extents::make_probe() {
  MD_TRY(auto fd, Userfaultfd::open(kernel::feature_minor_hugetlbfs, true));
  MD_TRY(probe_, Mapping::of_fd(block_->fd(), block_->length()));
  MD_CHECK(fd.register_range({probe_.data(), probe_.size()}, UFFDIO_REGISTER_MODE_MINOR));
  probe_fd_.emplace(std::move(fd));
  return {};
}

Result<bool> Extents::has_huge_page(std::uint64_t offset) const {
  return probe_fd_->map_existing(probe_.data() + offset, huge_page_size);
}

// True if the page cache says that every page of the range is there. One call, half the cost of SEEK_HOLE, and bounded
// by the range, while SEEK_HOLE goes on to the first hole however far that is. Pages swapped out are not counted, and
// kernels before 6.5 lack the call: false only means "ask further".
bool Extents::surely_full(std::uint64_t from, std::uint64_t end) const noexcept {
  struct {
    std::uint64_t offset, length;
  } range{from, end - from};
  struct {
    std::uint64_t cached, dirty, writeback, evicted, recently_evicted;
  } counts{};
  constexpr long cachestat = 451;
  return ::syscall(cachestat, file_.get(), &range, &counts, 0) == 0 && counts.cached == (end - from) / page_size;
}

Result<std::uint64_t> Extents::seek(std::uint64_t from, std::uint64_t end, bool data) const {
  if (from >= end) return end;
  const off_t found = ::lseek(file_.get(), static_cast<off_t>(from), data ? SEEK_DATA : SEEK_HOLE);
  if (found >= 0) return std::min(end, static_cast<std::uint64_t>(found));
  if (errno == ENXIO) return end;  // no data until the end of the file
  return Error::from_errno(fmt::format("block '{}': find its data", printable(block_->name())));
}

Result<std::uint64_t> Extents::probe(std::uint64_t from, std::uint64_t end, bool data) const {
  if (!probe_fd_) {
    MD_TRY(const std::uint64_t allocated, block_->allocated_bytes());
    return (allocated != 0) == data ? std::min(from, end) : end;
  }
  while (from < end) {
    MD_TRY(const bool there, has_huge_page(from / huge_page_size * huge_page_size));
    if (there == data) return from;
    from = (from / huge_page_size + 1) * huge_page_size;
  }
  return end;
}

Result<std::uint64_t> Extents::next_data(std::uint64_t from, std::uint64_t end) const {
  return file_ ? seek(from, end, true) : probe(from, end, true);
}

Result<std::uint64_t> Extents::next_hole(std::uint64_t from, std::uint64_t end) const {
  if (!file_) return probe(from, end, false);
  // In growing steps: a question about much more than the piece of data at hand would make many small pieces dear.
  std::uint64_t step = std::uint64_t{64} << 10;
  while (from < end) {
    const std::uint64_t until = std::min(end, from + step);
    if (!surely_full(from, until)) return seek(from, end, false);
    from = until;
    step = std::min(step * 2, std::uint64_t{64} << 20);
  }
  return end;
}

Result<std::optional<Extent>> Extents::next(std::uint64_t from, std::uint64_t end) const {
  MD_TRY(const std::uint64_t start, next_data(from, end));
  if (start == end) return std::optional<Extent>();
  MD_TRY(const std::uint64_t stop, next_hole(start, end));
  // A page may vanish between the two questions; then the piece is empty, and what follows is asked again.
  if (stop == start) return next(start + block_->backing_page(), end);
  return std::optional<Extent>(Extent{start, stop - start});
}

}  // namespace migrationd::ram
