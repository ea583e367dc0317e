// SPDX-License-Identifier: Apache-2.0
#include "ram/file_workers.hpp"

#include "base/thread.hpp"
#include "ram/counters.hpp"

#include <fmt/format.h>

#include <array>
#include <atomic>
#include <thread>
#include <utility>

namespace migrationd::ram {

class FileWorkers::Thread {
 public:
  Thread(FileWorkers& owner, std::size_t number, std::unique_ptr<FileWorker> worker) noexcept
      : owner_(owner), number_(number), worker_(std::move(worker)) {}

  Result<void> start() {
    MD_TRY(work_, Doorbell::make());
    return start_thread(thread_, "start a file worker", [this] {
      const auto place = owner_.roster_.enter_worker(owner_.name_, number_);
      auto result = run();
      // In this thread: operations of a ring end with the thread that began them.
      worker_->abandon();
      if (!result) owner_.take_failure(number_, std::move(result).error());
    });
  }

  // --- the mover's ----------------------------------------------------------------------------------------------
  std::size_t waiting() const noexcept { return put_ - taken_.load(std::memory_order_acquire); }
  bool has_room() const noexcept { return waiting() < batches_.size(); }
  bool is_done() const noexcept { return done_.load(std::memory_order_acquire) == put_; }
  void put(PageBatch& batch) {
    std::swap(batches_[put_ % batches_.size()], batch);
    batch.reset(0, BatchKind::data);
    ready_.store(++put_, std::memory_order_release);
    work_->ring();
  }
  void quit() noexcept {
    quit_.store(true, std::memory_order_release);
    if (work_) work_->ring();
  }
  void join() {
    if (thread_.joinable()) thread_.join();
  }

  Counter pages_taken;

 private:
  Result<void> run() {
    for (std::size_t taken = 0; !quit_.load(std::memory_order_acquire);) {
      if (owner_.stop_.requested()) return cancelled_error();
      if (ready_.load(std::memory_order_acquire) == taken) {
        MD_CHECK(idle(taken));
        continue;
      }
      const PageBatch& batch = batches_[taken % batches_.size()];
      MD_CHECK(worker_->take(batch));
      pages_taken.add(batch.pages());
      taken_.store(++taken, std::memory_order_release);
      owner_.progress_->ring();
    }
    return {};
  }

  // No batch waits: one operation less in flight, or a sleep.
  Result<void> idle(std::size_t taken) {
    MD_TRY(const bool more, worker_->finish_one());
    if (more) return {};
    if (done_.load(std::memory_order_relaxed) == taken) return work_->wait(owner_.stop_);
    done_.store(taken, std::memory_order_release);
    owner_.progress_->ring();
    return {};
  }

  FileWorkers& owner_;
  const std::size_t number_;
  std::unique_ptr<FileWorker> worker_;

  // Batches [taken_, ready_) are the worker's, the other places the mover's.
  std::array<PageBatch, 2> batches_;
  std::size_t put_ = 0;  // the mover's own count
  std::atomic<std::size_t> ready_{0};
  std::atomic<std::size_t> taken_{0};
  std::atomic<std::size_t> done_{0};  // so many were taken when nothing was in flight any more
  std::atomic<bool> quit_{false};
  std::unique_ptr<Doorbell> work_;
  std::thread thread_;
};

FileWorkers::FileWorkers(std::string_view name, std::unique_ptr<Doorbell> progress, StopSource& stop,
                         ThreadRoster& roster)
    : name_(name), progress_(std::move(progress)), stop_(stop), roster_(roster) {}

Result<std::unique_ptr<FileWorkers>> FileWorkers::start(std::string_view name,
                                                        std::vector<std::unique_ptr<FileWorker>> workers,
                                                        StopSource& stop, ThreadRoster& roster) {
  MD_TRY(auto progress, Doorbell::make());
  std::unique_ptr<FileWorkers> out(new FileWorkers(name, std::move(progress), stop, roster));
  for (std::size_t number = 0; number < workers.size(); ++number)
    out->threads_.push_back(std::make_unique<Thread>(*out, number, std::move(workers[number])));
  for (const auto& thread : out->threads_) MD_CHECK(thread->start());
  return out;
}

FileWorkers::~FileWorkers() {
  for (const auto& thread : threads_) thread->quit();
  for (const auto& thread : threads_) thread->join();
}

void FileWorkers::take_failure(std::size_t number, Error error) {
  if (error.is_cancelled()) return;
  {
    const std::lock_guard lock(failure_mutex_);
    if (!failure_) {
      failure_ = threads_.size() == 1 ? std::move(error) : std::move(error).with(fmt::format("file worker {}", number));
    }
  }
  stop_.request();
}

std::optional<Error> FileWorkers::failure() const {
  const std::lock_guard lock(failure_mutex_);
  return failure_;
}

Error FileWorkers::explain(Error error) const {
  if (!error.is_cancelled()) return error;
  auto why = failure();
  return why ? *std::move(why) : std::move(error);
}

std::uint64_t FileWorkers::pages_taken() const noexcept {
  std::uint64_t total = 0;
  for (const auto& thread : threads_) total += thread->pages_taken.get();
  return total;
}

// An idle one, in turn; else one that has a place for the next batch.
Result<FileWorkers::Thread*> FileWorkers::one_with_room() {
  while (true) {
    Thread* best = nullptr;
    for (std::size_t i = 0; i < threads_.size(); ++i) {
      Thread* const thread = threads_[(next_ + i) % threads_.size()].get();
      if (!thread->has_room()) continue;
      if (best == nullptr || thread->waiting() < best->waiting()) best = thread;
      if (best->waiting() == 0) break;
    }
    next_ = (next_ + 1) % threads_.size();
    if (best != nullptr) return best;
    MD_CHECK(progress_->wait(stop_));
  }
}

Result<void> FileWorkers::hand_over(PageBatch& batch) {
  if (stop_.requested()) return cancelled_error();
  MD_TRY(Thread* const thread, one_with_room());
  pages_handed_over_ += batch.pages();
  thread->put(batch);
  return {};
}

Result<void> FileWorkers::synchronise() {
  for (const auto& thread : threads_) {
    while (!thread->is_done()) MD_CHECK(progress_->wait(stop_));
  }
  return stop_.requested() ? cancelled_error() : Result<void>();
}

}  // namespace migrationd::ram
