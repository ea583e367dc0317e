// SPDX-License-Identifier: Apache-2.0
//
// PageServer: the source of a postcopy on one connection, from the package to the end of the stream. It answers the
// destination's page requests and streams the rest behind them (docs/spec/postcopy.md sections 9 and 10).
//
// Two threads send pages:
//
//   return path  reads a request, claims the pages, fetches and writes them itself: no hand-over, no queue that a
//                flood could fill. Its lane is the preempt channel where there is one, else the main channel, on which
//                it waits for one piece of the background at most.
//   mover        sends the preferred pages (a recorded working set) at once, also with the background switched off:
//                the guest is about to ask for them. Then it streams what is due, piece by piece, within
//                max-postcopy-bandwidth and the StreamWindow, which without a preempt channel keeps little under way
//                while somebody is asking. Of an instant resume it also waits for its turn among the streams of this
//                host, and until a burst of requests has gone quiet (BackgroundPace); but who asks for one page behind
//                the other gets a piece of its neighbours at once, which is a fraction of the round trips.
//
// Requests for pages sent already are the normal case (they crossed) and ignored. Once the stream has ended on a
// connection without preempt channel, so are those for pages that are zero without a look and were left out: the
// destination's memory is whole then, and who waits is woken. With a preempt channel they are answered until its end.
// A destination that has everything closes that channel itself, and only then says so on the main one. So behind the
// end of the stream a preempt channel that the peer has closed is no failure: the answer tells, or the main
// connection's end.
//
// A page that cannot be fetched is not sent, and no zero in its place: the connections are broken, the destination
// pauses, and the error names the page (fail closed). So it is for a request that is no request.
//
// Locks: state_ guards UnsentPages and the window, for a few hundred nanoseconds; a lane's is held while a piece is
// written; serving_ by the return path's thread during a request, so that the end of the stream comes behind it. Order:
// serving_, lane, state_.
//
// One server serves one connection; after a break a new one is made from what the destination still lacks.
#pragma once

#include "base/doorbell.hpp"
#include "base/result.hpp"
#include "base/stop.hpp"
#include "postcopy/background_pace.hpp"
#include "postcopy/page_lane.hpp"
#include "postcopy/server_counters.hpp"
#include "postcopy/stream_turns.hpp"
#include "postcopy/stream_window.hpp"
#include "postcopy/switch_over.hpp"
#include "postcopy/unsent_pages.hpp"
#include "protocol/stream/return_path.hpp"
#include "ram/page_origin.hpp"
#include "ram/rate_limiter.hpp"

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <vector>

namespace migrationd::postcopy {

struct ServerOptions {
  std::uint32_t section_id = 0;
  // Pages that are zero without a look are left out of the background stream.
  bool skip_zero = false;
  // Bytes per second of the background; 0: no limit. May change.
  const std::atomic<std::uint64_t>* bandwidth = nullptr;
  // False: pages go on request only. May change.
  const std::atomic<bool>* background = nullptr;
  // The turns that the background takes and the requests it gives way to; null: it goes when the window is open.
  StreamTurns* turns = nullptr;
};

class PageServer {
 public:
  // Everything referred to outlives it. `preempt` may be null.
  static Result<std::unique_ptr<PageServer>> make(std::vector<BlockShape> blocks, UnsentPages unsent,
                                                  ram::PageOrigin& origin, transports::BufferedWriter& main,
                                                  transports::BufferedWriter* preempt, const ServerOptions& options,
                                                  ServerCounters& counters, StopSource& stop);

  // --- return path's thread ----------------------------------------------------------------------------------
  // Errors end the connection: a request that names no memory of ours, or a page that could not be fetched or sent.
  Result<void> serve(const stream::reply::RequestPages& request);
  void pong(std::uint32_t value);
  // Nothing more will come on the return path; `why`.
  void connection_ended(const Error& why);

  // --- mover ---------------------------------------------------------------------------------------------------
  // Bytes before the pages: the package. Requests may come as soon as it is written, also before this returns.
  Result<void> send_first(ByteView bytes);
  // Streams until nothing is due. Error: the first that either thread met.
  Result<void> stream_rest();
  // Behind everything that was claimed: END and EOF.
  Result<void> end_stream();
  // The preempt channel's end mark, for who waits for it and has not closed it; no request is answered any more.
  // Nothing without one. After end_stream().
  Result<void> end_preempt();

  // We ended the connection, not the destination: for a page that could not be fetched, or a request that was none.
  bool broke_it() const noexcept { return broke_it_.load(std::memory_order_acquire); }
  // Since the end of the stream, or since the destination last asked for a page or said that it had read a piece; zero
  // while it has pieces to read. For deciding that there will be no request.
  std::chrono::milliseconds quiet_for() const;
  // The pages that went on request, in that order, and their neighbours: the working set. Call when both threads have
  // ended.
  const std::vector<PageRange>& asked_for() const noexcept { return asked_for_; }

 private:
  PageServer(std::vector<BlockShape> blocks, UnsentPages unsent, transports::BufferedWriter& main,
             transports::BufferedWriter* preempt, const ServerOptions& options, ServerCounters& counters,
             StopSource& stop);

  // One thread's means of fetching pages.
  struct Fetcher {
    std::unique_ptr<ram::PageReader> reader;
    std::vector<const std::byte*> pages;
  };

  Result<PageRange> locate(const stream::reply::RequestPages& request);
  // True when a page was sent.
  Result<bool> answer(const PageRange& wanted);
  // Claimed pages, in one turn of the lane.
  Result<void> send(PageLane& lane, Fetcher& fetcher, const PageRange& range, std::optional<std::uint32_t> ping);
  Result<void> put_pieces(PageLane::Turn& turn, Fetcher& fetcher, const PageRange& range);
  Result<void> put_fetched(PageLane::Turn& turn, const Fetcher& fetcher, const PageRange& range);
  Result<void> put_zeros(PageLane::Turn& turn, const PageRange& range);
  Result<ram::OriginPiece> look(Fetcher& fetcher, const PageRange& range);
  Result<void> check(const Fetcher& fetcher);
  Result<void> fetch(Fetcher& fetcher, const PageRange& range);
  // A piece of the background; false: nothing is due.
  Result<bool> send_some();
  Result<void> send_preferred();
  Result<void> stage(const PageRange& range);
  Result<void> await_turn();
  Result<void> rest(std::chrono::nanoseconds wait);
  bool in_a_hurry(bool background) const;
  std::chrono::nanoseconds until_turn(std::chrono::steady_clock::time_point now);
  bool anything_due() const;
  void note_asked(const PageRange& range);
  Error fail(Error error);
  Result<void> check() const;

  const std::vector<BlockShape> blocks_;
  std::vector<std::string> names_;
  std::unordered_map<std::string_view, std::size_t> index_;
  const ServerOptions options_;
  ServerCounters& counters_;
  StopSource& stop_;

  PageLane main_;
  std::optional<PageLane> preempt_;
  Fetcher background_;
  Fetcher urgent_;
  ram::RateLimiter limiter_;
  BackgroundPace pace_;
  // Pages of a working set, from several places, before they are written at once; mover.
  struct Staged {
    PageRange range;
    bool zero = false;
    std::size_t at = 0;  // bytes from the start of staging_
  };
  std::vector<std::byte> staging_;
  std::vector<Staged> staged_;
  std::size_t staged_bytes_ = 0;
  std::uint64_t preferred_pages_ = 0;  // sent

  // Shared by both threads for a moment at a time; see the top.
  mutable std::mutex state_;
  UnsentPages unsent_;
  StreamWindow window_;
  bool neighbours_due_ = false;  // of a page that was asked for in sequence
  std::vector<PageRange> asked_for_;
  std::optional<Error> error_;
  std::chrono::steady_clock::time_point quiet_since_;  // see quiet_for()

  std::atomic<bool> broke_it_{false};
  std::mutex serving_;
  // Guarded by serving_:
  bool stream_ended_ = false;
  bool ended_ = false;  // no request is answered any more
  std::unique_ptr<Doorbell> bell_;
  std::optional<std::size_t> request_block_;  // of the last request that named one; return path's thread
};

}  // namespace migrationd::postcopy
