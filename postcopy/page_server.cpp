// SPDX-License-Identifier: Apache-2.0
#include "postcopy/page_server.hpp"

#include "base/closed_by_peer.hpp"
#include "postcopy/working_set.hpp"
#include "ram/ram_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace migrationd::postcopy {

using ram::PageReader;
using ram::PageRun;
using Clock = std::chrono::steady_clock;

namespace {

// Zero records of one piece: 9 bytes each.
constexpr std::uint64_t zero_piece_pages = 4096;
// How far one look goes: a bitmap or a file is asked, not memory.
constexpr std::uint64_t look_pages = 65536;
// What a working set may send before anything else is asked: 64 MiB. A larger one was not made by a burst.
constexpr std::uint64_t head_start_pages = 16384;
// With the background switched off: when to look again whether it was switched on.
constexpr auto idle_poll = std::chrono::milliseconds(50);

std::uint64_t end_of(const PageRange& range) noexcept { return range.run.first + range.run.count; }

}  // namespace

Result<std::unique_ptr<PageServer>> PageServer::make(std::vector<BlockShape> blocks, UnsentPages unsent,
                                                     ram::PageOrigin& origin, transports::BufferedWriter& main,
                                                     transports::BufferedWriter* preempt, const ServerOptions& options,
                                                     ServerCounters& counters, StopSource& stop) {
  std::unique_ptr<PageServer> server(
      new PageServer(std::move(blocks), std::move(unsent), main, preempt, options, counters, stop));
  MD_TRY(server->bell_, Doorbell::make());
  for (Fetcher* fetcher : {&server->background_, &server->urgent_}) {
    MD_TRY(fetcher->reader, origin.open_reader());
    fetcher->pages.resize(PageReader::most_pages);
  }
  return server;
}

PageServer::PageServer(std::vector<BlockShape> blocks, UnsentPages unsent, transports::BufferedWriter& main,
                       transports::BufferedWriter* preempt, const ServerOptions& options, ServerCounters& counters,
                       StopSource& stop)
    : blocks_(std::move(blocks)),
      options_(options),
      counters_(counters),
      stop_(stop),
      main_(LaneKind::main, main, names_, options.section_id),
      limiter_(*options.bandwidth),
      pace_(Clock::now(), counters.answered.load(std::memory_order_relaxed)),
      unsent_(std::move(unsent)),
      window_(preempt != nullptr ? StreamWindow::many : StreamWindow::few),
      quiet_since_(Clock::now()) {
  for (std::size_t index = 0; index < blocks_.size(); ++index) {
    names_.push_back(blocks_[index].name);
    index_.emplace(blocks_[index].name, index);
  }
  if (preempt != nullptr) preempt_.emplace(LaneKind::preempt, *preempt, names_, options.section_id);
  counters_.due_bytes = unsent_.due_pages() * ram::page_size;
}

// --- errors -----------------------------------------------------------------------------------------------------

// The first one counts; the broken connections end what the other thread waits for.
Error PageServer::fail(Error error) {
  {
    const std::lock_guard lock(state_);
    if (!error_) error_ = error;
    error = *error_;
  }
  main_.channel().shutdown();
  if (preempt_) preempt_->channel().shutdown();
  bell_->ring();
  return error;
}

Result<void> PageServer::check() const {
  if (stop_.requested()) return cancelled_error();
  const std::lock_guard lock(state_);
  if (error_) return *error_;
  return {};
}

// --- requests ---------------------------------------------------------------------------------------------------

Result<PageRange> PageServer::locate(const stream::reply::RequestPages& request) {
  if (!request.block.empty()) {
    const auto found = index_.find(request.block);
    if (found == index_.end()) {
      return wire_error(
          fmt::format("request for pages of block '{}', which this machine has not", printable(request.block)));
    }
    request_block_ = found->second;
  }
  if (!request_block_) return wire_error("request for pages of the block named before, and none was");
  const BlockShape& block = blocks_[*request_block_];
  const std::uint64_t bytes = block.pages * ram::page_size;
  if (request.start % ram::page_size != 0 || request.length % ram::page_size != 0 || request.length == 0) {
    return wire_error(fmt::format("request for {}+{} of block '{}': not whole pages", hex(request.start),
                                  hex(request.length), printable(block.name)));
  }
  if (request.start >= bytes || request.length > bytes - request.start) {
    return wire_error(fmt::format("request for {}+{} of block '{}': past the end (used {})", hex(request.start),
                                  hex(request.length), printable(block.name), hex(bytes)));
  }
  return PageRange{*request_block_, {request.start / ram::page_size, request.length / ram::page_size}};
}

Result<void> PageServer::serve(const stream::reply::RequestPages& request) {
  const auto begun = Clock::now();
  counters_.requests.fetch_add(1, std::memory_order_relaxed);
  auto wanted = locate(request);
  if (!wanted) {
    broke_it_.store(true, std::memory_order_release);
    return fail(std::move(wanted).error().with("return path"));
  }
  const std::lock_guard serving(serving_);
  if (ended_) return {};
  auto sent = answer(*wanted);
  if (!sent && stream_ended_ && !broke_it() && closed_by_peer(sent.error())) {
    ended_ = true;
    return {};
  }
  if (!sent) return fail(std::move(sent).error());
  if (!*sent) return {};
  counters_.answered.fetch_add(1, std::memory_order_relaxed);
  const auto took = static_cast<std::uint64_t>(std::chrono::nanoseconds(Clock::now() - begun).count());
  counters_.answer_ns.fetch_add(took, std::memory_order_relaxed);
  if (took > counters_.longest_ns.load(std::memory_order_relaxed)) counters_.longest_ns = took;
  return {};
}

// A host page at a time, however much was asked for.
Result<bool> PageServer::answer(const PageRange& wanted) {
  bool sent_any = false;
  const std::uint64_t step = blocks_[wanted.block].host_pages;
  PageLane& lane = preempt_ ? *preempt_ : main_;
  const bool neighbours = options_.turns != nullptr && options_.background->load(std::memory_order_relaxed);
  for (std::uint64_t page = wanted.run.first / step * step; page < end_of(wanted); page += step) {
    MD_CHECK(check());
    std::optional<PageRun> run;
    bool ring = false;
    {
      const std::lock_guard lock(state_);
      quiet_since_ = Clock::now();
      window_.requested(quiet_since_);
      const bool in_sequence = neighbours && unsent_.in_sequence(wanted.block, page);
      run = unsent_.claim_requested(wanted.block, {page, step});
      if (run) note_asked({wanted.block, *run});
      // Once: the mover that was woken in vain, within max-postcopy-bandwidth, would take the processor from the guest.
      ring = run && in_sequence && !neighbours_due_;
      neighbours_due_ = neighbours_due_ || ring;
    }
    if (options_.turns != nullptr) options_.turns->note_asked(Clock::now());
    if (!run) continue;
    MD_CHECK(send(lane, urgent_, {wanted.block, *run}, std::nullopt));
    if (ring) bell_->ring();
    sent_any = true;
  }
  return sent_any;
}

// Under the lock.
void PageServer::note_asked(const PageRange& range) {
  if (!asked_for_.empty()) {
    PageRange& last = asked_for_.back();
    if (last.block == range.block && end_of(last) == range.run.first) {
      last.run.count += range.run.count;
      return;
    }
  }
  if (asked_for_.size() < most_working_set_runs) asked_for_.push_back(range);
}

void PageServer::pong(std::uint32_t value) {
  {
    const std::lock_guard lock(state_);
    if (!window_.answered(value)) return;
    quiet_since_ = Clock::now();
  }
  bell_->ring();
}

void PageServer::connection_ended(const Error& why) {
  {
    const std::lock_guard lock(state_);
    if (!error_) error_ = why;
  }
  bell_->ring();
}

std::chrono::milliseconds PageServer::quiet_for() const {
  const std::lock_guard lock(state_);
  if (!window_.all_answered()) return std::chrono::milliseconds::zero();
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - quiet_since_);
}

// --- pages ------------------------------------------------------------------------------------------------------

Result<ram::OriginPiece> PageServer::look(Fetcher& fetcher, const PageRange& range) {
  auto piece = fetcher.reader->look(range.block, range.run.first, end_of(range));
  if (piece) return piece;
  broke_it_.store(true, std::memory_order_release);
  return std::move(piece).error().with(fmt::format("block '{}'", printable(blocks_[range.block].name)));
}

Result<void> PageServer::fetch(Fetcher& fetcher, const PageRange& range) {
  auto read = fetcher.reader->read(range.block, range.run, fetcher.pages);
  if (read) return {};
  broke_it_.store(true, std::memory_order_release);
  return std::move(read).error().with(
      fmt::format("block '{}', page {}", printable(blocks_[range.block].name), hex(range.run.first * ram::page_size)));
}

Result<void> PageServer::check(const Fetcher& fetcher) {
  auto whole = fetcher.reader->check();
  if (!whole) broke_it_.store(true, std::memory_order_release);
  return whole;
}

Result<void> PageServer::put_fetched(PageLane::Turn& turn, const Fetcher& fetcher, const PageRange& range) {
  std::uint64_t zeros = 0;
  for (std::uint64_t i = 0; i < range.run.count; ++i) {
    MD_TRY(const bool zero, turn.put(range.block, (range.run.first + i) * ram::page_size, fetcher.pages[i]));
    zeros += zero ? 1 : 0;
  }
  // Nothing has been flushed: a page that cannot be had looks like zeros, and is not sent as such.
  if (zeros != 0) MD_CHECK(check(fetcher));
  counters_.zero_pages.fetch_add(zeros, std::memory_order_relaxed);
  counters_.normal_pages.fetch_add(range.run.count - zeros, std::memory_order_relaxed);
  return {};
}

Result<void> PageServer::put_zeros(PageLane::Turn& turn, const PageRange& range) {
  for (std::uint64_t page = range.run.first; page < end_of(range); ++page) {
    MD_CHECK(turn.put_zero(range.block, page * ram::page_size));
  }
  counters_.zero_pages.fetch_add(range.run.count, std::memory_order_relaxed);
  return {};
}

// What is of several kinds, or larger than one fetch: a huge page, fetched while the lane is held.
Result<void> PageServer::put_pieces(PageLane::Turn& turn, Fetcher& fetcher, const PageRange& range) {
  for (std::uint64_t page = range.run.first; page < end_of(range);) {
    MD_TRY(const ram::OriginPiece piece, look(fetcher, {range.block, {page, end_of(range) - page}}));
    PageRange part{range.block, {page, piece.end - page}};
    if (piece.zero) {
      MD_CHECK(put_zeros(turn, part));
    } else {
      part.run.count = std::min(part.run.count, PageReader::most_pages);
      MD_CHECK(turn.flush());  // the pages fetched before are overwritten now
      MD_CHECK(fetch(fetcher, part));
      MD_CHECK(put_fetched(turn, fetcher, part));
    }
    page = end_of(part);
  }
  return {};
}

Result<void> PageServer::send(PageLane& lane, Fetcher& fetcher, const PageRange& range,
                              std::optional<std::uint32_t> ping) {
  MD_TRY(const ram::OriginPiece piece, look(fetcher, range));
  const bool at_once = piece.end == end_of(range) && !piece.zero && range.run.count <= PageReader::most_pages;
  // A disk is waited for before the lane is taken.
  if (at_once) MD_CHECK(fetch(fetcher, range));
  PageLane::Turn turn(lane);
  MD_CHECK(turn.begin());
  MD_CHECK(at_once ? put_fetched(turn, fetcher, range) : put_pieces(turn, fetcher, range));
  MD_CHECK(turn.finish(ping));
  counters_.bytes.fetch_add(turn.bytes(), std::memory_order_relaxed);
  if (ping) limiter_.sent(turn.bytes());
  return {};
}

Result<void> PageServer::send_first(ByteView bytes) {
  if (options_.turns != nullptr) options_.turns->note_started(Clock::now());
  auto sent = PageLane::Turn(main_).put_raw(bytes);
  if (!sent) return fail(std::move(sent).error());
  return {};
}

// --- background -------------------------------------------------------------------------------------------------

bool PageServer::anything_due() const {
  const std::lock_guard lock(state_);
  counters_.due_bytes = unsent_.due_pages() * ram::page_size;
  return unsent_.due_pages() != 0;
}

// The working set and the neighbours wait for nothing but the rate and the window. A large working set is a background
// like any other.
bool PageServer::in_a_hurry(bool background) const {
  const std::lock_guard lock(state_);
  return (unsent_.any_preferred() && preferred_pages_ < head_start_pages) || (background && neighbours_due_);
}

// How long to wait before asking again; zero: it is our turn.
std::chrono::nanoseconds PageServer::until_turn(Clock::time_point now) {
  const bool background = options_.background->load(std::memory_order_relaxed);
  const bool hurry = in_a_hurry(background);
  if (!hurry && !background) return idle_poll;
  if (const auto wait = limiter_.wait(now); wait != wait.zero() || hurry || options_.turns == nullptr) return wait;
  if (const auto wait =
          pace_.wait(now, options_.turns->urgent(now), counters_.answered.load(std::memory_order_relaxed));
      wait != wait.zero())
    return wait;
  return options_.turns->take(now) ? std::chrono::nanoseconds::zero() : StreamTurns::ask_again;
}

// Neighbours that become due end it.
Result<void> PageServer::rest(std::chrono::nanoseconds wait) {
  if (options_.turns == nullptr) return stop_.sleep_for(wait) ? Result<void>() : cancelled_error();
  MD_TRY([[maybe_unused]] const bool rang, bell_->wait_for(stop_, std::chrono::ceil<std::chrono::milliseconds>(wait)));
  return {};
}

// Until the rate, the window, our turn and the switch let a piece go, or nothing is due any more.
Result<void> PageServer::await_turn() {
  while (true) {
    MD_CHECK(check());
    if (!anything_due()) return {};
    const auto now = Clock::now();
    if (const auto wait = until_turn(now); wait != wait.zero()) {
      if (options_.turns != nullptr && wait >= StreamTurns::ask_again) options_.turns->give_back();
      MD_CHECK(rest(wait));
      continue;
    }
    {
      const std::lock_guard lock(state_);
      if (window_.open(now)) return {};
    }
    MD_CHECK(bell_->wait(stop_));
  }
}

// Read before the lane is taken: a page that is asked for meanwhile need not wait for the disk.
Result<void> PageServer::stage(const PageRange& range) {
  for (std::uint64_t page = range.run.first; page < end_of(range);) {
    MD_TRY(const ram::OriginPiece piece, look(background_, {range.block, {page, end_of(range) - page}}));
    Staged part{{range.block, {page, piece.end - page}}, piece.zero, staged_bytes_};
    if (!piece.zero) {
      part.range.run.count = std::min(part.range.run.count, PageReader::most_pages);
      MD_CHECK(fetch(background_, part.range));
      staged_bytes_ += part.range.run.count * ram::page_size;
      if (staging_.size() < staged_bytes_) staging_.resize(staged_bytes_);
      for (std::uint64_t i = 0; i < part.range.run.count; ++i) {
        std::memcpy(staging_.data() + part.at + i * ram::page_size, background_.pages[i], ram::page_size);
      }
    }
    staged_.push_back(part);
    page = end_of(part.range);
  }
  return {};
}

// Single pages from many places go as one piece: a PING for each would cost more than the page.
Result<void> PageServer::send_preferred() {
  std::vector<PageRange> runs;
  std::uint32_t ping = 0;
  {
    const std::lock_guard lock(state_);
    runs = unsent_.claim_preferred(StreamWindow::piece_pages);
    if (runs.empty()) return {};
    ping = window_.piece_sent();
  }
  for (const PageRange& run : runs) preferred_pages_ += run.run.count;
  // A huge page is a piece of its own.
  if (runs.front().run.count > PageReader::most_pages) return send(main_, background_, runs.front(), ping);
  staged_.clear();
  staged_bytes_ = 0;
  for (const PageRange& run : runs) MD_CHECK(stage(run));
  PageLane::Turn turn(main_);
  MD_CHECK(turn.begin());
  for (const Staged& part : staged_) {
    if (part.zero) {
      MD_CHECK(put_zeros(turn, part.range));
      continue;
    }
    for (std::uint64_t i = 0; i < part.range.run.count; ++i) {
      background_.pages[i] = staging_.data() + part.at + i * ram::page_size;
    }
    MD_CHECK(put_fetched(turn, background_, part.range));
  }
  MD_CHECK(turn.finish(ping));
  counters_.bytes.fetch_add(turn.bytes(), std::memory_order_relaxed);
  limiter_.sent(turn.bytes());
  return {};
}

Result<bool> PageServer::send_some() {
  std::optional<PageRange> range;
  bool preferred = false;
  {
    const std::lock_guard lock(state_);
    preferred = unsent_.any_preferred();
    if (!preferred) range = unsent_.next(look_pages);
  }
  if (preferred) {
    MD_CHECK(send_preferred());
    return true;
  }
  if (!range) return false;
  const std::uint64_t step = blocks_[range->block].host_pages;
  MD_TRY(const ram::OriginPiece piece, look(background_, *range));
  const std::uint64_t alike = (piece.end - range->run.first) / step * step;
  if (piece.zero && options_.skip_zero && alike > 0) {
    const std::lock_guard lock(state_);
    unsent_.skip({range->block, {range->run.first, alike}});
    return true;
  }
  const std::uint64_t most = piece.zero ? zero_piece_pages : StreamWindow::piece_pages;
  range->run.count = std::max(std::min(alike, most / step * step), step);
  std::optional<PageRun> run;
  std::uint32_t ping = 0;
  {
    const std::lock_guard lock(state_);
    run = unsent_.claim(*range);
    if (!run) return true;
    ping = window_.piece_sent();
    if (neighbours_due_) note_asked({range->block, *run});
    neighbours_due_ = false;
  }
  MD_CHECK(send(main_, background_, {range->block, *run}, ping));
  pace_.sent(Clock::now());
  return true;
}

Result<void> PageServer::stream_rest() {
  Result<bool> sent = true;
  while (sent && *sent) {
    auto turn = await_turn();
    sent = turn ? send_some() : Result<bool>(std::move(turn).error());
  }
  if (options_.turns != nullptr) options_.turns->give_back();
  if (!sent) return fail(std::move(sent).error());
  return {};
}

Result<void> PageServer::end_stream() {
  // What the other thread has claimed is on its way before it gives this up.
  const std::lock_guard serving(serving_);
  MD_CHECK(check());
  if (!preempt_) ended_ = true;
  auto ended = PageLane::Turn(main_).end_stream();
  if (!ended) return fail(std::move(ended).error());
  stream_ended_ = true;
  const std::lock_guard lock(state_);
  quiet_since_ = Clock::now();
  return {};
}

Result<void> PageServer::end_preempt() {
  if (!preempt_) return {};
  const std::lock_guard serving(serving_);
  if (ended_) return {};
  ended_ = true;
  auto marked = PageLane::Turn(*preempt_).end_records();
  if (!marked && closed_by_peer(marked.error())) return {};
  return marked;
}

}  // namespace migrationd::postcopy
