// SPDX-License-Identifier: Apache-2.0
//
// Guest: what stands behind an md_guest. It holds what was registered (blocks, devices, blockers), attaches it to a
// daemon, and serves the daemon's requests by the program's callbacks.
//
// Thread: a thread of its own serves from attach() to the end of the connection, or whoever calls dispatch(). Callbacks
// run there, so attach(), detach() and the destructor are refused or forbidden to them. Registered things change before
// attach() only; blockers at any time.
//
// Errors: sentences for the program's user. A connection that ends takes nothing with it: attach() tells the next
// daemon everything again.
#pragma once

#include "guest/blocks.hpp"
#include "guest/connection.hpp"
#include "guest/devices.hpp"
#include "guest/migrationd_guest.h"
#include "guest/watches.hpp"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace migrationd::guest {

class Guest {
 public:
  static Result<std::unique_ptr<Guest>> make(const char* machine_name, const md_callbacks* callbacks, void* user);
  ~Guest();
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  // What may be changed only while no daemon knows it. Error: it is attached.
  Result<Blocks*> blocks_to_change();
  Result<Devices*> devices_to_change();
  Result<void> set_uuid(const std::uint8_t* uuid);
  Result<void> set_vcpus(std::uint32_t count);
  const Blocks& blocks() const noexcept { return blocks_; }
  Words& words() noexcept { return words_; }

  Result<void> attach(const char* socket_path, unsigned flags);
  Result<void> detach();
  bool is_attached() const;
  int loop_fd() const;
  // Runs the callbacks that are due. Error: the daemon is gone, or there is no loop to serve.
  Result<void> dispatch();

  // In a child of the process that attached, by fork.
  bool is_in_child() const noexcept;
  // There: closes its copies of the descriptors.
  void leave() noexcept;
  Result<void> give_back(const char* name, std::uint64_t offset, std::uint64_t length, bool punch);
  Result<int> add_blocker(const char* reason);
  Result<void> delete_blocker(int number);

  // The calling thread is in one of this guest's callbacks.
  bool is_serving_here() const noexcept;

 private:
  // What the daemon may ask for next. `broken`: a load failed half-way; only another load helps.
  enum class Run : std::uint8_t { empty, broken, paused, running };
  struct Answer {
    Bytes body;
    std::vector<int> fds;       // to send; owned elsewhere or by `own`
    std::vector<UniqueFd> own;  // closed when sent
  };
  struct Blocker {
    int number = 0;
    std::string reason;
    std::uint32_t at_daemon = 0;
  };

  Guest(std::string machine_name, const md_callbacks& callbacks, void* user);

  Result<void> introduce(Connection& connection, GuestState state);
  Result<void> say_hello(Connection& connection);
  Result<void> tell_blockers(Connection& connection);
  Result<void> prove_detached() const;
  Result<void> prove_own() const;
  std::shared_ptr<Connection> connection() const;

  Result<void> start_serving(std::shared_ptr<Connection> connection);
  void serve(Connection& connection) noexcept;
  void handle(Connection& connection, const Packet& packet) noexcept;
  void connection_over(const Error& why) noexcept;
  void finish_thread();

  template <class Body>
  Result<Body> proved(const Packet& packet);
  Result<Answer> respond(const Packet& packet);
  void take_notice(const Packet& packet);
  Result<Answer> stop();
  Result<Answer> start();
  Result<Answer> save();
  Result<Answer> load(const Packet& packet);
  Result<Answer> watch(const Packet& packet);
  Result<Answer> call(const char* name, int result);
  void tell(md_event event, const std::string& why);

  const std::string machine_name_;
  md_callbacks callbacks_{};
  void* const user_;
  std::array<std::uint8_t, 16> uuid_{};
  std::uint32_t vcpus_ = 1;

  Words words_;
  Blocks blocks_;
  Devices devices_{words_};
  Watches watches_;  // of the serving thread while attached; put_zeros() of any
  Run run_ = Run::empty;
  bool is_faulty_ = false;  // the packet under way is no packet of the protocol

  std::mutex attaching_;  // attach and detach, one at a time
  std::mutex blocking_;   // blockers_
  std::vector<Blocker> blockers_;
  int next_blocker_ = 0;
  mutable std::mutex mutex_;                // connection_
  std::shared_ptr<Connection> connection_;  // null before the first attach and after detach
  std::atomic<bool> is_detaching_ = false;
  std::atomic<pid_t> process_ = 0;  // that attached; 0: none did
  std::thread thread_;
};

}  // namespace migrationd::guest
