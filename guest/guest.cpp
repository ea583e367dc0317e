// SPDX-License-Identifier: Apache-2.0
// Registering, attaching, detaching; what the daemon asks is answered in serve.cpp.
#include "guest/guest.hpp"

#include "base/thread.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

namespace migrationd::guest {

namespace {

template <class Body>
Bytes body_of(const Body& body) {
  ByteWriter out;
  encode(body, out);
  return std::move(out).take();
}

// The program's signals are for its own threads: a new thread has the mask of the one that made it.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_{};
};

}  // namespace

Result<std::unique_ptr<Guest>> Guest::make(const char* machine_name, const md_callbacks* callbacks, void* user) {
  if (machine_name == nullptr || !is_name(machine_name)) {
    return plan_error("machine name: not 1 to 255 bytes of printable ASCII");
  }
  md_callbacks known{};
  if (callbacks != nullptr) {
    if (callbacks->size < sizeof callbacks->size) return plan_error("callbacks: `size` is not sizeof(md_callbacks)");
    std::memcpy(&known, callbacks, std::min(callbacks->size, sizeof known));
  }
  return std::unique_ptr<Guest>(new Guest(machine_name, known, user));
}

Guest::Guest(std::string machine_name, const md_callbacks& callbacks, void* user)
    : machine_name_(std::move(machine_name)), callbacks_(callbacks), user_(user) {}

Guest::~Guest() {
  if (detach()) return;
  if (const auto open = connection()) {
    is_detaching_ = true;  // no event for a hang-up of our own
    open->hang_up();
  }
  finish_thread();
  watches_.daemon_gone(blocks_.all());
}

bool Guest::is_in_child() const noexcept {
  const pid_t attached = process_.load();
  return attached != 0 && attached != ::getpid();
}

// The connection is the parent's: a child that used it would take the parent's answers, or end it.
Result<void> Guest::prove_own() const {
  if (is_in_child()) return plan_error("this process is a forked child: its parent has attached the guest");
  return {};
}

void Guest::leave() noexcept {
  if (connection_) connection_->leave();
  watches_.leave();
}

Result<void> Guest::prove_detached() const {
  if (is_attached()) return plan_error("the guest is attached; this is for before");
  return {};
}

Result<Blocks*> Guest::blocks_to_change() {
  MD_CHECK(prove_detached());
  return &blocks_;
}

Result<Devices*> Guest::devices_to_change() {
  MD_CHECK(prove_detached());
  return &devices_;
}

Result<void> Guest::set_uuid(const std::uint8_t* uuid) {
  MD_CHECK(prove_detached());
  uuid_.fill(0);
  if (uuid != nullptr) std::memcpy(uuid_.data(), uuid, uuid_.size());
  return {};
}

Result<void> Guest::set_vcpus(std::uint32_t count) {
  MD_CHECK(prove_detached());
  if (count > guest_vcpus) return plan_error(fmt::format("{} vCPUs are more than {}", count, guest_vcpus));
  vcpus_ = count;
  return {};
}

std::shared_ptr<Connection> Guest::connection() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return connection_;
}

bool Guest::is_attached() const {
  const auto open = connection();
  return open && open->is_open();
}

int Guest::loop_fd() const {
  const auto open = connection();
  return open && open->is_open() ? open->loop_fd() : -1;
}

Result<void> Guest::attach(const char* socket_path, unsigned flags) {
  MD_CHECK(prove_own());
  if (is_serving_here()) return plan_error("a callback cannot attach");
  const std::lock_guard<std::mutex> one_at_a_time(attaching_);
  MD_CHECK(prove_detached());
  const bool no_thread = (flags & MD_NO_THREAD) != 0;
  const unsigned state = flags & ~static_cast<unsigned>(MD_NO_THREAD);
  if (state > MD_RUNNING) return plan_error(fmt::format("flags {} are unknown", hex(flags)));
  if (socket_path == nullptr) return plan_error("socket path is NULL");
  finish_thread();
  if (watches_.has_lost_pages()) {
    return machine_error("memory that was still to come was lost with the last daemon; only a new process can attach");
  }
  MD_TRY(UniqueFd socket, connect_to(socket_path));
  MD_TRY(std::shared_ptr<Connection> made, Connection::make(std::move(socket), no_thread));
  constexpr Run runs[] = {Run::empty, Run::paused, Run::running};
  run_ = runs[state];
  is_detaching_ = false;
  // Held until others can see the connection, so that no blocker falls between the two.
  const std::lock_guard<std::mutex> no_new_blockers(blocking_);
  if (auto known = introduce(*made, static_cast<GuestState>(state)); !known) {
    watches_.set_device({});
    return std::move(known).error().with(
        fmt::format("attach to '{}'", printable(socket_path, printable_address_bytes)));
  }
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    connection_ = made;
    process_ = ::getpid();
  }
  return no_thread ? Result<void>{} : start_serving(std::move(made));
}

Result<void> Guest::start_serving(std::shared_ptr<Connection> open) {
  const SignalsBlocked none_here;
  auto started = start_thread(thread_, "start the guest's thread", [this, open] { serve(*open); });
  if (!started) open->hang_up();
  return started;
}

Result<void> Guest::introduce(Connection& open, GuestState state) {
  MD_CHECK(say_hello(open));
  for (const Block& block : blocks_.all()) {
    std::vector<int> fds{block.memory.get()};
    if (block.bitmap) fds.push_back(block.bitmap.get());
    auto added = open.request(Type::add_block, body_of(block.message()), fds);
    if (!added) return std::move(added).error().with(fmt::format("block '{}'", block.name));
  }
  for (const AddDevice& device : devices_.messages()) {
    auto added = open.request(Type::add_device, body_of(device));
    if (!added) return std::move(added).error().with(fmt::format("device '{}' {}", device.id, device.instance));
  }
  MD_TRY(const Packet ready, open.request(Type::ready, body_of(Ready{state, uuid_})));
  static_cast<void>(ready);
  return tell_blockers(open);
}

Result<void> Guest::say_hello(Connection& open) {
  Hello hello;
  hello.library = "libmigrationd-guest " MIGRATIOND_VERSION;
  hello.machine_name = machine_name_;
  hello.vcpus = vcpus_;
  hello.wants_device = UniqueFd(::open("/dev/userfaultfd", O_RDWR | O_CLOEXEC)).get() < 0;
  MD_TRY(Packet reply, open.request(Type::hello, body_of(hello)));
  MD_TRY(const Welcome welcome, decode<Welcome>(reply.body));
  if (welcome.version != protocol_version) {
    return wire_error(fmt::format("the daemon speaks version {}, which was not offered", welcome.version));
  }
  watches_.set_device(reply.fds.empty() ? UniqueFd() : std::move(reply.fds.front()));
  return {};
}

Result<void> Guest::tell_blockers(Connection& open) {
  for (Blocker& blocker : blockers_) {
    MD_TRY(const Packet reply, open.request(Type::add_blocker, body_of(AddBlocker{blocker.reason})));
    MD_TRY(const BlockerNumber number, decode<BlockerNumber>(reply.body));
    blocker.at_daemon = number.number;
  }
  return {};
}

Result<void> Guest::detach() {
  MD_CHECK(prove_own());
  if (is_serving_here()) return plan_error("a callback cannot detach");
  const std::lock_guard<std::mutex> one_at_a_time(attaching_);
  if (const auto open = connection(); open && open->is_open()) {
    is_detaching_ = true;
    auto agreed = open->request(Type::detach, {});
    if (!agreed && open->is_open()) {
      is_detaching_ = false;
      return std::move(agreed).error();
    }
    open->hang_up();
  }
  finish_thread();
  watches_.daemon_gone(blocks_.all());
  const std::lock_guard<std::mutex> lock(mutex_);
  connection_.reset();
  process_ = 0;
  return {};
}

void Guest::finish_thread() {
  if (thread_.joinable()) thread_.join();
}

Result<void> Guest::give_back(const char* name, std::uint64_t offset, std::uint64_t length, bool punch) {
  MD_CHECK(prove_own());
  MD_TRY(const std::size_t block, blocks_.find(name));
  MD_CHECK(blocks_.prove_range(block, offset, length));
  if (punch) {
    MD_TRY(const bool zeroed, watches_.put_zeros(blocks_.all()[block], offset, length));
    if (!zeroed) MD_CHECK(blocks_.punch(block, offset, length));
  }
  const auto open = connection();
  if (!open || !open->is_open()) return {};
  const GivenBack notice{static_cast<std::uint32_t>(block), offset, length};
  // A daemon that is gone need not be told.
  static_cast<void>(open->notify(Type::given_back, body_of(notice)));
  return {};
}

Result<int> Guest::add_blocker(const char* reason) {
  MD_CHECK(prove_own());
  if (reason == nullptr || *reason == '\0' || !is_sentence(reason)) {
    return plan_error("a blocker's reason is 1 to 4096 bytes of UTF-8 without control characters");
  }
  const std::lock_guard<std::mutex> lock(blocking_);
  if (blockers_.size() >= guest_blockers)
    return plan_error(fmt::format("there are {} blockers already", guest_blockers));
  Blocker blocker{next_blocker_, reason, 0};
  if (const auto open = connection(); open && open->is_open()) {
    auto reply = open->request(Type::add_blocker, body_of(AddBlocker{reason}));
    if (reply) {
      MD_TRY(const BlockerNumber number, decode<BlockerNumber>(reply->body));
      blocker.at_daemon = number.number;
    } else if (open->is_open()) {
      return std::move(reply).error();
    }
  }
  ++next_blocker_;
  blockers_.push_back(std::move(blocker));
  return blockers_.back().number;
}

Result<void> Guest::delete_blocker(int number) {
  MD_CHECK(prove_own());
  const std::lock_guard<std::mutex> lock(blocking_);
  const auto found = std::find_if(blockers_.begin(), blockers_.end(),
                                  [&](const Blocker& blocker) { return blocker.number == number; });
  if (found == blockers_.end()) return plan_error(fmt::format("there is no blocker {}", number));
  if (const auto open = connection(); open && open->is_open()) {
    auto reply = open->request(Type::delete_blocker, body_of(BlockerNumber{found->at_daemon}));
    if (!reply && open->is_open()) return std::move(reply).error();
  }
  blockers_.erase(found);
  return {};
}

}  // namespace migrationd::guest
