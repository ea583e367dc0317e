// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/machine_worker.hpp"

#include "base/thread.hpp"
#include "ram/dirty_log.hpp"

#include <utility>

namespace migrationd::migration {

Result<std::unique_ptr<DaemonService::Worker>> DaemonService::Worker::start(DaemonService& service,
                                                                            std::function<Finish(StopSource&)> work) {
  MD_TRY(auto stop, StopSource::make());
  std::unique_ptr<Worker> worker(new Worker(std::move(stop)));
  MD_CHECK(start_thread(worker->thread_, "start the worker",
                        [&service, work = std::move(work), stop_source = worker->stop_.get()] {
                          Finish finish = work(*stop_source);
                          service.post_([&service, finish = std::move(finish)] {
                            service.on_worker_done();
                            finish();
                          });
                        }));
  return worker;
}

DaemonService::Worker::~Worker() {
  stop_->request();
  if (thread_.joinable()) thread_.join();
}

void DaemonService::on_worker_done() {
  worker_.reset();
  if (guest_dropped_ && !run_) drop_guest();
}

namespace {

Result<std::uint64_t> dirty_rate(ram::DirtyLog& log, ram::RamMap& ram, std::chrono::milliseconds period,
                                 StopSource& stop) {
  ram::DirtyBitmaps bitmaps;
  for (std::size_t i = 0; i < ram.size(); ++i) bitmaps.emplace_back(ram.at(i).pages());
  MD_CHECK(log.start());
  const auto started = Clock::now();
  stop.sleep_for(period);
  auto pages = log.sync(bitmaps);
  const std::chrono::duration<double> elapsed = Clock::now() - started;
  log.stop();
  if (!pages) return std::move(pages).error();
  return static_cast<std::uint64_t>(static_cast<double>(*pages) / elapsed.count());
}

}  // namespace

void DaemonService::verify_machine(std::function<void(Result<nlohmann::json>)> done) {
  auto idle = check_idle();
  if (!idle) return done(std::move(idle).error());
  if (run_control_.ownership() == Ownership::none) return done(machine_error("there is no machine to check"));
  auto worker = Worker::start(*this, [this, done](StopSource& stop) -> Worker::Finish {
    auto held = run_control_.hold();
    Result<nlohmann::json> result = held ? machine_->verify(stop) : Result<nlohmann::json>(std::move(held).error());
    auto released = run_control_.release();
    if (result && !released) result = std::move(released).error();
    return [done, result = std::move(result)] { done(result); };
  });
  if (!worker) return done(std::move(worker).error());
  worker_ = std::move(*worker);
}

void DaemonService::measure_dirty_rate(std::chrono::milliseconds period,
                                       std::function<void(Result<std::uint64_t>)> done) {
  auto idle = check_idle();
  if (!idle) return done(std::move(idle).error());
  if (run_control_.ownership() == Ownership::none) return done(machine_error("there is no machine to measure"));
  // Nothing writes a parked machine's memory: that is known, not measured.
  if (machine_->dirty_log() == nullptr) return done(std::uint64_t{0});
  auto worker = Worker::start(*this, [this, period, done](StopSource& stop) -> Worker::Finish {
    auto rate = dirty_rate(*machine_->dirty_log(), machine_->ram(), period, stop);
    return [done, rate = std::move(rate)] { done(rate); };
  });
  if (!worker) return done(std::move(worker).error());
  worker_ = std::move(*worker);
}

}  // namespace migrationd::migration
