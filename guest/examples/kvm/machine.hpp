// SPDX-License-Identifier: Apache-2.0
//
// The machine: memory that belongs to the caller, one virtual processor with a thread of its own, a serial port, and
// KVM's dirty log.
//
// Coming to rest is the one hard thing in here. A processor inside KVM_RUN is fetched out by a signal; one that is just
// about to go in finds `immediate_exit` set; and one that came out for port I/O has its instruction still unfinished:
// KVM completes it at the next KVM_RUN, so that is called once more, to come back at once. Then, and not before, its
// registers are whole.
//
// Threads: functions may be called from any thread, one at a time; note() of the serial port from any.
#pragma once

#include "guest/examples/kvm/cpu_state.hpp"
#include "guest/examples/kvm/serial.hpp"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace kvm_guest {

class Machine {
 public:
  // `memory` is shared memory of `size` bytes (a multiple of 1 MiB, at most 2 GiB) at guest address 0; it outlives
  // this.
  Machine(std::byte* memory, std::uint64_t size, int serial_file) noexcept;
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;
  // Rests first.
  ~Machine();

  // False: /dev/kvm is not there or cannot do this; error() says why.
  bool open();
  const std::string& error() const noexcept { return error_; }

  // Puts the guest into memory and the processor at its beginning. Not for a machine that waits to be loaded.
  bool boot();
  void run();
  // When it returns the guest stands still and its registers are whole. Waits for a page that the guest waits for.
  void rest();
  bool is_running() const noexcept { return keep_running_; }
  // 0: full speed; 99: nearly stopped. Takes hold at the guest's next halt.
  void throttle(unsigned percent) noexcept { throttle_ = percent; }

  // KVM's dirty log.
  bool log_writes(bool on);
  // Adds the pages written since the last call to `bitmap` (a bit per 4096 bytes, set atomically), if they are logged.
  bool fetch_log(unsigned char* bitmap);

  // At rest only.
  CpuState* cpu() noexcept { return &cpu_; }
  Serial* serial() noexcept { return &serial_; }
  std::byte* memory() const noexcept { return memory_; }
  std::uint64_t memory_size() const noexcept { return size_; }

 private:
  using Clock = std::chrono::steady_clock;

  bool failed(const char* what);
  bool set_memory_slot();
  bool copy_host_cpuid();
  void work();
  void step();
  void port_access();
  void halt();
  void finish_instruction();
  void set_immediate_exit(bool on) noexcept;

  std::byte* memory_;
  std::uint64_t size_;
  Serial serial_;
  CpuState cpu_{};
  int kvm_ = -1;
  int vm_ = -1;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
  bool logged_ = false;
  std::vector<std::uint64_t> log_;  // as KVM gives it
  std::string error_;

  std::mutex mutex_;  // for the three below
  std::condition_variable changed_;
  bool resting_ = false;  // the thread touches nothing
  bool ending_ = false;
  std::atomic<bool> keep_running_ = false;  // changed under the mutex
  std::atomic<unsigned> throttle_ = 0;
  Clock::time_point woke_;  // the thread's: since when the guest computes
  std::thread thread_;
};

}  // namespace kvm_guest
