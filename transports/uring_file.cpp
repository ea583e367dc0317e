// SPDX-License-Identifier: Apache-2.0
#include "transports/uring_file.hpp"

#include <liburing.h>

#include <algorithm>
#include <utility>
#include <vector>

namespace migrationd::transports {

namespace {

// Handed to the kernel when so much is ready: as few system calls as possible, yet the disk never waits for us.
constexpr std::size_t submit_bytes = std::size_t{512} << 10;
constexpr std::size_t submit_count = 16;
// Threads of the kernel's for operations that cannot be begun without waiting: those that must allocate disk space
// first, and writes to the page cache. Each holds the file's lock meanwhile, so a second one only waits for the first
// (4 MiB writes into holes, ext4: one thread 1.79 GiB/s, the kernel's own choice 1.54, at 0.8 of its CPU time).
constexpr unsigned helper_threads = 1;

class Ring {
 public:
  explicit Ring(unsigned entries) noexcept {
    io_uring_params parameters{};
    // We come for completions ourselves: no interrupt for each (Linux 5.19; before that, without).
    parameters.flags = IORING_SETUP_COOP_TASKRUN;
    open_ = ::io_uring_queue_init_params(entries, &ring_, &parameters) == 0;
    if (!open_) open_ = ::io_uring_queue_init(entries, &ring_, 0) == 0;
  }
  Ring(const Ring&) = delete;
  Ring& operator=(const Ring&) = delete;
  ~Ring() {
    if (open_) ::io_uring_queue_exit(&ring_);
  }
  bool is_open() const noexcept { return open_; }
  io_uring* get() noexcept { return &ring_; }

 private:
  io_uring ring_{};
  bool open_ = false;
};

bool can_read_and_write(io_uring* ring) {
  io_uring_probe* const probe = ::io_uring_get_probe_ring(ring);
  if (probe == nullptr) return false;
  const bool can = ::io_uring_opcode_supported(probe, IORING_OP_READ) != 0 &&
                   ::io_uring_opcode_supported(probe, IORING_OP_WRITE) != 0;
  ::io_uring_free_probe(probe);
  return can;
}

class UringPositionalFile final : public PositionalFile {
 public:
  UringPositionalFile(UniqueFd fd, std::size_t alignment, std::size_t depth) noexcept
      : fd_(std::move(fd)), alignment_(alignment), operations_(depth) {
    for (std::size_t slot = depth; slot > 0; --slot) free_.push_back(slot - 1);
  }
  // The kernel goes on with what is in flight, so it is waited for.
  ~UringPositionalFile() override {
    static_cast<void>(drain());
    // A ring goes when the kernel finds the time; until then it would hold the file open, and its disk mounted.
    if (ring_ && ring_->is_open()) ::io_uring_unregister_files(ring_->get());
  }

  std::size_t depth() const noexcept override { return operations_.size(); }
  std::size_t in_flight() const noexcept override { return in_flight_; }
  std::size_t alignment() const noexcept override { return alignment_; }

  Result<void> start_read(Tag tag, std::uint64_t offset, std::span<std::byte> into) override {
    return start({FileOperation::read, tag, offset, into.data(), into.size()});
  }
  Result<void> start_write(Tag tag, std::uint64_t offset, ByteView from) override {
    if (!helpers_limited_) limit_helpers();
    // The kernel only reads from it.
    return start({FileOperation::write, tag, offset, const_cast<std::byte*>(from.data()), from.size()});
  }
  Result<Tag> wait_one() override;

  bool open_ring();

 private:
  struct Operation {
    FileOperation kind = FileOperation::read;
    Tag tag = 0;
    std::uint64_t offset = 0;
    std::byte* memory = nullptr;
    std::size_t left = 0;
  };

  Result<void> start(const Operation& operation);
  // Reads may have as many as they want: where they need one at all, it waits for the disk.
  void limit_helpers() noexcept {
    helpers_limited_ = true;
    unsigned limits[2] = {helper_threads, 0};  // 0: as it is
    // A kernel before 5.15 has its own idea of how many.
    ::io_uring_register_iowq_max_workers(ring_->get(), limits);
  }
  void queue(std::size_t slot);
  Result<void> submit(unsigned wait_for);
  void release(std::size_t slot) {
    free_.push_back(slot);
    --in_flight_;
  }

  UniqueFd fd_;
  std::size_t alignment_;
  std::unique_ptr<Ring> ring_;
  std::vector<Operation> operations_;
  std::vector<std::size_t> free_;
  std::size_t in_flight_ = 0;
  bool helpers_limited_ = false;
  std::size_t ready_count_ = 0;  // queued, not submitted
  std::size_t ready_bytes_ = 0;
};

bool UringPositionalFile::open_ring() {
  ring_ = std::make_unique<Ring>(static_cast<unsigned>(operations_.size()));
  if (!ring_->is_open() || !can_read_and_write(ring_->get())) return false;
  const int number = fd_.get();
  return ::io_uring_register_files(ring_->get(), &number, 1) == 0;
}

void UringPositionalFile::queue(std::size_t slot) {
  const Operation& operation = operations_[slot];
  // There is an entry: the ring has one per operation.
  io_uring_sqe* const entry = ::io_uring_get_sqe(ring_->get());
  // A cqe tells 31 bits of length.
  const auto length = static_cast<unsigned>(std::min<std::size_t>(operation.left, std::size_t{1} << 30));
  if (operation.kind == FileOperation::read) {
    ::io_uring_prep_read(entry, 0, operation.memory, length, operation.offset);
  } else {
    ::io_uring_prep_write(entry, 0, operation.memory, length, operation.offset);
  }
  entry->flags |= IOSQE_FIXED_FILE;
  ::io_uring_sqe_set_data64(entry, slot);
  ++ready_count_;
  ready_bytes_ += length;
}

Result<void> UringPositionalFile::submit(unsigned wait_for) {
  ready_count_ = ready_bytes_ = 0;
  while (true) {
    const int sent = ::io_uring_submit_and_wait(ring_->get(), wait_for);
    if (sent >= 0) return {};
    // Out of memory for the moment, or the completion queue is full: reaping helps, so is it for the caller.
    if (sent != -EINTR && sent != -EAGAIN && sent != -EBUSY) return Error::from_errno("io_uring", -sent);
  }
}

Result<void> UringPositionalFile::start(const Operation& operation) {
  const std::size_t slot = free_.back();
  free_.pop_back();
  operations_[slot] = operation;
  ++in_flight_;
  queue(slot);
  return ready_bytes_ >= submit_bytes || ready_count_ >= submit_count ? submit(0) : Result<void>();
}

Result<PositionalFile::Tag> UringPositionalFile::wait_one() {
  while (true) {
    io_uring_cqe* completion = nullptr;
    if (::io_uring_peek_cqe(ring_->get(), &completion) != 0) {
      auto waited = submit(1);
      if (!waited) {
        // The ring itself is broken, and nothing can be waited for any more; the kernel cancels when it is closed.
        ring_.reset();
        in_flight_ = 0;
        return std::move(waited).error();
      }
      continue;
    }
    const auto slot = static_cast<std::size_t>(::io_uring_cqe_get_data64(completion));
    const int got = completion->res;
    ::io_uring_cqe_seen(ring_->get(), completion);
    Operation& operation = operations_[slot];
    if (got == -EINTR || got == -EAGAIN) {
      queue(slot);
      continue;
    }
    if (got <= 0) {
      release(slot);
      if (got < 0) return transfer_error(operation.kind, operation.offset, -got);
      if (operation.kind == FileOperation::read) return short_file_error(operation.offset, operation.left);
      return transfer_error(operation.kind, operation.offset, ENOSPC);
    }
    const auto done = static_cast<std::size_t>(got);
    operation.left -= done;
    if (operation.left != 0 && done % alignment_ != 0) {
      // Direct I/O stops between two sectors only where the file ends.
      release(slot);
      return short_file_error(operation.offset + done, operation.left);
    }
    if (operation.left == 0) {
      release(slot);
      return operation.tag;
    }
    operation.offset += done;
    operation.memory += done;
    queue(slot);
  }
}

}  // namespace

std::unique_ptr<PositionalFile> UringFile::make(UniqueFd& fd, std::size_t alignment, std::size_t depth) {
  auto duplicate = fd.duplicate();
  if (!duplicate) return nullptr;
  auto file = std::make_unique<UringPositionalFile>(std::move(*duplicate), alignment, depth);
  if (!file->open_ring()) return nullptr;
  fd.reset();
  return file;
}

}  // namespace migrationd::transports
