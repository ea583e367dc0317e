// SPDX-License-Identifier: Apache-2.0
#include "ram/multifd_sender.hpp"

#include "base/thread.hpp"
#include "ram/counters.hpp"
#include "ram/page_codec.hpp"
#include "ram/zero_page.hpp"
#include "transports/zero_copy_writer.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <thread>
#include <utility>

namespace migrationd::ram {
namespace {

// What a hole sends where pages are sent as they are.
alignas(page_size) constexpr std::array<std::byte, page_size> zero_page{};

}  // namespace

std::uint64_t MultifdJob::estimate() const noexcept { return stream::multifd_header_bytes + data.size() * page_size; }

// --- one channel ----------------------------------------------------------------------------------------------------

class MultifdSender::Worker {
 public:
  Worker(MultifdSender& owner, std::size_t number, std::unique_ptr<transports::Channel> channel) noexcept
      : owner_(owner), number_(number), channel_(std::move(channel)) {}

  Result<void> start(const stream::Uuid& uuid) {
    ByteWriter hello;
    stream::encode_multifd_hello(hello, {uuid, static_cast<std::uint8_t>(number_)});
    const iovec piece{const_cast<std::byte*>(hello.view().data()), hello.size()};
    MD_CHECK(channel_->write({&piece, 1}));
    bytes.add(hello.size());
    const MultifdSenderOptions& options = owner_.options_;
    if (options.method != stream::MultifdMethod::none) {
      MD_TRY(encoder_, PageEncoder::make(options.method, options.level));
    }
    if (options.zero_copy) {
      MD_TRY(zero_copy_, transports::ZeroCopyWriter::make(*channel_, owner_.stop_));
    }
    MD_TRY(work_, Doorbell::make());
    return start_thread(thread_, "start a multifd channel", [this] {
      const auto place = owner_.roster_.enter_worker("mig/src/send", number_);
      auto result = run();
      if (!result) owner_.failure_.take(number_, std::move(result).error());
    });
  }

  // --- the mover's ----------------------------------------------------------------------------------------------
  std::size_t waiting() const noexcept { return put_ - done_.load(std::memory_order_acquire); }
  bool has_room() const noexcept { return waiting() < jobs_.size(); }
  void put(MultifdJob& job) {
    std::swap(jobs_[put_ % jobs_.size()], job);
    job.sync = false;
    job.data.clear();
    job.holes.clear();
    // Who works need not be woken. Either this sees that the worker has finished all before, or the worker, which looks
    // after it has said so, sees this job: that takes the one order of seq_cst.
    ready_.store(++put_);
    if (done_.load() == put_ - 1) work_->ring();
  }
  void quit() noexcept {
    quit_.store(true, std::memory_order_release);
    if (work_) work_->ring();
    channel_->shutdown();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  Counter bytes;
  Counter estimated;  // of the jobs done
  Counter normal_pages;
  Counter zero_pages;
  Counter missed_zero_copy;

 private:
  Result<void> run() {
    for (std::size_t done = 0; !quit_.load(std::memory_order_acquire);) {
      if (ready_.load() == done) {
        MD_CHECK(work_->wait(owner_.stop_));
        continue;
      }
      const MultifdJob& job = jobs_[done % jobs_.size()];
      MD_CHECK(job.sync ? send_sync() : send_pages(job));
      estimated.add(job.estimate());
      done_.store(++done);
      // The mover fills several places at a time then, and wakes up half as often.
      if (ready_.load(std::memory_order_acquire) - done <= jobs_.size() / 2) owner_.progress_->ring();
    }
    return {};
  }

  Result<void> send_sync() {
    stream::encode_multifd_sync(header_, owner_.next_number_.fetch_add(1, std::memory_order_relaxed));
    const iovec piece{header_.data(), header_.size()};
    MD_CHECK(write({&piece, 1}));
    if (!zero_copy_) return {};
    MD_TRY(const auto outcome, zero_copy_->settle());
    if (outcome == transports::ZeroCopyWriter::Outcome::copied) missed_zero_copy.add(1);
    return {};
  }

  // The job's pages in the packet's order: those with bytes, then the zero ones.
  void sort(const MultifdJob& job) {
    const std::byte* const memory = owner_.map_.at(job.block).engine();
    const bool look = owner_.options_.zero_pages_in_packets;
    offsets_.clear();
    zero_offsets_.clear();
    pages_.clear();
    for (std::size_t i = 0; i < job.data.size(); ++i) {
      const std::byte* const page = memory + job.data[i];
      // No prefetcher of the CPU crosses a page. A hint may point anywhere.
      __builtin_prefetch(page + zero_prefetch_pages * page_size);
      if (look && is_zero_page(page)) {
        zero_offsets_.push_back(job.data[i]);
      } else {
        offsets_.push_back(job.data[i]);
        pages_.push_back(page);
      }
    }
    if (look) {
      zero_offsets_.insert(zero_offsets_.end(), job.holes.begin(), job.holes.end());
    } else {
      offsets_.insert(offsets_.end(), job.holes.begin(), job.holes.end());
      pages_.insert(pages_.end(), job.holes.size(), zero_page.data());
    }
  }

  Result<void> send_pages(const MultifdJob& job) {
    sort(job);
    const std::size_t normal = offsets_.size();
    offsets_.insert(offsets_.end(), zero_offsets_.begin(), zero_offsets_.end());
    MD_CHECK(gather(normal));
    std::size_t payload = 0;
    for (std::size_t i = 1; i < pieces_.size(); ++i) payload += pieces_[i].iov_len;
    stream::encode_multifd_pages(header_, {owner_.options_.method, owner_.map_.at(job.block).name(), normal, offsets_,
                                           payload, owner_.next_number_.fetch_add(1, std::memory_order_relaxed)});
    MD_CHECK(write(pieces_));
    normal_pages.add(normal);
    zero_pages.add(offsets_.size() - normal);
    return {};
  }

  // The header's place, then the payload; pages that lie side by side are one piece.
  Result<void> gather(std::size_t normal) {
    pieces_.clear();
    pieces_.push_back({header_.data(), header_.size()});
    if (normal == 0) return {};
    if (encoder_) {
      MD_TRY(const ByteView payload, encoder_->encode(pages_));
      pieces_.push_back({const_cast<std::byte*>(payload.data()), payload.size()});
      return {};
    }
    const std::byte* end = nullptr;
    for (const std::byte* const page : pages_) {
      if (page == end) {
        pieces_.back().iov_len += page_size;
      } else {
        pieces_.push_back({const_cast<std::byte*>(page), page_size});
      }
      end = page == zero_page.data() ? nullptr : page + page_size;
    }
    return {};
  }

  // The first piece is the header.
  Result<void> write(std::span<const iovec> pieces) {
    MD_CHECK(zero_copy_ ? zero_copy_->write(pieces.first(1), pieces.subspan(1)) : channel_->write(pieces));
    std::size_t total = 0;
    for (const iovec& piece : pieces) total += piece.iov_len;
    bytes.add(total);
    return {};
  }

  MultifdSender& owner_;
  const std::size_t number_;
  std::unique_ptr<transports::Channel> channel_;
  std::unique_ptr<PageEncoder> encoder_;
  std::unique_ptr<transports::ZeroCopyWriter> zero_copy_;  // everything behind the hello goes through it, or nothing

  // Jobs [done_, ready_) are the worker's, the other places the mover's.
  std::array<MultifdJob, 4> jobs_;
  std::size_t put_ = 0;  // the mover's own count
  std::atomic<std::size_t> ready_{0};
  std::atomic<std::size_t> done_{0};
  std::atomic<bool> quit_{false};
  std::unique_ptr<Doorbell> work_;

  // Of the packet at hand.
  std::array<std::byte, stream::multifd_header_bytes> header_{};
  std::vector<std::uint64_t> offsets_;
  std::vector<std::uint64_t> zero_offsets_;
  std::vector<const std::byte*> pages_;
  std::vector<iovec> pieces_;
  std::thread thread_;
};

// --- all of them ----------------------------------------------------------------------------------------------------

MultifdSender::MultifdSender(std::unique_ptr<Doorbell> progress, MultifdSenderOptions options, RamMap& map,
                             StopSource& stop, ThreadRoster& roster) noexcept
    : progress_(std::move(progress)), options_(options), map_(map), stop_(stop), roster_(roster), failure_(stop) {}

Result<std::unique_ptr<MultifdSender>> MultifdSender::start(std::vector<std::unique_ptr<transports::Channel>> channels,
                                                            const stream::Uuid& uuid, MultifdSenderOptions options,
                                                            RamMap& map, StopSource& stop, ThreadRoster& roster) {
  MD_TRY(auto progress, Doorbell::make());
  std::unique_ptr<MultifdSender> sender(new MultifdSender(std::move(progress), options, map, stop, roster));
  for (std::size_t number = 0; number < channels.size(); ++number)
    sender->workers_.push_back(std::make_unique<Worker>(*sender, number, std::move(channels[number])));
  for (std::size_t number = 0; number < sender->workers_.size(); ++number) {
    auto started = sender->workers_[number]->start(uuid);
    if (started) continue;
    // What cannot be done at all is no one channel's.
    if (started.error().kind() == ErrorKind::plan) return std::move(started).error();
    return std::move(started).error().with(fmt::format("multifd channel {}", number));
  }
  // A packet of each channel at least.
  if (options.zero_copy)
    MD_CHECK(transports::check_locked_memory(sender->workers_.size() * (stream::multifd_packet_data + page_size)));
  return sender;
}

MultifdSender::~MultifdSender() {
  for (const auto& worker : workers_) worker->quit();
  for (const auto& worker : workers_) worker->join();
}

// An idle one, in turn; else one that has a place for the next job.
Result<MultifdSender::Worker*> MultifdSender::worker_with_room() {
  while (true) {
    Worker* best = nullptr;
    for (std::size_t i = 0; i < workers_.size(); ++i) {
      Worker* const worker = workers_[(next_worker_ + i) % workers_.size()].get();
      if (!worker->has_room()) continue;
      if (best == nullptr || worker->waiting() < best->waiting()) best = worker;
      if (best->waiting() == 0) break;
    }
    next_worker_ = (next_worker_ + 1) % workers_.size();
    if (best != nullptr) return best;
    MD_CHECK(progress_->wait(stop_));
  }
}

Result<void> MultifdSender::hand_over(MultifdJob& job) {
  if (stop_.requested()) return cancelled_error();
  MD_TRY(Worker* const worker, worker_with_room());
  estimated_ += job.estimate();
  worker->put(job);
  return {};
}

Result<void> MultifdSender::synchronise() {
  for (const auto& worker : workers_) {
    while (!worker->has_room()) MD_CHECK(progress_->wait(stop_));
    MultifdJob mark;
    mark.sync = true;
    estimated_ += mark.estimate();
    worker->put(mark);
  }
  for (const auto& worker : workers_) {
    while (worker->waiting() > 0) MD_CHECK(progress_->wait(stop_));
  }
  return {};
}

std::uint64_t MultifdSender::bytes_sent() const noexcept { return total_of(workers_, &Worker::bytes); }
std::uint64_t MultifdSender::normal_pages() const noexcept { return total_of(workers_, &Worker::normal_pages); }
std::uint64_t MultifdSender::zero_pages() const noexcept { return total_of(workers_, &Worker::zero_pages); }
std::uint64_t MultifdSender::missed_zero_copy() const noexcept { return total_of(workers_, &Worker::missed_zero_copy); }

std::uint64_t MultifdSender::bytes_expected() const noexcept {
  // In this order: a job that ends between the two is counted twice for a moment, and never missed.
  const std::uint64_t done = total_of(workers_, &Worker::estimated);
  return bytes_sent() + (estimated_ - done);
}

}  // namespace migrationd::ram
