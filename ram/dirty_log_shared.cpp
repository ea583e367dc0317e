// SPDX-License-Identifier: Apache-2.0
#include "ram/dirty_log_shared.hpp"

#include "base/log.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <atomic>
#include <bit>
#include <utility>

namespace migrationd::ram {

// Bit n of the log is bit n mod 8 of byte n / 8; that is bit n mod 64 of word n / 64 only where the low byte comes
// first.
static_assert(std::endian::native == std::endian::little);

Result<std::unique_ptr<SharedBitmap>> SharedBitmap::adopt(UniqueFd fd, std::uint64_t pages) {
  const std::uint64_t bytes = (pages + 7) / 8;
  struct stat status {};
  if (::fstat(fd.get(), &status) != 0) return Error::from_errno("look at the memfd");
  const auto has = static_cast<std::uint64_t>(status.st_size);
  if (has < bytes) return machine_error(fmt::format("the memfd has {} bytes, {} are needed", has, bytes));
  MD_CHECK(check_foreign_memory(fd.get(), has, page_size));
  // Whole words lie within its last page.
  const std::uint64_t length = (bytes + page_size - 1) / page_size * page_size;
  MD_TRY(Mapping bits, Mapping::of_fd(fd.get(), length));
  MD_TRY(auto guard, BusGuard::watch(bits.data(), length, page_size));
  return std::unique_ptr<SharedBitmap>(new SharedBitmap(std::move(fd), pages, std::move(bits), std::move(guard)));
}

std::uint64_t SharedBitmap::fetch(Bitmap& into) noexcept {
  std::uint64_t found = 0;
  const auto out = into.words();
  for (std::size_t i = 0; i < out.size(); ++i) {
    const std::atomic_ref<std::uint64_t> word(words()[i]);
    if (word.load(std::memory_order_relaxed) == 0) continue;
    std::uint64_t bits = word.exchange(0, std::memory_order_acq_rel);
    // Behind the block's end its owner may write what it likes.
    if (const std::uint64_t left = pages_ - i * 64; left < 64) bits &= (std::uint64_t{1} << left) - 1;
    out[i] |= bits;
    found += static_cast<std::uint64_t>(std::popcount(bits));
  }
  return found;
}

void SharedBitmap::clear() noexcept {
  for (std::size_t i = 0; i < (pages_ + 63) / 64; ++i) {
    const std::atomic_ref<std::uint64_t> word(words()[i]);
    if (word.load(std::memory_order_relaxed) != 0) word.exchange(0, std::memory_order_acq_rel);
  }
}

Result<void> SharedBitmap::check() const {
  if (!guard_->broken()) return {};
  return machine_error("dirty log: the memory of a shared bitmap could not be had");
}

// Set after a write that is seen by the first pass: what the bits say before it begins does not matter.
Result<void> DirtyLogShared::start() {
  stop();
  MD_CHECK(writer_.log_writes(true));
  started_ = true;
  for (const auto& bitmap : bitmaps_) {
    if (bitmap) bitmap->clear();
  }
  return {};
}

Result<std::uint64_t> DirtyLogShared::sync(DirtyBitmaps& into) {
  if (!started_) return machine_error("dirty log: asked before it was started");
  MD_CHECK(writer_.settle_writes());
  std::uint64_t found = 0;
  for (std::size_t block = 0; block < bitmaps_.size(); ++block) {
    if (!bitmaps_[block]) continue;
    found += bitmaps_[block]->fetch(into[block]);
    MD_CHECK(bitmaps_[block]->check());
  }
  return found;
}

void DirtyLogShared::stop() noexcept {
  if (!std::exchange(started_, false)) return;
  if (auto off = writer_.log_writes(false); !off) log::debug("{}", off.error().text());
}

GivenBackPages::GivenBackPages(const RamMap& map) {
  for (std::size_t i = 0; i < map.size(); ++i) pages_of_.push_back(map.at(i).pages());
}

void GivenBackPages::listen(bool on) {
  const std::lock_guard lock(lock_);
  pages_.clear();
  if (!on) return;
  for (const std::uint64_t pages : pages_of_) pages_.emplace_back(pages);
}

Result<void> GivenBackPages::note(std::size_t block, std::uint64_t offset, std::uint64_t length) {
  if (block >= pages_of_.size()) return wire_error(fmt::format("memory given back: block {} does not exist", block));
  const std::uint64_t bytes = pages_of_[block] * page_size;
  if (offset % page_size != 0 || length % page_size != 0 || offset > bytes || length > bytes - offset)
    return wire_error(fmt::format("memory given back: {}+{} is no range of pages of block {} ({} bytes)", hex(offset),
                                  hex(length), block, hex(bytes)));
  const std::lock_guard lock(lock_);
  if (!pages_.empty()) pages_[block].set_range(offset / page_size, length / page_size);
  return {};
}

std::uint64_t GivenBackPages::fetch(DirtyBitmaps& into) {
  const std::lock_guard lock(lock_);
  std::uint64_t found = 0;
  for (std::size_t block = 0; block < pages_.size(); ++block) {
    Bitmap& bitmap = pages_[block];
    for (std::size_t page = bitmap.find_set(0); page < bitmap.size();) {
      const std::size_t end = bitmap.find_clear(page);
      bitmap.clear_range(page, end - page);
      into[block].set_range(page, end - page);
      found += end - page;
      page = bitmap.find_set(end);
    }
  }
  return found;
}

DirtyLogUnion::DirtyLogUnion(std::unique_ptr<DirtyLog> watched, std::unique_ptr<DirtyLog> told,
                             GivenBackPages& given_back)
    : watched_(std::move(watched)), told_(std::move(told)), given_back_(given_back) {
  if (watched_) kind_ = watched_->kind();
  if (told_) kind_ += (kind_.empty() ? "" : "+") + std::string(told_->kind());
  if (kind_.empty()) kind_ = "none";
}

Result<void> DirtyLogUnion::start() {
  stop();
  started_.store(true, std::memory_order_release);
  given_back_.listen(true);
  Result<void> result;
  if (watched_) result = watched_->start();
  if (result && told_) result = told_->start();
  if (!result) stop();
  return result;
}

// What was given back comes last: a page that the others call dirty is read afterwards all the same.
Result<std::uint64_t> DirtyLogUnion::sync(DirtyBitmaps& into) {
  std::uint64_t found = 0;
  if (watched_) {
    MD_TRY(const std::uint64_t pages, watched_->sync(into));
    found += pages;
  }
  if (told_) {
    MD_TRY(const std::uint64_t pages, told_->sync(into));
    found += pages;
  }
  return found + given_back_.fetch(into);
}

void DirtyLogUnion::stop() noexcept {
  if (!started_.load(std::memory_order_acquire)) return;
  if (told_) told_->stop();
  if (watched_) watched_->stop();
  given_back_.listen(false);
  started_.store(false, std::memory_order_release);
}

}  // namespace migrationd::ram
