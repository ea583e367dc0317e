// SPDX-License-Identifier: Apache-2.0
//
// FileWorkers: threads that move pages between memory and one file, each through a PositionalFile of its own.
//
// The mover hands over PageBatches; a batch belongs to one worker then. A worker holds two at most, the one it works on
// and the next, so that it need not wait for the mover, and handing over waits for a place: that is the back-pressure.
// What a worker does with a batch is its FileWorker's affair (mapped_writer.hpp, mapped_reader.hpp): it starts
// operations and lets several be in flight; when no batch waits, it finishes them one by one.
//
// synchronise() returns when everything handed over is done, operations included: two passes over one page never meet
// in the file.
//
// The first error of a worker is kept and raises the migration's stop; the mover's calls then fail with `cancelled`,
// wherever it is, and failure() says why. A stop does not reach an operation in flight: the disk answers.
//
// Thread: constructed, destroyed and used by the mover.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "base/thread_roster.hpp"
#include "ram/page_batch.hpp"

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace migrationd::ram {

// What one worker does; used by its thread alone.
class FileWorker {
 public:
  FileWorker() = default;
  FileWorker(const FileWorker&) = delete;
  FileWorker& operator=(const FileWorker&) = delete;
  virtual ~FileWorker() = default;

  // Starts what the batch needs; may wait for what was started before.
  virtual Result<void> take(const PageBatch& batch) = 0;
  // Waits for one operation in flight. False: there is none, all is done.
  virtual Result<bool> finish_one() = 0;
  // After an error or a stop: waits for what is in flight, whatever comes of it.
  virtual void abandon() noexcept = 0;
};

class FileWorkers {
 public:
  // Starts a thread for each, 1 to 255; "NAME_0", "NAME_1" ... in the roster, which with the stop outlives them. Error:
  // the process is at its limit of threads or descriptors.
  static Result<std::unique_ptr<FileWorkers>> start(std::string_view name,
                                                    std::vector<std::unique_ptr<FileWorker>> workers, StopSource& stop,
                                                    ThreadRoster& roster);
  // Ends and joins them; what was not begun is dropped.
  ~FileWorkers();

  // Takes the batch; what comes back is empty. May wait.
  Result<void> hand_over(PageBatch& batch);
  // Everything handed over is done.
  Result<void> synchronise();

  std::optional<Error> failure() const;
  // An error of the mover's own calls; where it is `cancelled` because a worker failed, that worker's.
  Error explain(Error error) const;
  // Of the batches handed over, and of those that a worker has taken in whole.
  std::uint64_t pages_handed_over() const noexcept { return pages_handed_over_; }
  std::uint64_t pages_taken() const noexcept;

 private:
  class Thread;
  FileWorkers(std::string_view name, std::unique_ptr<Doorbell> progress, StopSource& stop, ThreadRoster& roster);
  Result<Thread*> one_with_room();
  void take_failure(std::size_t number, Error error);

  const std::string name_;
  std::unique_ptr<Doorbell> progress_;  // a worker took a batch in, or has nothing left to do
  StopSource& stop_;
  ThreadRoster& roster_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::size_t next_ = 0;
  std::uint64_t pages_handed_over_ = 0;

  mutable std::mutex failure_mutex_;  // several threads may fail, the mover asks
  std::optional<Error> failure_;
};

}  // namespace migrationd::ram
