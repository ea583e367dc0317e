// SPDX-License-Identifier: Apache-2.0
#include "daemon/migration/postcopy_source.hpp"

#include "base/closed_by_peer.hpp"
#include "base/log.hpp"
#include "daemon/migration/multifd_rules.hpp"
#include "protocol/stream/commands.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace migrationd::migration {
namespace {

using qmp::MigrationStatus;

// With a preempt channel: how long a destination that has read everything says and asks nothing until it is taken for
// one that waits for the channel's end mark (QEMU 7.2; newer ones have answered long before).
constexpr auto quiet_before_end_mark = std::chrono::milliseconds(150);

}  // namespace

Result<std::unique_ptr<PostcopySource>> PostcopySource::make(const PostcopyPlan& plan, Machine& machine,
                                                             const LiveLimits& limits, Progress& progress,
                                                             MoverEvents& events, StopSource& stop,
                                                             PostcopyControl& control) {
  std::unique_ptr<PostcopySource> source(new PostcopySource(plan, machine, limits, progress, events, stop, control));
  MD_TRY(source->bell_, Doorbell::make());
  const ram::RamMap& map = machine.ram();
  for (std::size_t i = 0; i < map.size(); ++i) {
    const ram::RamBlock& block = map.at(i);
    source->blocks_.push_back({block.name(), block.pages(), block.backing_page() / ram::page_size});
  }
  for (const auto& [name, bytes] : plan.page_sizes) {
    MD_TRY(const std::size_t index, map.find(name));
    if (map.at(index).length() % bytes != 0) {
      return plan_error(fmt::format("block '{}' of {} bytes cannot consist of pages of {}", printable(name),
                                    map.at(index).length(), bytes));
    }
    source->blocks_[index].host_pages = bytes / ram::page_size;
  }
  return source;
}

PostcopySource::PostcopySource(const PostcopyPlan& plan, Machine& machine, const LiveLimits& limits, Progress& progress,
                               MoverEvents& events, StopSource& stop, PostcopyControl& control)
    : plan_(plan),
      machine_(machine),
      limits_(limits),
      progress_(progress),
      events_(events),
      stop_(stop),
      control_(control),
      memory_(machine.ram()) {}

PostcopySource::~PostcopySource() {
  close_link();
  keep_working_set();
}

ram::PageOrigin& PostcopySource::origin() noexcept {
  ram::PageOrigin* const elsewhere = machine_.page_origin();
  return elsewhere != nullptr ? *elsewhere : memory_;
}

bool PostcopySource::needs_end_mark() const noexcept {
  const auto version = machine_version(machine_.configuration().machine_name);
  return plan_.preempt && !(version && *version > MachineVersion{7, 2});
}

bool PostcopySource::preempt_at_once() const noexcept {
  const auto version = machine_version(machine_.configuration().machine_name);
  return plan_.preempt && version && *version <= MachineVersion{7, 2};
}

Result<void> PostcopySource::prepare(SourceLink& link, transports::OutgoingTarget& target) {
  MD_CHECK(origin().check());
  ByteWriter out;
  stream::encode_command(out, stream::command::Ping{postcopy::ping_before_stop});
  MD_CHECK(link.writer->append(out.view()));
  MD_CHECK(link.writer->flush());
  // Files, which the first page needs and the destination's answer does not.
  if (plan_.at_once) turns_.emplace(postcopy::StreamTurns::usual_path(), postcopy::StreamTurns::usual_slots());
  if (plan_.working_set) open_working_set();
  while (last_pong_.load(std::memory_order_acquire) != postcopy::ping_before_stop) {
    if (link.return_path->answer() != PeerAnswer::none) return link.return_path->why();
    MD_CHECK(bell_->wait(stop_));
  }
  // The destination tells its connections apart by their order: by now it has taken the first for what it is.
  if (!plan_.preempt || link.preempt) return {};
  auto channel = target.connect(stop_);
  if (!channel) return std::move(channel).error().with("preempt channel");
  link.preempt = std::move(*channel);
  return {};
}

std::vector<std::uint64_t> PostcopySource::host_pages() const {
  std::vector<std::uint64_t> out;
  for (const postcopy::BlockShape& block : blocks_) out.push_back(block.host_pages);
  return out;
}

// --- working set --------------------------------------------------------------------------------------------------

// One that does not count is as good as none.
void PostcopySource::open_working_set() {
  const auto file = origin().source();
  if (!file) return;
  working_set_file_.emplace(file->path, postcopy::FileState{file->size, file->modified_ns});
  auto order = working_set_file_->read(blocks_);
  if (!order) {
    log::warning(fmt::format("{} is ignored: {}", printable(working_set_file_->path()), order.error().text()));
  } else if (*order) {
    working_set_ = std::move(**order);
    log::info("{}: {} runs of pages go first", printable(working_set_file_->path()), working_set_.size());
  }
}

// What is known already stays in front, for those pages are hardly asked for any more.
void PostcopySource::keep_working_set() {
  if (!working_set_file_ || asked_for_.empty()) return;
  working_set_ = postcopy::join_working_sets(blocks_, working_set_, asked_for_);
  asked_for_.clear();
  if (auto kept = working_set_file_->write(blocks_, working_set_); !kept) {
    log::info("{} could not be written: {}", printable(working_set_file_->path()), kept.error().text());
  }
}

// --- hand-over ----------------------------------------------------------------------------------------------------

Result<void> PostcopySource::start_server(postcopy::UnsentPages unsent) {
  if (link_.preempt && !link_.preempt_writer) {
    link_.preempt_writer = std::make_unique<transports::BufferedWriter>(*link_.preempt);
  }
  postcopy::ServerOptions options;
  options.section_id = machine_.ram_section_id();
  options.skip_zero = plan_.at_once;
  options.bandwidth = &limits_.max_postcopy_bandwidth;
  options.background = &limits_.postcopy_background;
  options.turns = turns_ ? &*turns_ : nullptr;
  unsent.prefer(working_set_);
  MD_TRY(server_, postcopy::PageServer::make(blocks_, std::move(unsent), origin(), *link_.writer,
                                             link_.preempt_writer.get(), options, progress_.postcopy, stop_));
  std::vector<transports::Channel*> channels{link_.main.get()};
  if (link_.preempt) channels.push_back(link_.preempt.get());
  control_.watch(std::move(channels));
  return {};
}

Result<void> PostcopySource::hand_over(SourceLink link, std::optional<ram::DirtyBitmaps> lacking,
                                       std::vector<DeviceSection> devices) {
  link_ = std::move(link);
  ByteWriter out;
  if (machine_.configuration().switchover_start) stream::encode_command(out, stream::command::SwitchoverStart{});
  const auto discards = lacking ? postcopy::plan_discards(blocks_, *lacking) : postcopy::formal_discard(blocks_);
  for (const auto& discard : discards) stream::encode_command(out, discard);
  stream::encode_command(out, stream::command::Ping{postcopy::ping_after_discards});
  MD_CHECK(postcopy::encode_package(out, devices));
  stream::encode_command(out, stream::command::Ping{postcopy::ping_after_package});
  MD_CHECK(start_server(lacking ? postcopy::UnsentPages(std::move(*lacking), host_pages())
                                : postcopy::UnsentPages(blocks_)));

  if (!control_.commit()) return cancelled_error();
  handed_over_ = true;
  serving_.store(server_.get(), std::memory_order_release);
  return server_->send_first(out.view());
}

// --- serving ------------------------------------------------------------------------------------------------------

Result<void> PostcopySource::serve() {
  while (true) {
    auto served = serve_connection();
    if (served) {
      close_link();
      keep_working_set();
      return {};
    }
    if (const Outcome outcome = outcome_there(served.error()); outcome != Outcome::may_run) {
      handed_over_ = false;
      unknown_ = outcome == Outcome::unknown;
      return link_.return_path->why();
    }
    MD_CHECK(recover(cause_of(std::move(served).error())));
  }
}

// A write that fails says only that nobody reads any more; why, the return path's thread hears. Which of the two
// threads meets the end first is chance.
Error PostcopySource::cause_of(Error met) const {
  if (!closed_by_peer(met) || !link_.return_path) return met;
  const PeerAnswer answer = link_.return_path->wait_for_answer(peers_word_wait(met));
  const bool heard = answer != PeerAnswer::none && answer != PeerAnswer::success;
  return heard ? link_.return_path->why() : std::move(met);
}

// It answers the PING in front of RUN before it runs anything. So it never ran there if it says so; and if a connection
// ends in order without that answer, it has most likely given up before. But a tunnel on the way ends in order, too,
// and may have swallowed the answer: then two would run if the machine went on here by itself.
PostcopySource::Outcome PostcopySource::outcome_there(const Error& met) const {
  // What we ended ourselves says nothing about the other end.
  if (stop_.requested() || control_.broken() || server_->broke_it()) return Outcome::may_run;
  if (link_.return_path->wait_for_answer(peers_word_wait(met)) == PeerAnswer::none) return Outcome::may_run;
  if (reached_run_.load(std::memory_order_acquire)) return Outcome::may_run;
  const PeerAnswer answer = link_.return_path->answer();
  if (answer == PeerAnswer::failure) return Outcome::refused;
  const bool in_order = answer == PeerAnswer::lost && link_.return_path->why().kind() == ErrorKind::peer;
  return in_order ? Outcome::unknown : Outcome::may_run;
}

Result<void> PostcopySource::serve_connection() {
  MD_CHECK(server_->stream_rest());
  MD_CHECK(await_run());
  link_.return_path->expect_success();
  MD_CHECK(server_->end_stream());
  return await_success();
}

// Its devices, while they are loaded, may ask for pages that are zero without a look, which the stream leaves out. A
// QEMU that has read the end of the stream waits for its devices before it wakes who waits for such a page: for ever,
// if it is they who wait. So the end is not told before the devices are known to be loaded; requests are answered until
// then.
Result<void> PostcopySource::await_run() {
  while (!reached_run_.load(std::memory_order_acquire)) {
    if (link_.return_path->answer() != PeerAnswer::none) return link_.return_path->why();
    MD_CHECK(bell_->wait(stop_));
  }
  return {};
}

// The end mark of the preempt channel is the last that is said: a request behind it is not answered. A destination that
// knows of no mark would wait for that answer for ever. So there is none where it can only be such a one, and who may
// need it gets it once it has read everything (docs/spec/postcopy.md section 10.3). Written right behind the end of the
// stream, it left a QEMU 10.0 in postcopy-active for ever, five times of six, while its guest touched new memory.
Result<void> PostcopySource::await_success() {
  bool end_marked = !needs_end_mark();
  while (!end_marked && link_.return_path->wait_for_answer(quiet_before_end_mark / 3) == PeerAnswer::none) {
    if (stop_.requested()) return cancelled_error();
    if (server_->quiet_for() < quiet_before_end_mark) continue;
    MD_CHECK(server_->end_preempt());
    end_marked = true;
  }
  MD_CHECK(link_.return_path->wait_for_answer());
  if (link_.return_path->answer() != PeerAnswer::success) return link_.return_path->why();
  return {};
}

void PostcopySource::close_link() {
  control_.watch({});
  // Its thread uses the server until it is joined.
  link_.return_path.reset();
  serving_.store(nullptr, std::memory_order_release);
  if (server_ && working_set_file_) {
    // However often the link breaks, no more is kept than a record can hold.
    const auto& asked = server_->asked_for();
    const std::size_t more = std::min(asked.size(), postcopy::most_working_set_runs - asked_for_.size());
    asked_for_.insert(asked_for_.end(), asked.begin(), asked.begin() + static_cast<std::ptrdiff_t>(more));
  }
  server_.reset();
  link_ = {};
}

// --- recovery -----------------------------------------------------------------------------------------------------

Result<void> PostcopySource::recover(Error why) {
  why = std::move(why).with("postcopy");
  while (true) {
    if (stop_.requested()) return cancelled_error();
    const bool by_user = control_.take_broken();
    events_.paused(by_user ? Error(ErrorKind::io, "Postcopy migration is paused by the user") : why);
    close_link();
    MD_TRY(transports::OutgoingTarget target, control_.await_target(stop_));
    events_.status(MigrationStatus::postcopy_recover_setup);
    auto again = reconnect(std::move(target));
    if (again) {
      events_.status(MigrationStatus::postcopy_active);
      return {};
    }
    why = cause_of(std::move(again).error()).with("postcopy: recover");
  }
}

Result<void> PostcopySource::reconnect(transports::OutgoingTarget target) {
  {
    const std::lock_guard lock(handshake_.mutex);
    handshake_.open = true;
    handshake_.lacking.clear();
    for (const postcopy::BlockShape& block : blocks_) handshake_.lacking.emplace_back(block.pages);
    handshake_.bitmaps = 0;
    handshake_.acknowledged = handshake_.lost = false;
  }
  MD_TRY(link_.main, target.connect(stop_));
  control_.watch({link_.main.get()});
  if (plan_.preempt && preempt_at_once()) {
    MD_TRY(link_.preempt, target.connect(stop_));
  }
  events_.status(MigrationStatus::postcopy_recover);
  link_.writer = std::make_unique<transports::BufferedWriter>(*link_.main);
  MD_TRY(link_.return_path, ReturnPathReader::start(*link_.main, stop_, this));
  MD_TRY(ram::DirtyBitmaps lacking, ask_for_received());
  if (plan_.preempt && !link_.preempt) {
    MD_TRY(link_.preempt, target.connect(stop_));
  }
  MD_CHECK(start_server(postcopy::UnsentPages(std::move(lacking), host_pages())));
  // Requests come as soon as it has read RESUME.
  serving_.store(server_.get(), std::memory_order_release);
  return say_resume();
}

Result<ram::DirtyBitmaps> PostcopySource::ask_for_received() {
  ByteWriter out;
  for (const postcopy::BlockShape& block : blocks_) {
    stream::encode_command(out, stream::command::RecvBitmap{block.name});
  }
  MD_CHECK(link_.writer->append(out.view()));
  MD_CHECK(link_.writer->flush());
  while (true) {
    {
      const std::lock_guard lock(handshake_.mutex);
      if (handshake_.bitmaps == blocks_.size()) return std::move(handshake_.lacking);
      if (handshake_.lost) break;
    }
    MD_CHECK(bell_->wait(stop_));
  }
  return link_.return_path->why();
}

Result<void> PostcopySource::say_resume() {
  ByteWriter out;
  stream::encode_command(out, stream::command::PostcopyResume{});
  MD_CHECK(server_->send_first(out.view()));
  while (true) {
    {
      const std::lock_guard lock(handshake_.mutex);
      if (handshake_.acknowledged) {
        handshake_.open = false;
        return {};
      }
      if (handshake_.lost) break;
    }
    MD_CHECK(bell_->wait(stop_));
  }
  return link_.return_path->why();
}

// --- return path's thread -------------------------------------------------------------------------------------------

Result<void> PostcopySource::on_request(const stream::reply::RequestPages& request) {
  if (auto* const server = serving_.load(std::memory_order_acquire)) return server->serve(request);
  return wire_error(fmt::format("return path: {} outside of postcopy", stream::return_message_name(request)));
}

void PostcopySource::on_pong(std::uint32_t value) {
  last_pong_.store(value, std::memory_order_release);
  if (value == postcopy::ping_in_package) reached_run_.store(true, std::memory_order_release);
  if (value == postcopy::ping_before_stop || value == postcopy::ping_in_package) bell_->ring();
  if (auto* const server = serving_.load(std::memory_order_acquire)) server->pong(value);
}

Result<std::uint64_t> PostcopySource::on_bitmap_announced(const std::string& block) {
  const std::lock_guard lock(handshake_.mutex);
  // In the order of the questions, each once.
  if (!handshake_.open || handshake_.bitmaps >= blocks_.size() || blocks_[handshake_.bitmaps].name != block) {
    return wire_error(fmt::format("return path: a bitmap of block '{}' that was not asked for now", printable(block)));
  }
  return blocks_[handshake_.bitmaps].pages;
}

Result<void> PostcopySource::on_bitmap(const std::string&, ByteView bitmap) {
  {
    const std::lock_guard lock(handshake_.mutex);
    Bitmap& lacking = handshake_.lacking[handshake_.bitmaps];
    for (std::size_t page = 0; page < lacking.size(); ++page) {
      const bool received = (std::to_integer<unsigned>(bitmap[page / 8]) >> (page % 8) & 1U) != 0;
      if (!received) lacking.set(page);
    }
    ++handshake_.bitmaps;
  }
  // Only who is paused in a postcopy answers so: it runs the machine, whatever became of the PONG.
  reached_run_.store(true, std::memory_order_release);
  bell_->ring();
  return {};
}

Result<void> PostcopySource::on_resume_ack() {
  {
    const std::lock_guard lock(handshake_.mutex);
    if (!handshake_.open || handshake_.bitmaps != blocks_.size()) {
      return wire_error("return path: RESUME_ACK that was not asked for");
    }
    handshake_.acknowledged = true;
  }
  bell_->ring();
  return {};
}

void PostcopySource::on_lost(const Error& why) {
  {
    const std::lock_guard lock(handshake_.mutex);
    handshake_.lost = true;
  }
  bell_->ring();
  if (auto* const server = serving_.load(std::memory_order_acquire)) server->connection_ended(why);
}

}  // namespace migrationd::migration
