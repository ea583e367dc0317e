// SPDX-License-Identifier: Apache-2.0
// The callbacks of a guest under test: they note what was called, and do what the test tells them to.
#pragma once

#include "tests/unit/guest/fake_daemon.hpp"

#include <condition_variable>
#include <functional>
#include <mutex>
#include <vector>

namespace migrationd::guest::test {

class Recorder {
 public:
  md_callbacks table() {
    md_callbacks out{};
    out.size = sizeof out;
    out.stop = [](void* user) { return of(user).run("stop", of(user).on_stop); };
    out.start = [](void* user) { return of(user).run("start", of(user).on_start); };
    out.throttle = [](void* user, unsigned percent) { of(user).note(fmt::format("throttle {}", percent)); };
    out.dirty_log = [](void* user, int on) { return of(user).run(fmt::format("dirty_log {}", on), of(user).on_log); };
    out.dirty_sync = [](void* user) { return of(user).run("dirty_sync", of(user).on_sync); };
    out.event = [](void* user, md_event event, const char* why) {
      of(user).note(fmt::format("event {} {}", static_cast<int>(event), why));
    };
    return out;
  }
  std::function<int()> on_stop, on_start, on_log, on_sync;

  std::vector<std::string> calls() {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  bool saw(const std::string& call) {
    const std::lock_guard lock(mutex_);
    return seen(call);
  }
  // Waits until a call that begins so was noted.
  bool wait_for(const std::string& call) {
    std::unique_lock lock(mutex_);
    return changed_.wait_for(lock, hang_bound, [&] { return seen(call); });
  }

 private:
  static Recorder& of(void* user) { return *static_cast<Recorder*>(user); }
  int run(const std::string& call, const std::function<int()>& then) {
    note(call);
    return then ? then() : 0;
  }
  void note(const std::string& call) {
    const std::lock_guard lock(mutex_);
    calls_.push_back(call);
    changed_.notify_all();
  }
  bool seen(const std::string& call) const {
    for (const std::string& one : calls_) {
      if (one.rfind(call, 0) == 0) return true;
    }
    return false;
  }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> calls_;
};

// A guest with callbacks, a block of 1 MiB, and a device that counts.
struct Subject {
  struct Counter {
    std::uint32_t value = 7;
    std::uint16_t used = 2;
    std::uint8_t bytes[4] = {1, 2, 3, 4};
  };
  inline static const md_field fields[] = {MD_U32(Counter, value), MD_U16(Counter, used),
                                           MD_COUNTED(Counter, bytes, MD_TYPE_BUFFER, used, MD_TYPE_U16), MD_END};
  inline static const md_device device = [] {
    md_device out{};
    out.name = "counter";
    out.version = 2;
    out.minimum_version = 1;
    out.fields = fields;
    out.state_size = sizeof(Counter);
    return out;
  }();

  Recorder recorder;
  Counter counter;
  GuestHandle guest;
  std::byte* memory = nullptr;

  explicit Subject(md_tracking tracking = MD_TRACK_WRITE_PROTECT) {
    const md_callbacks table = recorder.table();
    guest.reset(md_guest_new("fake-machine", &table, &recorder));
    REQUIRE(guest);
    memory = static_cast<std::byte*>(md_guest_new_block(guest.get(), "ram", 1 << 20, 4096, tracking));
    REQUIRE(memory != nullptr);
    REQUIRE(md_guest_add_device(guest.get(), &device, &counter, "bus/1", MD_ANY_INSTANCE) == 0);
  }
  md_guest* get() const { return guest.get(); }
  std::string error() const { return md_guest_error(guest.get()); }
};

}  // namespace migrationd::guest::test
