// SPDX-License-Identifier: Apache-2.0
//
// PostcopySource: the machine leaves before its memory has (docs/spec/postcopy.md).
//
// hand_over() says what is stale, packs the devices and sends them; from its commit on the machine is the peer's,
// whatever happens: it is never started here again. serve() sends the pages, asked for or not, until the destination
// says that it has everything.
//
// When a connection breaks meanwhile the destination's guest waits for pages that only we have. So serve() does not
// return then: the status becomes postcopy-paused, nothing is given up, and a new connection (migrate with `resume`) is
// taken up where the old one ended: the destination sends what it has received, the rest is still to be sent. Only the
// stop (the daemon ends) ends it, and then what was not sent is lost.
//
// Thread: the mover; the on_...() are the return path's thread's.
#pragma once

#include "base/doorbell.hpp"
#include "base/gate.hpp"
#include "base/stop.hpp"
#include "daemon/machine/machine.hpp"
#include "daemon/migration/live_limits.hpp"
#include "daemon/migration/mover_events.hpp"
#include "daemon/migration/plan.hpp"
#include "daemon/migration/postcopy_control.hpp"
#include "daemon/migration/return_path_reader.hpp"
#include "daemon/migration/working_set_file.hpp"
#include "postcopy/page_server.hpp"
#include "postcopy/stream_turns.hpp"
#include "postcopy/switch_over.hpp"
#include "ram/origin_memory.hpp"
#include "transports/buffered.hpp"
#include "transports/connect.hpp"

#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

namespace migrationd::migration {

// One set of connections. Destroyed in the order that lets go of what refers to others first.
struct SourceLink {
  std::unique_ptr<transports::Channel> main;
  std::unique_ptr<transports::Channel> preempt;
  std::unique_ptr<transports::BufferedWriter> writer;
  std::unique_ptr<transports::BufferedWriter> preempt_writer;
  std::unique_ptr<ReturnPathReader> return_path;
};

class PostcopySource final : public PostcopyListener {
 public:
  // All of them outlive it. Error: a page size was given for a block that cannot have it.
  static Result<std::unique_ptr<PostcopySource>> make(const PostcopyPlan& plan, Machine& machine,
                                                      const LiveLimits& limits, Progress& progress, MoverEvents& events,
                                                      StopSource& stop, PostcopyControl& control);
  ~PostcopySource() override;

  const std::vector<postcopy::BlockShape>& blocks() const noexcept { return blocks_; }
  stream::command::PostcopyAdvise advise() const { return postcopy::advise(blocks_); }
  // Whether the second connection is made right behind the first (10.1: for a destination that may be QEMU 7.2).
  bool preempt_at_once() const noexcept;

  // Before the machine is stopped, where postcopy was asked for by then. The destination has taken all that was sent: a
  // refusal of our blocks, say, comes in time. Then the second connection is made, where it is still missing.
  Result<void> prepare(SourceLink& link, transports::OutgoingTarget& target);
  // The machine is stopped; `lacking` is what the destination has not, or has stale. `nothing_sent`: it had no page at
  // all. True: the package was tried, and the machine is the peer's, whatever the result.
  Result<void> hand_over(SourceLink link, std::optional<ram::DirtyBitmaps> lacking, std::vector<DeviceSection> devices);
  bool handed_over() const noexcept { return handed_over_; }
  // To the end; see the top. Errors: cancelled by the stop; or the destination never came as far as RUN, and
  // handed_over() is false again. It said so: the machine is ours as before. It only went away, in order:
  // outcome_unknown().
  Result<void> serve();
  bool outcome_unknown() const noexcept { return unknown_; }

  Result<void> on_request(const stream::reply::RequestPages& request) override;
  void on_pong(std::uint32_t value) override;
  Result<std::uint64_t> on_bitmap_announced(const std::string& block) override;
  Result<void> on_bitmap(const std::string& block, ByteView bitmap) override;
  Result<void> on_resume_ack() override;
  void on_lost(const Error& why) override;

 private:
  PostcopySource(const PostcopyPlan& plan, Machine& machine, const LiveLimits& limits, Progress& progress,
                 MoverEvents& events, StopSource& stop, PostcopyControl& control);

  // Of the preempt channel: by QEMU 7.2, in which no newer machine runs.
  bool needs_end_mark() const noexcept;
  ram::PageOrigin& origin() noexcept;
  void open_working_set();
  void keep_working_set();
  std::vector<std::uint64_t> host_pages() const;
  Result<void> start_server(postcopy::UnsentPages unsent);
  // Whether the machine can have run there, after a connection ended; one thread met that as `met`.
  enum class Outcome : std::uint8_t { may_run, refused, unknown };
  Outcome outcome_there(const Error& met) const;
  // What is told of the end that one thread met as `met`.
  Error cause_of(Error met) const;
  Result<void> serve_connection();
  Result<void> await_run();
  Result<void> await_success();
  void close_link();
  // After a break: paused until a new connection stands and the destination has said what it has.
  Result<void> recover(Error why);
  Result<void> reconnect(transports::OutgoingTarget target);
  Result<ram::DirtyBitmaps> ask_for_received();
  Result<void> say_resume();

  const PostcopyPlan plan_;
  Machine& machine_;
  const LiveLimits& limits_;
  Progress& progress_;
  MoverEvents& events_;
  StopSource& stop_;
  PostcopyControl& control_;

  std::vector<postcopy::BlockShape> blocks_;
  ram::OriginMemory memory_;
  std::optional<postcopy::StreamTurns> turns_;  // of an instant resume
  // Of an instant resume from a file: where its working set is kept, what was there, and what was asked for since.
  std::optional<WorkingSetFile> working_set_file_;
  std::vector<postcopy::PageRange> working_set_;
  std::vector<postcopy::PageRange> asked_for_;
  std::atomic<std::uint32_t> last_pong_{0};
  std::atomic<bool> reached_run_{false};  // the PING in front of RUN was answered, or a recovery was
  bool handed_over_ = false;
  bool unknown_ = false;

  SourceLink link_;
  std::unique_ptr<postcopy::PageServer> server_;
  // The same server, for the return path's thread, while there is one.
  std::atomic<postcopy::PageServer*> serving_{nullptr};

  // The handshake of a recovery: written by the return path's thread, read by the mover when the bell rang.
  struct Handshake {
    std::mutex mutex;
    bool open = false;
    ram::DirtyBitmaps lacking;
    std::size_t bitmaps = 0;
    bool acknowledged = false;
    bool lost = false;
  };
  Handshake handshake_;
  std::unique_ptr<Doorbell> bell_;
};

}  // namespace migrationd::migration
