// SPDX-License-Identifier: Apache-2.0
//
// Dirty pages that others tell of.
//
//   SharedBitmap     a memfd with one bit per page that a guest, or a helper of its, sets after it wrote (vhost-user's
//                    log has this form; KVM's dirty log is copied into it)
//   DirtyLogShared   the log of all blocks that have one
//   GivenBackPages   ranges the guest punched out itself, told by message: neither protection nor a bitmap sees those
//   DirtyLogUnion    what write protection, bitmaps and GivenBackPages know, as one log; a block may have any of them
//
// Order, which loses no write: the writer is asked to have every write's bit set until now (it may have to fetch it
// from somewhere), then the words are fetched and cleared atomically, then the pages are read. The bit is set after the
// write, so who sees the bit sees the write.
//
// The bitmap is another process's memory: nothing it holds can do more than make a page dirty, and it is guarded as its
// blocks are (ram/bus_guard.hpp).
//
// Thread: the one that works on the machine; GivenBackPages::note() any.
#pragma once

#include "ram/bus_guard.hpp"
#include "ram/dirty_log.hpp"
#include "ram/ram_map.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace migrationd::ram {

class SharedBitmap {
 public:
  // A memfd of small pages, sealed against shrinking, with room for `pages` bits.
  static Result<std::unique_ptr<SharedBitmap>> adopt(UniqueFd fd, std::uint64_t pages);

  // Moves the bits into `into`, of that many pages, and returns how many there were.
  std::uint64_t fetch(Bitmap& into) noexcept;
  void clear() noexcept;
  Result<void> check() const;
  // The memfd, for a process that goes on with the guest.
  int fd() const noexcept { return fd_.get(); }

 private:
  SharedBitmap(UniqueFd fd, std::uint64_t pages, Mapping bits, std::unique_ptr<BusGuard> guard) noexcept
      : fd_(std::move(fd)), pages_(pages), bits_(std::move(bits)), guard_(std::move(guard)) {}
  std::uint64_t* words() const noexcept { return static_cast<std::uint64_t*>(static_cast<void*>(bits_.data())); }

  UniqueFd fd_;
  std::uint64_t pages_;
  Mapping bits_;
  std::unique_ptr<BusGuard> guard_;
};

// Who fills the bitmaps.
class BitmapWriter {
 public:
  virtual ~BitmapWriter() = default;
  // The bits are wanted from now on, or no longer.
  virtual Result<void> log_writes(bool on) = 0;
  // Returns when every write until now has its bit.
  virtual Result<void> settle_writes() = 0;
};

class DirtyLogShared final : public DirtyLog {
 public:
  // One bitmap per block, in the map's order, null where a block has none. Both outlive it.
  DirtyLogShared(const std::vector<std::unique_ptr<SharedBitmap>>& bitmaps, BitmapWriter& writer) noexcept
      : bitmaps_(bitmaps), writer_(writer) {}
  ~DirtyLogShared() override { stop(); }

  Result<void> start() override;
  Result<std::uint64_t> sync(DirtyBitmaps& into) override;
  void stop() noexcept override;
  std::string_view kind() const noexcept override { return "shared-bitmap"; }

 private:
  const std::vector<std::unique_ptr<SharedBitmap>>& bitmaps_;
  BitmapWriter& writer_;
  bool started_ = false;
};

class GivenBackPages {
 public:
  explicit GivenBackPages(const RamMap& map);

  // From now on ranges are kept, or no longer.
  void listen(bool on);
  // Of whole pages; an error when it lies in no block. Any thread.
  Result<void> note(std::size_t block, std::uint64_t offset, std::uint64_t length);
  // Moves what was noted into `into`, and returns how many pages there were.
  std::uint64_t fetch(DirtyBitmaps& into);

 private:
  // Whoever tells and the log's owner meet here; a range is many words, so atomics would not do.
  std::mutex lock_;
  std::vector<std::uint64_t> pages_of_;  // per block
  // Only while somebody listens: a bit per page of a guest that may register terabytes, and never be moved.
  DirtyBitmaps pages_;
};

class DirtyLogUnion final : public DirtyLog {
 public:
  // Either may be null. `given_back` outlives it.
  DirtyLogUnion(std::unique_ptr<DirtyLog> watched, std::unique_ptr<DirtyLog> told, GivenBackPages& given_back);
  ~DirtyLogUnion() override { stop(); }

  Result<void> start() override;
  Result<std::uint64_t> sync(DirtyBitmaps& into) override;
  void stop() noexcept override;
  std::string_view kind() const noexcept override { return kind_; }
  // Between start() and stop(). Any thread.
  bool is_started() const noexcept { return started_.load(std::memory_order_acquire); }

 private:
  std::unique_ptr<DirtyLog> watched_;
  std::unique_ptr<DirtyLog> told_;
  GivenBackPages& given_back_;
  std::string kind_;
  std::atomic<bool> started_{false};
};

}  // namespace migrationd::ram
