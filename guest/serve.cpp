// SPDX-License-Identifier: Apache-2.0
// What the daemon asks, and how it is answered. Every packet is proved by its decoder; here is whether it may come now.
#include "guest/guest.hpp"
#include "guest/sealed_state.hpp"

#include <fcntl.h>
#include <fmt/format.h>

#include <exception>

namespace migrationd::guest {

namespace {

// The guest whose callback this thread runs.
thread_local const Guest* serving_here = nullptr;

class ServingHere {
 public:
  explicit ServingHere(const Guest* guest) noexcept { serving_here = guest; }
  ~ServingHere() { serving_here = nullptr; }
  ServingHere(const ServingHere&) = delete;
  ServingHere& operator=(const ServingHere&) = delete;
};

}  // namespace

// A packet that is no packet ends the connection, after its sender was told.
template <class Body>
Result<Body> Guest::proved(const Packet& packet) {
  auto body = decode<Body>(packet.body);
  if (!body) is_faulty_ = true;
  return body;
}

bool Guest::is_serving_here() const noexcept { return serving_here == this; }

// Memory running out while a request is served is a refusal, not the end of a program that is not ours; one that
// cannot even be said ends the connection.
void Guest::serve(Connection& open) noexcept {
  for (;;) {
    try {
      auto packet = open.next(true);
      if (!packet) return connection_over(packet.error());
      handle(open, **packet);
    } catch (const std::exception& failure) {
      open.hang_up();
      return connection_over(machine_error("the guest's thread failed"));
    }
  }
}

Result<void> Guest::dispatch() {
  MD_CHECK(prove_own());
  if (is_serving_here()) return plan_error("a callback cannot dispatch");
  const auto open = connection();
  if (!open || open->loop_fd() < 0) return plan_error("nothing is attached with MD_NO_THREAD");
  for (;;) {
    auto packet = open->next(false);
    if (!packet) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        connection_.reset();
      }
      connection_over(packet.error());
      return std::move(packet).error();
    }
    if (!packet->has_value()) return {};
    handle(*open, **packet);
  }
}

void Guest::connection_over(const Error& why) noexcept {
  watches_.daemon_gone(blocks_.all());
  if (is_detaching_) return;
  const ServingHere here(this);
  if (callbacks_.event != nullptr) callbacks_.event(user_, MD_DAEMON_GONE, why.text().c_str());
}

void Guest::handle(Connection& open, const Packet& packet) noexcept {
  const ServingHere here(this);
  try {
    words_.clear();
    is_faulty_ = false;
    if (is_notice(packet.header.type)) {
      take_notice(packet);
      if (is_faulty_) open.hang_up();
      return;
    }
    auto answer = respond(packet);
    const auto sent =
        answer ? open.answer(packet, answer->body, answer->fds) : open.refuse(packet, answer.error().text());
    if (sent && is_faulty_) open.hang_up();
  } catch (const std::exception& failure) {
    if (is_notice(packet.header.type)) return;
    try {
      if (!open.refuse(packet, "the guest has no memory left")) open.hang_up();
    } catch (const std::exception& again) {
      open.hang_up();
    }
  }
}

Result<Guest::Answer> Guest::respond(const Packet& packet) {
  switch (static_cast<Type>(packet.header.type)) {
    case Type::stop:
      MD_CHECK(proved<Empty>(packet));
      return stop();
    case Type::start:
      MD_CHECK(proved<Empty>(packet));
      return start();
    case Type::save:
      MD_CHECK(proved<Empty>(packet));
      return save();
    case Type::load:
      return load(packet);
    case Type::watch:
      return watch(packet);
    case Type::unwatch: {
      MD_TRY(const Unwatch body, proved<Unwatch>(packet));
      MD_CHECK(watches_.close(body.purpose));
      return Answer{};
    }
    case Type::dirty_log: {
      MD_TRY(const DirtyLogSwitch body, proved<DirtyLogSwitch>(packet));
      return call("dirty_log()", callbacks_.dirty_log == nullptr ? 0 : callbacks_.dirty_log(user_, body.on ? 1 : 0));
    }
    case Type::dirty_sync:
      MD_CHECK(proved<Empty>(packet));
      return call("dirty_sync()", callbacks_.dirty_sync == nullptr ? 0 : callbacks_.dirty_sync(user_));
    case Type::no_huge_pages:
      MD_CHECK(proved<Empty>(packet));
      MD_CHECK(blocks_.forbid_huge_pages());
      return Answer{};
    case Type::hello:
    case Type::add_block:
    case Type::new_block:
    case Type::add_device:
    case Type::ready:
    case Type::add_blocker:
    case Type::delete_blocker:
    case Type::given_back:
    case Type::detach:
    case Type::throttle:
    case Type::outcome:
      break;  // the guest's own, and notices: not requests
  }
  return wire_error(fmt::format("{}: is not served", name_of(packet.header.type)));
}

void Guest::take_notice(const Packet& packet) {
  if (packet.header.type == static_cast<std::uint16_t>(Type::throttle)) {
    const auto body = proved<Throttle>(packet);
    if (body && callbacks_.throttle != nullptr) callbacks_.throttle(user_, body->percent);
    return;
  }
  const auto body = proved<OutcomeNotice>(packet);
  if (!body) return;
  // A stream without devices brings no LOAD.
  if (body->what == Outcome::arrived && run_ == Run::empty) run_ = Run::paused;
  constexpr md_event events[] = {MD_LEFT, MD_LEFT, MD_STAYS, MD_ARRIVED};
  tell(events[static_cast<std::size_t>(body->what)], body->why);
}

void Guest::tell(md_event event, const std::string& why) {
  if (callbacks_.event != nullptr) callbacks_.event(user_, event, why.c_str());
}

Result<Guest::Answer> Guest::call(const char* name, int result) {
  if (result != 0) return words_.refused_by(name);
  return Answer{};
}

Result<Guest::Answer> Guest::stop() {
  if (run_ != Run::running) return machine_error("the guest does not run");
  auto done = call("stop()", callbacks_.stop == nullptr ? 0 : callbacks_.stop(user_));
  if (done) run_ = Run::paused;
  return done;
}

Result<Guest::Answer> Guest::start() {
  if (run_ == Run::running) return machine_error("the guest runs already");
  if (run_ == Run::empty) return machine_error("the guest is empty: nothing was loaded");
  if (run_ == Run::broken) return machine_error("the guest's state was loaded in part only");
  auto done = call("start()", callbacks_.start == nullptr ? 0 : callbacks_.start(user_));
  if (done) run_ = Run::running;
  return done;
}

Result<Guest::Answer> Guest::save() {
  MD_TRY(const std::vector<StateSection> sections, devices_.save());
  MD_TRY(const Bytes bytes, encode_state(sections));
  Answer out;
  MD_TRY(UniqueFd file, make_state(bytes));
  ByteWriter body;
  encode(StateLength{bytes.size()}, body);
  out.body = std::move(body).take();
  out.fds.push_back(file.get());
  out.own.push_back(std::move(file));
  return out;
}

Result<Guest::Answer> Guest::load(const Packet& packet) {
  if (run_ == Run::running) return machine_error("the guest runs: nothing can be loaded");
  MD_TRY(const StateLength body, proved<StateLength>(packet));
  MD_TRY(const Bytes bytes, read_state(packet.fds.front().get(), body.length));
  MD_TRY(const std::vector<StateSection> sections, decode_state(bytes));
  run_ = Run::broken;
  MD_CHECK(devices_.load(sections));
  run_ = Run::paused;
  return Answer{};
}

Result<Guest::Answer> Guest::watch(const Packet& packet) {
  MD_TRY(const Watch body, proved<Watch>(packet));
  Answer out;
  UniqueFd pagemap;
  if (body.purpose == Purpose::protect_async) {
    pagemap.reset(::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC));
    if (!pagemap) return Error::from_errno("open /proc/self/pagemap");
  }
  MD_TRY(const int userfaultfd, watches_.open(body.purpose, body.features));
  out.fds.push_back(userfaultfd);
  if (pagemap) {
    out.fds.push_back(pagemap.get());
    out.own.push_back(std::move(pagemap));
  }
  return out;
}

}  // namespace migrationd::guest
