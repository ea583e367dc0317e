// SPDX-License-Identifier: Apache-2.0
#include "daemon/guest_door.hpp"

#include "base/log.hpp"
#include "base/option_words.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/socket.h>
#include <unistd.h>

#include <charconv>
#include <utility>

namespace migrationd {
namespace {

// From the connection to READY. A guest does it at once; registering 256 blocks takes milliseconds.
constexpr std::chrono::seconds registration_wait{10};
constexpr std::chrono::milliseconds accept_pause{100};

// To somebody who is not let in. It gets what fits its empty socket, or nothing.
void say_no(int client, const std::string& why) {
  const Bytes packet = guest::packet(guest::refusal, 1, guest::Refusal{why});
  [[maybe_unused]] const auto sent = ::send(client, packet.data(), packet.size(), MSG_DONTWAIT | MSG_NOSIGNAL);
}

template <class Number>
Result<Number> parse_number(std::string_view word, std::string_view digits, Number least, Number most) {
  Number value = 0;
  const auto [end, failure] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  if (failure != std::errc() || end != digits.data() + digits.size() || value < least || value > most)
    return plan_error(
        fmt::format("attached: {}'{}' is not a number from {} to {}", word, printable(digits), least, most));
  return value;
}

}  // namespace

Result<AttachedOptions> parse_attached_options(std::string_view text) {
  AttachedOptions options;
  for (const auto& [word, key, value] : option_words(text)) {
    if (key == "socket") {
      options.socket.path = value;
    } else if (key == "mode") {
      unsigned mode = 0;
      const auto [end, failure] = std::from_chars(value.data(), value.data() + value.size(), mode, 8);
      if (failure != std::errc() || end != value.data() + value.size() || mode > 0777)
        return plan_error("attached: mode '" + printable(value) + "' is not an octal mode such as 0660");
      options.socket.mode = static_cast<mode_t>(mode);
    } else if (key == "group") {
      options.socket.group = std::string(value);
    } else if (key == "uid") {
      MD_TRY(options.uid, parse_number<uid_t>("uid=", value, 0, static_cast<uid_t>(-2)));
    } else if (key == "deadline") {
      // A deadline longer than the patience of who waits for query-status is none.
      MD_TRY(const auto deadline, parse_number<std::uint32_t>("deadline=", value, 10, 600000));
      options.deadline = std::chrono::milliseconds(deadline);
    } else {
      return plan_error("attached: '" + printable(word) +
                        "' is not an option (socket=PATH, mode=OCTAL, group=NAME, uid=N, deadline=MS)");
    }
  }
  if (options.socket.path.empty()) return plan_error("attached: socket=PATH is needed: guests attach there");
  return options;
}

// One client, from its connection to its end. Its thread is the link's.
class GuestDoor::Visitor final : public GuestListener {
 public:
  static Result<std::unique_ptr<Visitor>> make(GuestDoor& door, std::uint64_t number, UniqueFd client) {
    std::unique_ptr<Visitor> visitor(new Visitor(door, number));
    MD_TRY(auto link, GuestLink::start(std::move(client), door.options_.deadline, *visitor));
    visitor->give_link(std::move(link));
    return visitor;
  }
  // One that is registered, and served by another daemon still.
  static Result<std::unique_ptr<Visitor>> expect(GuestDoor& door, std::uint64_t number, UniqueFd client,
                                                 std::shared_ptr<ram::GivenBackPages> given_back) {
    std::unique_ptr<Visitor> visitor(new Visitor(door, number));
    visitor->registering_ = false;
    visitor->given_back_ = std::move(given_back);
    MD_TRY(auto link, GuestLink::prepare(std::move(client), door.options_.deadline, *visitor));
    visitor->give_link(std::move(link));
    return visitor;
  }
  ~Visitor() override {
    // A machine may share it still, and asks nobody from here on.
    if (link_) link_->close();
  }

  std::uint64_t number() const noexcept { return number_; }
  const std::shared_ptr<GuestLink>& link() const noexcept { return link_; }

  Result<void> on_message(GuestMessage message) override {
    const auto type = static_cast<guest::Type>(message.header.type);
    if (type == guest::Type::given_back) return note_given_back(message.body);
    if (registering_) return type == guest::Type::ready ? be_ready(message) : register_more(std::move(message));
    if (type != guest::Type::add_blocker && type != guest::Type::delete_blocker && type != guest::Type::detach)
      return wire_error(fmt::format("{} after READY", guest::name_of(message.header.type)));
    // Proved here, so that its fault is the end of the connection.
    if (type == guest::Type::add_blocker) MD_CHECK(guest::decode<guest::AddBlocker>(message.body));
    if (type == guest::Type::delete_blocker) MD_CHECK(guest::decode<guest::BlockerNumber>(message.body));
    if (type == guest::Type::detach) MD_CHECK(guest::decode<guest::Empty>(message.body));
    auto shared = std::make_shared<GuestMessage>(std::move(message));
    post([number = number_, shared](GuestDoor& door) { door.take(number, std::move(*shared)); });
    return {};
  }

  void on_lost(const Error& why) override {
    post([number = number_, why](GuestDoor& door) { door.take_lost(number, why); });
  }

 private:
  Visitor(GuestDoor& door, std::uint64_t number)
      : door_(door), alive_(door.alive_), number_(number), registration_(door.name_, door.options_.deadline) {}

  template <class Job>
  void post(Job job) {
    door_.loop_.post([&door = door_, alive = alive_, job = std::move(job)] {
      if (*alive) job(door);
    });
  }

  // The link's thread starts before the link is known here, and answers through it.
  void give_link(std::shared_ptr<GuestLink> link) {
    link_ = std::move(link);
    ready_link_.store(link_.get(), std::memory_order_release);
    ready_link_.notify_all();
  }
  GuestLink& own_link() {
    ready_link_.wait(nullptr, std::memory_order_acquire);
    return *ready_link_.load(std::memory_order_acquire);
  }

  Result<void> note_given_back(ByteView body) {
    MD_TRY(const auto range, guest::decode<guest::GivenBack>(body));
    if (!given_back_) return wire_error("GIVEN_BACK before READY");
    return given_back_->note(range.block, range.offset, range.length);
  }

  // What cannot be taken is refused; what breaks the protocol ends the connection.
  Result<void> register_more(GuestMessage message) {
    auto answer =
        registration_.take(static_cast<guest::Type>(message.header.type), message.body, std::move(message.fds));
    if (!answer) return refuse(message.header, std::move(answer).error());
    own_link().answer_raw(message.header, answer->body, answer->fd.get());
    return {};
  }

  Result<void> be_ready(const GuestMessage& message) {
    auto guest = registration_.ready(message.body);
    if (!guest) return refuse(message.header, std::move(guest).error());
    registering_ = false;
    given_back_ = std::make_shared<ram::GivenBackPages>(guest->ram);
    auto shared = std::make_shared<RegisteredGuest>(std::move(*guest));
    post([number = number_, header = message.header, shared, given_back = given_back_](GuestDoor& door) {
      if (door.visitor_ && door.visitor_->number() == number) door.take_ready(header, std::move(*shared), given_back);
    });
    return {};
  }

  Result<void> refuse(const guest::Header& request, Error why) {
    if (why.kind() == ErrorKind::wire) return why;
    log::warning(fmt::format("guest: {}: {}", guest::name_of(request.type), why.text()));
    own_link().refuse(request, why.text());
    return {};
  }

  GuestDoor& door_;
  std::shared_ptr<bool> alive_;
  const std::uint64_t number_;
  std::atomic<GuestLink*> ready_link_{nullptr};
  // The link's thread from here on.
  GuestRegistration registration_;
  bool registering_ = true;
  std::shared_ptr<ram::GivenBackPages> given_back_;
  // Last: its thread uses the rest.
  std::shared_ptr<GuestLink> link_;
};

GuestDoor::GuestDoor(control::EventLoop& loop, migration::GuestKeeper& keeper, AttachedOptions options,
                     std::string name, std::function<void()> on_empty)
    : loop_(loop),
      keeper_(keeper),
      options_(std::move(options)),
      name_(std::move(name)),
      on_empty_(std::move(on_empty)),
      patience_(loop.timer()),
      pause_(loop.timer()) {}

GuestDoor::~GuestDoor() { close(); }

Result<void> GuestDoor::open() {
  auto bound = control::ListeningSocket::bind(options_.socket, control::SocketUse::guest);
  if (!bound) return std::move(bound).error();
  return listen(std::move(*bound));
}

Result<void> GuestDoor::inherit(UniqueFd listening, bool owns_path) {
  MD_TRY(auto socket, control::ListeningSocket::adopt(std::move(listening), control::SocketUse::guest));
  takes_path_ = owns_path;
  return listen(std::move(socket));
}

Result<void> GuestDoor::listen(control::ListeningSocket socket) {
  listener_.emplace(std::move(socket));
  watch_ = loop_.watch(listener_->fd());
  if (!watch_) return Error(ErrorKind::io, "guest socket: it cannot be watched");
  arm();
  return {};
}

Result<std::unique_ptr<AttachedMachine>> GuestDoor::expect(UniqueFd connection, RegisteredGuest guest) {
  const std::string name = guest.hello.machine_name;
  auto given_back = std::make_shared<ram::GivenBackPages>(guest.ram);
  MD_TRY(visitor_, Visitor::expect(*this, ++visitors_, std::move(connection), given_back));
  auto machine = AttachedMachine::expect(visitor_->link(), std::move(guest), std::move(given_back));
  if (!machine) {
    visitor_.reset();
    return std::move(machine).error();
  }
  machine_ = machine->get();
  log::info("guest '{}' is expected from the daemon before: {} blocks of {} bytes", printable(name),
            machine_->ram().size(), machine_->ram().total_bytes());
  return machine;
}

Result<GuestDoor::SharedSocket> GuestDoor::share_socket() const {
  SharedSocket out;
  if (!listener_) return out;
  out.fd.reset(::fcntl(listener_->fd(), F_DUPFD_CLOEXEC, 0));
  if (!out.fd) return Error::from_errno("hand the guest socket over");
  out.owns_path = listener_->owns_path();
  return out;
}

void GuestDoor::resume() {
  held_ = false;
  if (std::exchange(takes_path_, false) && listener_) listener_->own_path();
  if (std::exchange(knocked_, false) && watch_) arm();
}

void GuestDoor::give_up_socket() noexcept {
  pause_->cancel();
  watch_.reset();
  if (listener_) listener_->disown_path();
  listener_.reset();
}

void GuestDoor::close() noexcept {
  *alive_ = false;
  alive_ = std::make_shared<bool>(false);
  patience_->cancel();
  pause_->cancel();
  watch_.reset();
  listener_.reset();
  machine_ = nullptr;
  visitor_.reset();
}

void GuestDoor::arm() {
  watch_->when_readable([this] { accept_one(); });
}

void GuestDoor::accept_one() {
  if (held_) {
    knocked_ = true;
    return;
  }
  auto client = listener_->accept();
  if (!client) {
    // Out of descriptors, say: looked at again when some may be back.
    log::warning(client.error().text());
    return pause_->start(accept_pause, [this] { arm(); });
  }
  if (*client) {
    greet(std::move(*client));
  }
  arm();
}

Result<void> GuestDoor::check_peer(int client) const {
  ucred peer{};
  socklen_t size = sizeof peer;
  if (::getsockopt(client, SOL_SOCKET, SO_PEERCRED, &peer, &size) != 0)
    return Error::from_errno("ask who the guest is");
  if (peer.uid == ::geteuid() || peer.uid == 0 || peer.uid == options_.uid) {
    log::info("guest: process {} of user {} connected", peer.pid, peer.uid);
    return {};
  }
  return machine_error(
      fmt::format("user {} may not attach here (--machine attached,uid={} allows it)", peer.uid, peer.uid));
}

void GuestDoor::greet(UniqueFd client) {
  auto welcome = check_peer(client.get());
  if (welcome && visitor_)
    welcome = machine_error(visitor_->link()->lost() ? "the machine of the guest before is still being migrated"
                                                     : "another guest is attached to this daemon");
  if (!welcome) {
    log::warning(fmt::format("guest: not let in: {}", welcome.error().text()));
    return say_no(client.get(), welcome.error().text());
  }
  auto visitor = Visitor::make(*this, ++visitors_, std::move(client));
  // Its socket is closed by now.
  if (!visitor) return log::warning(fmt::format("guest: not let in: {}", visitor.error().text()));
  visitor_ = std::move(*visitor);
  patience_->start(registration_wait, [this] {
    log::warning("guest: it did not say READY in time");
    if (visitor_) visitor_->link()->hang_up();
  });
}

void GuestDoor::take_ready(const guest::Header& request, RegisteredGuest guest,
                           std::shared_ptr<ram::GivenBackPages> given_back) {
  patience_->cancel();
  const guest::GuestState state = guest.ready.state;
  const std::string name = guest.hello.machine_name;
  const std::string library = guest.hello.library;
  auto machine = AttachedMachine::create(visitor_->link(), std::move(guest), std::move(given_back));
  Result<void> taken;
  AttachedMachine* const made = machine ? machine->get() : nullptr;
  taken = machine ? keeper_.guest_ready(std::move(*machine), state) : Result<void>(std::move(machine).error());
  if (!taken) {
    log::warning(fmt::format("guest '{}': {}", printable(name), taken.error().text()));
    visitor_->link()->refuse(request, taken.error().text());
    return visitor_->link()->hang_up();
  }
  machine_ = made;
  constexpr const char* states[] = {"empty", "paused", "running"};
  log::info("guest '{}' attached by {}: {}, {} blocks of {} bytes, dirty log {}", printable(name), printable(library),
            states[static_cast<std::size_t>(state)], made->ram().size(), made->ram().total_bytes(),
            made->dirty_log()->kind());
  visitor_->link()->answer(request, guest::Empty{});
  if (state == guest::GuestState::empty && on_empty_) on_empty_();
}

void GuestDoor::take(std::uint64_t number, GuestMessage message) {
  if (!visitor_ || visitor_->number() != number) return;
  const auto link = visitor_->link();
  if (machine_ == nullptr) return link->refuse(message.header, "the machine is not there any more");
  take_request(message);
}

void GuestDoor::take_request(const GuestMessage& message) {
  GuestLink& link = *visitor_->link();
  const guest::Header& request = message.header;
  if (request.type == static_cast<std::uint16_t>(guest::Type::delete_blocker)) {
    const auto deleted = machine_->delete_blocker(guest::decode<guest::BlockerNumber>(message.body)->number);
    return deleted ? link.answer(request, guest::Empty{}) : link.refuse(request, deleted.error().text());
  }
  const auto idle = keeper_.check_guest_idle();
  if (request.type == static_cast<std::uint16_t>(guest::Type::add_blocker)) {
    std::string reason = guest::decode<guest::AddBlocker>(message.body)->reason;
    if (!idle)
      return link.refuse(
          request, "disallowing migration blocker (migration/snapshot in progress) for: " + printable(reason, 1024));
    const auto number = machine_->add_blocker(std::move(reason));
    return number ? link.answer(request, guest::BlockerNumber{*number}) : link.refuse(request, number.error().text());
  }
  if (!idle) return link.refuse(request, idle.error().text());
  log::info("guest: it detaches");
  link.answer(request, guest::Empty{});
  link.hang_up();
}

void GuestDoor::take_lost(std::uint64_t number, const Error& why) {
  if (!visitor_ || visitor_->number() != number) return;
  patience_->cancel();
  log::info("guest: the connection is over: {}", why.text());
  if (machine_ == nullptr) return let_go(number);
  keeper_.guest_gone(why, [this, number, alive = alive_] {
    if (*alive) let_go(number);
  });
}

void GuestDoor::let_go(std::uint64_t number) {
  if (!visitor_ || visitor_->number() != number) return;
  machine_ = nullptr;
  visitor_.reset();
}

}  // namespace migrationd
